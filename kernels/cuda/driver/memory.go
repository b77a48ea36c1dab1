//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"cmp"
	"errors"
	"fmt"

	"gorgonia.org/cu"
	"loratrain/kernels/cuda"
)

// Alloc is memory of zeros, aligned to 256 bytes. The error says how much was asked for and how much is free.
func (d *device) Alloc(bytes int) (cuda.Address, error) {
	if d.fault != nil {
		return 0, d.fault
	}
	if d.forbidden("Alloc") {
		return 0, d.recording.err
	}
	d.flush()
	at, err := d.alloc(bytes)
	if err != nil {
		return 0, err
	}
	d.Clear(at, bytes)
	return at, nil
}

func (d *device) alloc(bytes int) (at cuda.Address, err error) {
	var free, total int64
	err = d.do(func() error {
		p, err := cu.MemAlloc(int64(bytes))
		at = cuda.Address(p)
		if errors.Is(err, cu.OutOfMemory) {
			free, total, _ = cu.MemInfo() // zeros say enough
		}
		return err
	})
	switch {
	case err == code(C.CUDA_ERROR_OUT_OF_MEMORY):
		return 0, fmt.Errorf("%s of GPU memory wanted, %s of %s free\n"+
			"lower the batch or the length, recompute activations, or end other programs on the card (nvidia-smi lists them)",
			gigabytes(bytes), gigabytes(int(free)), gigabytes(int(total)))
	case err != nil:
		return 0, d.failure(gigabytes(bytes)+" of GPU memory", err)
	}
	d.memory[at] = bytes
	return at, nil
}

// FreeMemory is what the card has left, whoever else uses it.
func (d *device) FreeMemory() (bytes int, ok bool) {
	if d.fault != nil || d.recording != nil {
		return 0, false
	}
	err := d.do(func() error {
		free, _, err := cu.MemInfo()
		bytes = int(free)
		return err
	})
	return bytes, err == nil
}

func gigabytes(n int) string {
	if n < 1e9 { // three digits tell what is wanted from what is free
		return fmt.Sprintf("%.3f GB", float64(n)/1e9)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// Free gives back what Alloc gave, when the work that uses it is done.
func (d *device) Free(at cuda.Address) {
	if d.fault != nil || d.forbidden("Free") {
		return
	}
	if _, ok := d.memory[at]; !ok {
		panic(fmt.Sprintf("kernels/cuda/driver: Free of %#x, which Alloc did not give", uint64(at)))
	}
	d.flush()
	delete(d.memory, at)
	if err := d.do(func() error { return cu.MemFree(cu.DevicePtr(at)) }); err != nil {
		d.failed = cmp.Or(d.failed, d.failure("Free", err))
	}
}

// Copy queues a copy within the device's memory.
func (d *device) Copy(dst, src cuda.Address, bytes int) {
	if bytes > 0 {
		d.queue("copy", func() error {
			return result(C.queue_copy(d.q, C.CUdeviceptr(dst), C.CUdeviceptr(src), C.size_t(bytes)))
		})
	}
}

// Clear queues zeros.
func (d *device) Clear(dst cuda.Address, bytes int) {
	if bytes > 0 {
		d.queue("clear", func() error { return result(C.queue_clear(d.q, C.CUdeviceptr(dst), C.size_t(bytes))) })
	}
}
