package cpu

import (
	"testing"

	"loratrain/kernels"
)

// TestPeakBytes follows what is allocated and freed; memory of the caller's own does not count.
func TestPeakBytes(t *testing.T) {
	b, err := New(Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	account := b.(kernels.Accountant)
	check := func(want int) {
		t.Helper()
		if got := account.PeakBytes(); got != want {
			t.Errorf("the peak is %d bytes, want %d", got, want)
		}
	}
	alloc := func(typ kernels.Type, n int) kernels.Tensor {
		t.Helper()
		x, err := b.Alloc(typ, n)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	first := alloc(kernels.F32, 10)
	check(40)
	if _, err := b.Place(kernels.NewHost(kernels.F32, 100)); err != nil {
		t.Fatal(err)
	}
	check(40)
	second := alloc(kernels.BF16, 5)
	check(50)
	b.Free(first)
	alloc(kernels.F64, 4)
	check(50)
	b.Free(second)
	b.Free(kernels.Tensor{})
	alloc(kernels.F32, 8)
	check(64)
	if _, err := b.Alloc(kernels.F32, -1); err == nil {
		t.Error("a tensor of -1 elements was allocated")
	}
	check(64)
}
