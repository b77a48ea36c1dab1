package budget

import (
	"reflect"
	"unsafe"

	"loratrain/kernels"
)

// moves is tensors that are read or written once; none of them moves nothing.
func moves(ts ...kernels.Tensor) Work {
	var w Work
	for _, t := range ts {
		if !t.None() {
			w.Bytes += float64(t.Bytes())
		}
	}
	return w
}

// gathers is n rows of a table that are read, each once even if it is read often.
func gathers(table kernels.Tensor, n int) Work {
	rows := min(n, table.Shape[0])
	return Work{Bytes: float64(rows) * float64(table.Bytes()) / float64(max(table.Shape[0], 1))}
}

// product is the multiplication of matrices (m, k) and (k, n).
func product(m, n, k int) Work { return Work{Flops: 2 * float64(m) * float64(n) * float64(k)} }

func (w Work) and(others ...Work) Work {
	for _, o := range others {
		w.Flops += o.Flops
		w.Bytes += o.Bytes
	}
	return w
}

func (w Work) times(n float64) Work { return Work{Flops: n * w.Flops, Bytes: n * w.Bytes} }

// distinct is t, or none if it lies where other does.
func distinct(t, other kernels.Tensor) kernels.Tensor {
	if sameMemory(t.Mem, other.Mem) {
		return kernels.Tensor{}
	}
	return t
}

func sameMemory(a, b kernels.Memory) bool {
	if h, ok := a.(kernels.Host); ok {
		o, ok := b.(kernels.Host)
		return ok && unsafe.SliceData(h) == unsafe.SliceData(o)
	}
	return a != nil && reflect.TypeOf(a).Comparable() && a == b
}

// ints is the elements of an i32 tensor wherever it lies.
func (m *Meter) ints(t kernels.Tensor) []int32 {
	host := kernels.NewHost(kernels.I32, t.Shape...)
	m.b.Read(host, t)
	return kernels.Slice[int32](host)
}

// pairs is how many pairs of a token and a key that it sees there are.
func (m *Meter) pairs(spans kernels.Tensor) float64 {
	if !m.on {
		return 0
	}
	s, n := m.ints(spans), 0.0
	for i := 0; i+3 < len(s); i += 4 {
		n += float64(max(s[i+1]-s[i], 0)) + float64(max(s[i+3]-s[i+2], 0))
	}
	return n
}

// counted is how many of an i32 tensor's elements are 0 or more.
func (m *Meter) counted(t kernels.Tensor) int {
	if !m.on {
		return 0
	}
	n := 0
	for _, x := range m.ints(t) {
		if x >= 0 {
			n++
		}
	}
	return n
}
