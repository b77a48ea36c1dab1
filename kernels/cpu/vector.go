package cpu

import (
	"math"
	"unsafe"

	"github.com/tphakala/simd/cpu"
	"github.com/tphakala/simd/f32"
	"github.com/tphakala/simd/f64"
	"github.com/tphakala/simd/i16"

	"loratrain/kernels"
)

// float is the element types that the package computes in.
type float interface {
	float32 | float64
	kernels.Element
}

// vector is the loops over slices. Slices of a call have the same length; dst may be an input.
type vector[E float] struct {
	add, sub, mul, div func(dst, a, b []E)
	mulAdd             func(dst, a, b []E) // dst += a·b
	scale, shift       func(dst, a []E, s E)
	addScaled          func(dst []E, s E, a []E) // dst += s·a
	sqrt               func(dst, a []E)
	dot                func(a, b []E) E
	dots               func(dst, rows, x []E, stride int) // dst[i] = rows[i·stride:]·x
	sum, squares       func(a []E) E
	max                func(a []E) E
	exp                func(dst, a, tmp []E)                 // tmp of expTemps·expBlock; accurate to 2 units in the last place
	widen              func(dst []E, src []kernels.BFloat16) // exact
}

var vector32 = vector[float32]{
	add: f32.Add, sub: f32.Sub, mul: f32.Mul, div: f32.Div, mulAdd: f32.MulAdd,
	scale: f32.Scale, shift: f32.AddScalar, addScaled: f32.AddScaled, sqrt: f32.Sqrt,
	dot: f32.DotProduct, sum: f32.Sum, squares: f32.SumOfSquares, max: f32.Max,
	dots: func(dst, rows, x []float32, stride int) {
		f32.DotProductStrided(dst, rows, x, len(dst), len(x), stride)
	},
	exp: exp32, widen: widen32,
}

var vector64 = vector[float64]{
	add: f64.Add, sub: f64.Sub, mul: f64.Mul, div: f64.Div, mulAdd: f64.MulAdd,
	scale: f64.Scale, shift: f64.AddScalar, addScaled: f64.AddScaled, sqrt: f64.Sqrt,
	dot: f64.DotProduct, sum: f64.Sum, squares: f64.SumOfSquares, max: f64.Max,
	dots: dots64, exp: exp64, widen: widen64,
}

func dots64(dst, rows, x []float64, stride int) {
	for i := range dst {
		dst[i] = f64.DotProduct(rows[i*stride:i*stride+len(x)], x)
	}
}

func exp64(dst, a, _ []float64) {
	for i, x := range a {
		dst[i] = math.Exp(x)
	}
}

// widen32 puts 16 zero bits below each element: on a little-endian machine, interleaves zeros and src.
func widen32(dst []float32, src []kernels.BFloat16) {
	if !littleEndian {
		for i, x := range src {
			dst[i] = x.Float32()
		}
		return
	}
	for len(src) > 0 {
		n := min(len(src), len(zeros))
		halves := unsafe.Slice((*int16)(unsafe.Pointer(unsafe.SliceData(dst))), 2*n)
		i16.Interleave2(halves, zeros[:n], unsafe.Slice((*int16)(unsafe.Pointer(unsafe.SliceData(src))), n))
		dst, src = dst[n:], src[n:]
	}
}

var (
	zeros        [1024]int16
	littleEndian = *(*byte)(unsafe.Pointer(&[]uint16{1}[0])) == 1
)

func widen64(dst []float64, src []kernels.BFloat16) {
	for i, x := range src {
		dst[i] = float64(x.Float32())
	}
}

// pieces is how many elements are summed in E before the sum moves to an accumulator.
const pieces = 512

// total is a sum of many elements: f of pieces, added up without loss.
func total[E float](a []E, f func([]E) E) float64 {
	var sum accumulator
	for len(a) > pieces {
		sum.add(float64(f(a[:pieces])))
		a = a[pieces:]
	}
	if len(a) > 0 {
		sum.add(float64(f(a)))
	}
	return sum.value()
}

// accumulator is a sum that keeps what each addition rounds off (Neumaier, ZAMM 54, 1974).
type accumulator struct{ sum, lost float64 }

func (a *accumulator) add(x float64) {
	sum := a.sum + x
	if math.Abs(a.sum) >= math.Abs(x) {
		a.lost += a.sum - sum + x
	} else {
		a.lost += x - sum + a.sum
	}
	a.sum = sum
}

// value is the sum; when it is not finite, what was lost is not a number.
func (a *accumulator) value() float64 {
	if a.sum-a.sum != 0 {
		return a.sum
	}
	return a.sum + a.lost
}

// finite reports whether a holds neither a NaN nor an infinity; a sum that overflows also says no.
func (w *worker[E]) finite(a []E) bool {
	s := float64(w.vec.sum(a))
	return s-s == 0
}

// exp is dst = exp(a), elementwise.
func (w *worker[E]) exp(dst, a []E) { w.vec.exp(dst, a, w.expTmp) }

// simdName says which instructions the loops use.
func simdName() string {
	for _, s := range []struct {
		has  bool
		name string
	}{{cpu.HasAVX512VL(), "AVX-512"}, {cpu.HasAVX2(), "AVX2"}, {cpu.HasAVX(), "AVX"}, {cpu.HasNEON(), "NEON"}} {
		if s.has {
			return "Go SIMD (" + s.name + ")"
		}
	}
	return "Go"
}
