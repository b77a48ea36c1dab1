package cpu

import (
	"math"
	"testing"

	"loratrain/kernels"
)

func TestExp(t *testing.T) {
	w := newTestEngine[float32](t, Options{}).main()
	var a []float32
	for x := float32(-87.3); x < 88.3; x += 0.00173 {
		a = append(a, x)
	}
	got := make([]float32, len(a))
	w.exp(got, a)
	for i, x := range a {
		want := math.Exp(float64(x))
		if e := math.Abs(float64(got[i])-want) / want; e > 3e-7 {
			t.Fatalf("exp(%g) = %g, want %g: off by %g", x, got[i], want, e)
		}
	}
}

func TestExpExtremes(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	w := newTestEngine[float32](t, Options{}).main()
	for _, c := range []struct{ x, want float32 }{
		{0, 1}, {-1e4, 0}, {-3e38, 0}, {1e4, inf}, {3e38, inf}, {-inf, 0}, {inf, inf}, {nan, nan}, {-200, 0},
	} {
		// Alone, among others, and at the end of a block that a vector does not fill.
		for _, at := range []int{0, 5, 255, 256, 300} {
			a := make([]float32, 301)
			a[at] = c.x
			w.exp(a, a)
			if a[at] != c.want && !(a[at] != a[at] && c.want != c.want) {
				t.Errorf("exp(%g) at %d = %g, want %g", c.x, at, a[at], c.want)
			}
			if a[(at+1)%301] != 1 {
				t.Errorf("exp(0) beside %g = %g, want 1", c.x, a[(at+1)%301])
			}
		}
	}
}

func TestWiden(t *testing.T) {
	src := make([]kernels.BFloat16, 1<<16)
	for i := range src {
		src[i] = kernels.BFloat16(i)
	}
	got := make([]float32, len(src))
	// An odd start, since a row of a weight may begin anywhere.
	widen32(got[1:], src[1:])
	got64 := make([]float64, len(src))
	widen64(got64, src)
	for i := 1; i < len(src); i++ {
		want := src[i].Float32()
		if math.Float32bits(got[i]) != math.Float32bits(want) {
			t.Fatalf("widened %#04x is %#08x, want %#08x", i, math.Float32bits(got[i]), math.Float32bits(want))
		}
		if got64[i] != float64(want) && want == want {
			t.Fatalf("widened %#04x is %g, want %g", i, got64[i], want)
		}
	}
}

func BenchmarkExp(b *testing.B) {
	w := newTestEngine[float32](b, Options{}).main()
	a, dst := make([]float32, 4096), make([]float32, 4096)
	for i := range a {
		a[i] = -float32(i) / 200
	}
	for b.Loop() {
		w.exp(dst, a)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4096, "ns/element")
}

func BenchmarkWiden(b *testing.B) {
	src, dst := make([]kernels.BFloat16, 1<<14), make([]float32, 1<<14)
	for b.Loop() {
		widen32(dst, src)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(src)), "ns/element")
}
