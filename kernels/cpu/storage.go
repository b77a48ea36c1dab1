package cpu

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"unsafe"

	"loratrain/kernels"
)

// Alloc is a tensor of zeros. The error says how much was asked for and how much there is.
func (e *engine[E]) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	size, free := float64(t.Size()), freeMemory()
	for _, d := range shape {
		if d < 0 {
			return kernels.Tensor{}, fmt.Errorf("tensor %v%v: expected dimensions of at least 0", t, shape)
		}
		size *= float64(d)
	}
	if size > free {
		return kernels.Tensor{}, fmt.Errorf("tensor %v%v needs %.1f GB of memory, and %.1f GB are free\n"+
			"use shorter batches or a smaller model, or free memory", t, shape, size/1e9, free/1e9)
	}
	x := kernels.NewHost(t, shape...)
	e.memory.Gave(x.Bytes())
	return x, nil
}

// unknownMemory is what a slice can hold.
const unknownMemory = math.MaxInt / 16

// freeMemory is what the machine can give, in bytes; unknownMemory where it does not say.
func freeMemory() float64 {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return unknownMemory
	}
	_, after, found := bytes.Cut(info, []byte("MemAvailable:"))
	fields := bytes.Fields(after)
	if !found || len(fields) == 0 {
		return unknownMemory
	}
	kilobytes, err := strconv.ParseFloat(string(fields[0]), 64)
	if err != nil {
		return unknownMemory
	}
	return kilobytes * 1024
}

// FreeMemory implements [kernels.Limited].
func (e *engine[E]) FreeMemory() (bytes int, ok bool) {
	free := freeMemory()
	return int(free), free < unknownMemory
}

// Free gives back what Alloc gave. The garbage collector does, once the last reference is gone.
func (e *engine[E]) Free(t kernels.Tensor) {
	if !t.None() {
		e.memory.Took(t.Bytes())
	}
}

// PeakBytes implements [kernels.Accountant].
func (e *engine[E]) PeakBytes() int { return e.memory.PeakBytes() }

// Place is host brought to where the operations can read it: host itself, or a copy if it is not aligned.
func (e *engine[E]) Place(host kernels.Tensor) (kernels.Tensor, error) {
	mem := bytesIn("Place", "host", host)
	if len(mem) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%uintptr(host.Type.Size()) == 0 {
		return host, nil
	}
	t, err := e.Alloc(host.Type, host.Shape...)
	if err != nil {
		return t, err
	}
	copy(t.Mem.(kernels.Host), mem)
	return t, nil
}

// Write copies host to t, which has its type and length.
func (e *engine[E]) Write(t, host kernels.Tensor) { copyTensor("Write", t, host) }

// Read copies t to host, which has its type and length, when all operations before it are done.
func (e *engine[E]) Read(host, t kernels.Tensor) { copyTensor("Read", host, t) }

// Fetch is Read that does not wait: host holds the elements when the function that it returns has returned. Here they are
// copied at once.
func (e *engine[E]) Fetch(host, t kernels.Tensor) (wait func()) {
	copyTensor("Fetch", host, t)
	return func() {}
}

// Copy copies src to dst, which has its type and length.
func (e *engine[E]) Copy(dst, src kernels.Tensor) { copyTensor("Copy", dst, src) }

func copyTensor(op string, dst, src kernels.Tensor) {
	d, s := bytesIn(op, "destination", dst), bytesIn(op, "source", src)
	if dst.Type != src.Type || len(d) != len(s) {
		fail(op, "copy of %v to %v", src, dst)
	}
	copy(d, s)
}

// Zero clears t.
func (e *engine[E]) Zero(t kernels.Tensor) { clear(bytesIn("Zero", "t", t)) }

// Sync waits for all operations and reports the first that failed since the last call: none can.
func (e *engine[E]) Sync() error { return nil }

// Close ends the use of the backend.
func (e *engine[E]) Close() error { return nil }
