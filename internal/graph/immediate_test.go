package graph

import (
	"errors"
	"slices"
	"testing"

	"loratrain/kernels"
)

func TestDoneMemoryIsUsedAgain(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 1000}
	x := NewImmediate(b)
	in, two := bound(x, "in", normal("in", 500), 500), bound(x, "two", []float64{2}, 1)
	for range 100 {
		y := Scale(x, in, two)
		z := Scale(x, y, two)
		x.Done(y)
		if got, want := float64s(z.Tensor())[499], 4*normal("in", 500)[499]; got != want {
			t.Fatalf("4·x is %v, want %v", got, want)
		}
		x.Done(z)
	}
	if taken := 1000 - b.left; taken != 2 {
		t.Errorf("100 passes of two values allocated %d times, want 2", taken)
	}
	if x.Bytes() < 2*500*8 || x.Bytes() > 3*500*8 {
		t.Errorf("Bytes is %d for two values of %d", x.Bytes(), 500*8)
	}
	x.Done(Scale(x, in, two))
	x.Close()
	if len(b.held) != 0 || x.Bytes() != 0 {
		t.Errorf("after Close %d allocations, %d bytes are held", len(b.held), x.Bytes())
	}
}

// TestSizesThatAreNearShare keeps batches of nearly one size from piling up memory.
func TestSizesThatAreNearShare(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 1000}
	x := NewImmediate(b)
	for n := 1000; n <= 1100; n++ {
		v := x.Floats(make([]float32, n), n)
		if v.Tensor().Bytes() != 8*n {
			t.Fatalf("a value of %d numbers has %d bytes", n, v.Tensor().Bytes())
		}
		x.Done(v)
	}
	if taken := 1000 - b.left; taken > 2 {
		t.Errorf("101 sizes from 1000 to 1100 allocated %d times, want 2 at most", taken)
	}
}

// TestDoneTwice must not hand one memory to two values.
func TestDoneTwice(t *testing.T) {
	x := NewImmediate(newBackend(t, true))
	v := x.Floats([]float32{1}, 1)
	x.Done(v, v, V{})
	x.Done(v)
	a, b := x.Floats([]float32{2}, 1), x.Floats([]float32{3}, 1)
	if got := float64s(a.Tensor())[0]; got != 2 || float64s(b.Tensor())[0] != 3 {
		t.Errorf("two values are %g and %g, want 2 and 3", got, float64s(b.Tensor())[0])
	}
}

func TestDoneLeavesBoundTensorsAlone(t *testing.T) {
	x := NewImmediate(newBackend(t, true))
	v := bound(x, "x", []float64{7}, 1)
	x.Done(v)
	x.Floats([]float32{1}, 1)
	if got := float64s(v.Tensor())[0]; got != 7 {
		t.Errorf("a bound tensor is %g after Done, was 7", got)
	}
}

func TestUseAfterDonePanics(t *testing.T) {
	x := NewImmediate(newBackend(t, true))
	h, w := bound(x, "h", []float64{1, 2}, 1, 2), bound(x, "w", []float64{3, 4}, 1, 2)
	bias := x.Floats([]float32{5}, 1)
	x.Done(bias)
	const want = "a value f64[1] is used after Done"
	panics(t, want, func() { bias.Tensor() })
	// A bias may be left out, so the kernel alone would not notice.
	panics(t, want, func() { Linear(x, h, w, bias, V{}) })
}

func TestAttentionAndLossGiveBackWhatOnlyGradientsNeed(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 1000}
	x := NewImmediate(b)
	q := bound(x, "q", normal("q", 4), 1, 4)
	spans, targets := x.Ints([]int32{0, 1, 0, 0}, 1, 4), x.Ints([]int32{0}, 1)
	bank := Bank{A: bound(x, "A", normal("A", 8), 4, 2), B: bound(x, "B", normal("B", 8), 2, 4), Scale: 1}
	pass := func() {
		o := Attention(x, q, q, q, spans, kernels.Heads{Query: 2, KV: 2, Dim: 2})
		ce := CrossEntropy(x, o, q, targets)
		y := SwitchLinear(x, o, o, bound(x, "w", normal("w", 16), 4, 4), V{}, V{}, bank)
		x.Done(o, ce, y)
	}
	pass()
	before := b.left
	pass()
	if b.left != before {
		t.Errorf("a second pass allocated %d times, want none", before-b.left)
	}
}

func TestIntsAndFloats(t *testing.T) {
	for _, wide := range []bool{false, true} {
		x := NewImmediate(newBackend(t, wide))
		ids := x.Ints([]int32{3, -1, 1 << 30, 7, 0, 2}, 2, 3)
		if got, want := kernels.Slice[int32](ids.Tensor()), []int32{3, -1, 1 << 30, 7, 0, 2}; !slices.Equal(got, want) {
			t.Errorf("%v: whole numbers %v, want %v", x.Backend(), got, want)
		}
		if !slices.Equal(ids.Shape, []int{2, 3}) || ids.Type != kernels.I32 {
			t.Errorf("%v: whole numbers are %v%v, want i32[2 3]", x.Backend(), ids.Type, ids.Shape)
		}
		floats := []float32{0.1, -2.5e-30, 3}
		v := x.Floats(floats, 3)
		if v.Type != x.Backend().Param() {
			t.Errorf("%v: numbers have type %v, want %v", x.Backend(), v.Type, x.Backend().Param())
		}
		for i, f := range floats {
			var got float64
			if wide {
				got = float64s(v.Tensor())[i]
			} else {
				got = float64(kernels.Slice[float32](v.Tensor())[i])
			}
			if got != float64(f) {
				t.Errorf("%v: number %d is %v, want %v", x.Backend(), i, got, f)
			}
		}
	}
}

// TestSumsOfAGradientStartFromZero: memory is used again, and an operation that adds must not add to what was there.
func TestSumsOfAGradientStartFromZero(t *testing.T) {
	x := NewImmediate(newBackend(t, true))
	adds := plus("adds", 0)
	adds.Adds = true
	adds.Run = func(_ kernels.Backend, out, in []kernels.Tensor) {
		float64s(out[0])[0] += float64s(in[0])[0]
	}
	x.Done(x.Floats([]float32{100}, 1))
	if got := float64s(x.Apply(adds, bound(x, "x", []float64{3}, 1))[0].Tensor())[0]; got != 3 {
		t.Errorf("a sum of 3 alone is %g", got)
	}
}

func TestCatch(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 1, fault: errors.New("the device fell over")}
	x := NewImmediate(b)
	in, two := bound(x, "x", []float64{1}, 1), bound(x, "two", []float64{2}, 1)
	went := false
	if err := Catch(b, func() {
		Scale(x, Scale(x, in, two), two)
		went = true
	}); !errors.Is(err, errScarce) || went {
		t.Errorf("error %v and went on: %v, want %v and a pass that stopped", err, went, errScarce)
	}
	mine := errors.New("no adapter")
	if err := Catch(b, func() { Fail(mine) }); !errors.Is(err, mine) {
		t.Errorf("error %v, want %v", err, mine)
	}
	if err := Catch(b, func() {}); !errors.Is(err, b.fault) {
		t.Errorf("error %v, want what Sync says", err)
	}
	b.fault = nil
	if err := Catch(b, func() {}); err != nil {
		t.Errorf("error %v of a pass that ran", err)
	}
	panics(t, "a mistake", func() { Catch(b, func() { panic("a mistake") }) })
}
