//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"runtime"
	"sync"
	"unsafe"

	"loratrain/kernels/cuda"
)

// Uploads pass through rings of pinned memory, from which the card copies on its own. Files of many gigabytes use the large ring:
// while the card takes one slot, several goroutines fill the next.
const (
	smallSlot, smallSlots = 64 << 10, 32
	largeSlot, largeSlots = 16 << 20, 4

	fillers    = 8         // goroutines that fill a slot
	fillAtOnce = 512 << 10 // bytes that are worth one of them

	fetchLargest  = 64 << 20 // bytes of pinned memory for one Fetch
	fetchSmallest = 4 << 10
)

// pinned is pinned memory and the event after its last copy.
type pinned struct {
	bytes []byte
	done  C.CUevent
	busy  bool
}

func (p *pinned) at() unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(p.bytes)) }

// withoutTimes makes an event that only says that something is done.
const withoutTimes = C.CU_EVENT_DISABLE_TIMING

// pin makes pinned memory of n slots in one piece.
func (d *device) pin(n, bytes int) ([]*pinned, error) {
	var at unsafe.Pointer
	if err := result(C.queue_pin(d.q, &at, C.size_t(n*bytes))); err != nil {
		return nil, err
	}
	d.pins = append(d.pins, at)
	whole := unsafe.Slice((*byte)(at), n*bytes)
	slots := make([]*pinned, n)
	for i := range slots {
		slots[i] = &pinned{bytes: whole[i*bytes : (i+1)*bytes : (i+1)*bytes]}
		if err := result(C.queue_new_event(d.q, &slots[i].done, withoutTimes)); err != nil {
			return nil, err
		}
	}
	return slots, nil
}

// ring is slots that are used in turn.
type ring struct {
	slots []*pinned
	next  int
}

func (d *device) newRing(n, bytes int) (*ring, error) {
	slots, err := d.pin(n, bytes)
	return &ring{slots: slots}, err
}

// take is the next slot, when the card is done with it.
func (d *device) take(r *ring) *pinned {
	p := r.slots[r.next]
	r.next = (r.next + 1) % len(r.slots)
	d.await(p)
	return p
}

func (d *device) await(p *pinned) {
	if p.busy && d.fault == nil {
		if err := result(C.queue_wait(d.q, p.done)); err != nil {
			d.fail("a copy", err)
		}
	}
	p.busy = false
}

// ringFor is the ring for a transfer of that size.
func (d *device) ringFor(bytes int) *ring {
	if bytes <= smallSlot {
		return d.small
	}
	if d.large == nil {
		large, err := d.newRing(largeSlots, largeSlot)
		if err != nil {
			return d.small // slower, and enough
		}
		d.large = large
	}
	return d.large
}

// Upload copies src, which may be changed when it returns.
func (d *device) Upload(dst cuda.Address, src []byte) {
	if d.fault != nil || len(src) == 0 || d.forbidden("Upload") {
		return
	}
	d.flush()
	ring := d.ringFor(len(src))
	for len(src) > 0 && d.fault == nil {
		slot := d.take(ring)
		n := min(len(src), len(slot.bytes))
		copyParallel(slot.bytes[:n], src[:n])
		if err := result(C.queue_send(d.q, C.CUdeviceptr(dst), slot.at(), C.size_t(n), slot.done)); err != nil {
			d.fail("Upload", err)
			return
		}
		slot.busy = true
		dst, src = dst+cuda.Address(n), src[n:]
	}
}

// copyParallel is copy, by several goroutines if it is much.
func copyParallel(dst, src []byte) {
	n := min(fillers, runtime.GOMAXPROCS(0), len(src)/fillAtOnce)
	if n <= 1 {
		copy(dst, src)
		return
	}
	part := (len(src)/n + 4095) &^ 4095
	var wg sync.WaitGroup
	for from := 0; from < len(src); from += part {
		to := min(from+part, len(src))
		wg.Go(func() { copy(dst[from:to], src[from:to]) })
	}
	wg.Wait()
}

// Download copies to dst when all before it is done.
func (d *device) Download(dst []byte, src cuda.Address) {
	if d.fault != nil || len(dst) == 0 || d.forbidden("Download") {
		return
	}
	d.flush()
	if len(dst) <= smallSlot {
		if err := result(C.queue_read(d.q, unsafe.Pointer(&dst[0]), C.CUdeviceptr(src), C.size_t(len(dst)))); err != nil {
			d.fail("Download", err)
		}
		return
	}
	ring := d.ringFor(len(dst))
	collect := func() {}
	for len(dst) > 0 && d.fault == nil {
		slot := d.take(ring)
		n := min(len(dst), len(slot.bytes))
		if !d.receive(slot, src, n) {
			return
		}
		collect() // the slot before, while the card fills this one
		part := dst[:n]
		collect = func() {
			if d.await(slot); d.fault == nil {
				copyParallel(part, slot.bytes[:n])
			}
		}
		dst, src = dst[n:], src+cuda.Address(n)
	}
	collect()
}

func (d *device) receive(slot *pinned, src cuda.Address, n int) bool {
	if err := result(C.queue_receive(d.q, slot.at(), C.CUdeviceptr(src), C.size_t(n), slot.done)); err != nil {
		d.fail("Download", err)
		return false
	}
	slot.busy = true
	return true
}

// Fetch is Download that does not wait; dst holds the bytes when the function that it returns has returned.
func (d *device) Fetch(dst []byte, src cuda.Address) (wait func()) {
	if d.fault != nil || len(dst) == 0 || d.forbidden("Fetch") {
		return func() {}
	}
	d.flush()
	slot := d.fetchSlot(len(dst))
	if slot == nil {
		d.Download(dst, src)
		return func() {}
	}
	if !d.receive(slot, src, len(dst)) {
		d.free = append(d.free, slot)
		return func() {}
	}
	return sync.OnceFunc(func() {
		if d.await(slot); d.fault == nil {
			copy(dst, slot.bytes)
			d.free = append(d.free, slot)
		}
	})
}

// fetchSlot is a free slot of at least that size, nil if it is too much for pinned memory.
func (d *device) fetchSlot(bytes int) *pinned {
	if bytes > fetchLargest {
		return nil
	}
	best := -1
	for i, p := range d.free {
		if len(p.bytes) >= bytes && (best < 0 || len(p.bytes) < len(d.free[best].bytes)) {
			best = i
		}
	}
	if best >= 0 {
		p := d.free[best]
		d.free = append(d.free[:best], d.free[best+1:]...)
		return p
	}
	size := fetchSmallest
	for size < bytes {
		size *= 2
	}
	p, err := d.pin(1, size)
	if err != nil {
		return nil
	}
	return p[0]
}
