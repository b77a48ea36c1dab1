//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"gorgonia.org/cu"
	"loratrain/kernels/cuda"
)

// window is how many operations are queued at once behind the kernel that holds the stream; with an event each they must fit the
// driver's queue of about a thousand.
const window = 128

// profile is operations that wait to be run and timed, and the times of those before.
type profile struct {
	pending []operation
	took    []cuda.Took
	events  [window + 1]C.CUevent
	hold    cu.Module
	keep    C.CUfunction
	flag    *pinned // the stream is held while its first word is 0
}

// holdPTX is a kernel that runs until *flag is not 0, or for some nanoseconds at most: what the host queues in the meantime then
// follows without gaps, so that events between show the time of the card alone.
const holdPTX = `.version 7.0
.target sm_80
.address_size 64
.visible .entry hold(.param .u64 flag, .param .u64 longest)
{
	.reg .pred %p<3>;
	.reg .b32 %r<2>;
	.reg .b64 %rd<6>;
	ld.param.u64 %rd1, [flag];
	ld.param.u64 %rd2, [longest];
	mov.u64 %rd3, %globaltimer;
again:
	ld.volatile.global.u32 %r1, [%rd1];
	setp.ne.u32 %p1, %r1, 0;
	@%p1 bra done;
	mov.u64 %rd4, %globaltimer;
	sub.u64 %rd5, %rd4, %rd3;
	setp.lt.u64 %p2, %rd5, %rd2;
	@%p2 bra again;
done:
	ret;
}
`

// holdLongest, in nanoseconds, ends the kernel when the host itself waits for the card while it queues.
const holdLongest = 200e6

// Profile runs what f queues and says what each kernel and product took. A time includes the one or two microseconds between a
// launch and the next.
func (d *device) Profile(f func()) ([]cuda.Took, error) {
	if err := d.Sync(); err != nil {
		return nil, err
	}
	p, err := d.newProfile()
	if err != nil {
		return nil, err
	}
	d.profile = p
	defer func() {
		d.profile = nil
		d.endProfile(p)
	}()
	f()
	d.flush()
	if err := d.Sync(); err != nil {
		return nil, err
	}
	return p.took, nil
}

func (d *device) newProfile() (*profile, error) {
	p := &profile{}
	err := d.do(func() (err error) {
		if p.hold, err = cu.LoadData(holdPTX + "\x00"); err != nil {
			return err
		}
		f, err := p.hold.Function("hold")
		p.keep = *(*C.CUfunction)(unsafe.Pointer(&f))
		return err
	})
	for i := range p.events {
		if err == nil {
			err = result(C.queue_new_event(d.q, &p.events[i], C.CU_EVENT_DEFAULT))
		}
	}
	if err == nil {
		if p.flag = d.fetchSlot(fetchSmallest); p.flag == nil {
			err = code(C.CUDA_ERROR_OUT_OF_MEMORY)
		}
	}
	if err != nil {
		d.endProfile(p)
	}
	return p, err
}

func (d *device) endProfile(p *profile) {
	if d.fault != nil {
		return
	}
	for _, e := range p.events {
		if e != nil {
			C.queue_free_event(d.q, e)
		}
	}
	if p.flag != nil {
		d.free = append(d.free, p.flag)
	}
	if p.hold != (cu.Module{}) {
		d.do(p.hold.Unload)
	}
}

// flush runs and times what a profile has gathered.
func (d *device) flush() {
	p := d.profile
	if p == nil || len(p.pending) == 0 || d.fault != nil {
		return
	}
	ops := p.pending
	p.pending = nil
	held := (*uint32)(p.flag.at())
	atomic.StoreUint32(held, 0)
	args := d.arguments()
	binary.NativeEndian.PutUint64(args, uint64(uintptr(p.flag.at())))
	binary.NativeEndian.PutUint64(args[8:], holdLongest)
	one := shapeOf(cuda.Launch{})
	err := d.launch(&kernel{name: "hold", function: p.keep, offsets: []int{0, 8}}, &one)
	if err == nil {
		err = result(C.queue_mark(d.q, p.events[0]))
	}
	for i, op := range ops {
		if err != nil || d.fault != nil {
			break
		}
		d.ran(op.name, op.run())
		err = result(C.queue_mark(d.q, p.events[i+1]))
	}
	atomic.StoreUint32(held, 1)
	if err == nil {
		err = result(C.queue_sync(d.q))
	}
	for i, op := range ops {
		var ms C.float
		if err == nil && d.fault == nil {
			err = result(C.queue_elapsed(d.q, &ms, p.events[i], p.events[i+1]))
		}
		p.took = append(p.took, cuda.Took{Name: op.name, Seconds: float64(ms) / 1e3})
	}
	if err != nil {
		d.fail("Profile", err)
	}
}
