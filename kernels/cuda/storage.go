package cuda

import (
	"fmt"

	"loratrain/kernels"
)

// Memory is a span of a device's memory; it implements [kernels.Memory].
type Memory struct {
	At    Address
	Bytes int
}

// Slice implements [kernels.Memory].
func (m Memory) Slice(from, to int) kernels.Memory {
	if from < 0 || from > to || to > m.Bytes {
		panic(fmt.Sprintf("kernels/cuda: bytes [%d, %d) of %d", from, to, m.Bytes))
	}
	return Memory{m.At + Address(from), to - from}
}

// Alloc is a tensor of zeros. The error says how much was asked for and how much there is.
func (b *Backend) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	for _, d := range shape {
		if d < 0 {
			return kernels.Tensor{}, fmt.Errorf("tensor %v%v: expected dimensions of at least 0", t, shape)
		}
	}
	x := kernels.Tensor{Type: t, Shape: append([]int(nil), shape...)}
	size := x.Bytes()
	a, err := b.dev.Alloc(max(size, 1))
	if err != nil {
		return kernels.Tensor{}, fmt.Errorf("tensor %v: %w", x, err)
	}
	x.Mem = Memory{a, size}
	b.memory.Gave(size)
	return x, nil
}

// Free gives back what Alloc gave.
func (b *Backend) Free(t kernels.Tensor) {
	if !t.None() {
		b.dev.Free(at(t))
		b.memory.Took(t.Bytes())
	}
}

// FreeMemory implements [kernels.Limited].
func (b *Backend) FreeMemory() (bytes int, ok bool) { return b.dev.FreeMemory() }

// Place is host brought to where the operations can read it: a copy.
func (b *Backend) Place(host kernels.Tensor) (kernels.Tensor, error) {
	t, err := b.Alloc(host.Type, host.Shape...)
	if err == nil {
		b.Write(t, host)
	}
	return t, err
}

// Write copies host to t, which has its type and length.
func (b *Backend) Write(t, host kernels.Tensor) {
	same("Write", t, host)
	b.dev.Upload(at(t), hostBytes("Write", host))
}

// Read copies t to host, which has its type and length, when all operations before it are done.
func (b *Backend) Read(host, t kernels.Tensor) {
	same("Read", host, t)
	b.dev.Download(hostBytes("Read", host), at(t))
}

// Fetch is Read that does not wait: host holds the elements when the function that it returns has returned.
func (b *Backend) Fetch(host, t kernels.Tensor) (wait func()) {
	same("Fetch", host, t)
	return b.dev.Fetch(hostBytes("Fetch", host), at(t))
}

// Copy copies src to dst, which has its type and length.
func (b *Backend) Copy(dst, src kernels.Tensor) {
	same("Copy", dst, src)
	b.dev.Copy(at(dst), at(src), src.Bytes())
}

// Zero clears t.
func (b *Backend) Zero(t kernels.Tensor) { b.dev.Clear(at(t), t.Bytes()) }

// Sync waits for all operations and reports the first that failed since the last call.
func (b *Backend) Sync() error { return b.dev.Sync() }

// Close gives the device back, unless it is another backend's.
func (b *Backend) Close() error {
	if b.borrowed {
		return b.dev.Sync()
	}
	return b.dev.Close()
}

// Exact is a backend in float32 on the tensors of this one. It uses the same workspace: the device does one operation after the other.
func (b *Backend) Exact() kernels.Backend {
	return &Backend{dev: b.dev, float: kernels.F32, info: b.info, workspace: b.workspace, counters: b.counters, borrowed: true}
}

func same(op string, dst, src kernels.Tensor) {
	if dst.Type != src.Type || dst.Len() != src.Len() {
		fail(op, "copy of %v to %v", src, dst)
	}
}

func hostBytes(op string, t kernels.Tensor) []byte {
	h, ok := t.Mem.(kernels.Host)
	if !ok {
		fail(op, "%v lies in %T, expected host memory", t, t.Mem)
	}
	return h
}

// Capture records the operations that f calls, without running them.
func (b *Backend) Capture(f func()) (kernels.Recording, error) { return b.dev.Capture(f) }
