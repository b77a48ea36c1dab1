package cpu

import (
	"math"
	"unsafe"

	"github.com/tphakala/simd/f32"
)

// expBlock elements are taken through the steps of exp32 at a time, in expTemps temporaries: all stays in the
// first-level cache.
const (
	expBlock = 256
	expTemps = 3
)

// The constants of expf in Cephes (S. L. Moshier, 1989): ln 2 in two parts, of which the first has few bits so
// that products with small integers are exact, and a polynomial for (exp(r) - 1 - r)/r² on |r| ≤ ln(2)/2.
const (
	ln2High = 0.693359375
	ln2Low  = -2.12194440e-4
)

var (
	expFirst = [2]float32{1.9875691500e-4, 1.3981999507e-3}
	expRest  = [...]float32{8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1, 1}
	expRows  = rowsOf(expRest[:])
)

// rowsOf repeats each constant over a block, as fused multiply-adds of slices want it.
func rowsOf(constants []float32) [][]float32 {
	rows := make([][]float32, len(constants))
	for i, c := range constants {
		rows[i] = make([]float32, expBlock)
		for j := range rows[i] {
			rows[i][j] = c
		}
	}
	return rows
}

// exp32 is dst = exp(a): 2ⁿ·exp(r) with n = round(a/ln 2), r = a - n·ln 2. Beyond 88.37 the result is +Inf, below
// -87.68 zero. The library's own Exp is 50 times less accurate and turns NaN into a number.
func exp32(dst, a, tmp []float32) {
	for len(a) > 0 {
		n := min(len(a), expBlock)
		if s := f32.Sum(a[:n]); s-s == 0 {
			expStep(dst[:n], a[:n], tmp)
		} else {
			for i, x := range a[:n] {
				dst[i] = float32(math.Exp(float64(x)))
			}
		}
		dst, a = dst[n:], a[n:]
	}
}

// expStep is exp32 for a block of finite numbers.
func expStep(dst, a, tmp []float32) {
	size := len(a)
	r, n, p := tmp[:size], tmp[expBlock:expBlock+size], tmp[2*expBlock:2*expBlock+size]
	f32.Clamp(r, a, -105, 90)
	f32.Scale(n, r, math.Log2E)
	f32.Round(n, n)
	f32.AddScaled(r, -ln2High, n)
	f32.AddScaled(r, -ln2Low, n)
	f32.Affine(p, r, expFirst[0], expFirst[1])
	for _, row := range expRows {
		f32.FMA(p, p, r, row[:size])
	}
	// The bits of 2ⁿ are (n + 127)·2²³.
	bits := unsafe.Slice((*int32)(unsafe.Pointer(unsafe.SliceData(r))), size)
	const one = 1 << 23
	f32.Float32ToInt32ScaleClamp(bits, n, one, 127*one, 0, 255*one)
	f32.Mul(dst, p, r)
}
