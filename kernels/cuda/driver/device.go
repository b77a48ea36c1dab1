//go:build gpu

package driver

// #include <stdlib.h>
// #include "queue.h"
import "C"

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"gorgonia.org/cu"
	"loratrain/kernels/cuda"
)

// device implements [cuda.Device].
type device struct {
	index int
	info  cuda.Info
	dev   cu.Device
	ctx   cu.CUContext
	held  bool // ctx
	q     *C.queue
	lane  cu.Stream // q's stream

	kernels map[string]*kernel
	blas    *blas
	memory  map[cuda.Address]int // what Alloc gave, in bytes

	small, large *ring // pinned memory for uploads
	free         []*pinned
	pins         []unsafe.Pointer

	history   history
	failed    error // the first failure since the last Sync
	fault     error // the device does nothing any more
	trace     bool
	recording *recording // that Capture makes
	profile   *profile   // that Profile makes
}

// prepare makes everything that work needs.
func (d *device) prepare(library func() blasLibrary) error {
	err := d.retain()
	lib := library()
	if err != nil {
		return err
	}
	if err := d.loadModules(); err != nil {
		return err
	}
	if d.small, err = d.newRing(smallSlots, smallSlot); err != nil {
		return fmt.Errorf("pinned memory: %w", err)
	}
	d.blas, err = d.startBLAS(lib)
	return err
}

// retain takes the device's primary context, which libraries use too, and makes the stream.
func (d *device) retain() (err error) {
	if d.ctx, err = d.dev.RetainPrimaryCtx(); err != nil {
		return fmt.Errorf("context: %w\nthe card may be in exclusive use by another program, or have no memory left: nvidia-smi shows it", named(err))
	}
	d.held = true
	d.q.context = *(*C.CUcontext)(unsafe.Pointer(&d.ctx))
	return d.do(func() error {
		if d.lane, err = cu.MakeStream(cu.NonBlocking); err != nil {
			return fmt.Errorf("stream: %w", named(err))
		}
		d.q.stream = C.CUstream(unsafe.Pointer(d.lane.C()))
		return nil
	})
}

// do calls f, which calls package cu, with the device's context on its thread.
func (d *device) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cu.SetCurrentContext(d.ctx); err != nil {
		return named(err)
	}
	return named(f())
}

// Info is what the device is.
func (d *device) Info() cuda.Info { return d.info }

// Sync waits for everything and reports the first failure since the last call.
func (d *device) Sync() error {
	if d.fault == nil && !d.forbidden("Sync") {
		d.flush()
		if err := result(C.queue_sync(d.q)); err != nil {
			d.fail("", err)
		} else {
			d.history = history{}
		}
	}
	if d.fault != nil {
		return d.fault
	}
	err := d.failed
	d.failed = nil
	return err
}

// patience is how long Close waits for a card that does not answer.
const patience = 5 * time.Second

// Close gives the device back, with all that was allocated on it.
func (d *device) Close() error {
	if d.fault == errClosed {
		return nil
	}
	well := d.fault == nil
	d.fault = errClosed
	done := make(chan error, 1)
	go func() { done <- d.release(well) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("GPU %d does not answer\nend this program; if nvidia-smi still shows it afterwards, the machine needs a restart", d.index)
	}
}

// release frees what the device holds; of a context that no longer works everything at once.
func (d *device) release(well bool) error {
	defer C.free(unsafe.Pointer(d.q))
	if !d.held {
		return nil
	}
	if !well {
		return d.dev.ResetPrimaryCtx()
	}
	C.queue_sync(d.q)
	d.stopBLAS()
	for _, p := range d.pins {
		C.queue_unpin(d.q, p)
	}
	err := d.do(func() error {
		for at := range d.memory {
			if err := cu.MemFree(cu.DevicePtr(at)); err != nil {
				return err
			}
		}
		return d.lane.Destroy()
	})
	if released := d.dev.ReleasePrimaryCtx(); err == nil {
		err = released
	}
	return err
}
