package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"loratrain/kernels"
)

// awkward is numbers at which rounding to float32 or bfloat16 goes wrong if it can, all of them positive.
var awkward = []float64{
	0, 1, math.Pi, math.Inf(1),
	// Ties: to even, down and up; and what lies beside them by so little that rounding to float32 first makes a tie of it.
	1 + 0x1p-24, 1 + 0x3p-24, 1 + 0x1p-8, 1 + 0x3p-8, 0x1p-8 + 0x3p-16,
	1 + 0x1p-24 + 0x1p-52, 1 + 0x3p-24 - 0x1p-52, 1 + 0x1p-8 + 0x1p-50, 1 + 0x3p-8 - 0x1p-50, 1 + 0x1p-8 + 0x1p-23, 1 + 0x3p-8 - 0x1p-23,
	// The carry goes up to the exponent.
	2 - 0x1p-8, 2 - 0x1p-9, 2 - 0x1p-24, 2 - 0x1p-25, 2 - 0x1p-52,
	// The largest of bfloat16 and of float32, half a step more, which is a tie with infinity, and a little less than that.
	0x1.fep127, 0x1.ffp127, 0x1.fefffep127, 0x1.fefffffffp127, 0x1.ff0001p127,
	math.MaxFloat32, 0x1.ffffffp127, 0x1.fffffefffffffp127, 0x1p128, 1e39, 1e300, math.MaxFloat64,
	// The smallest normal number, and the smallest of all and half of it, which is a tie with zero.
	0x1p-126, 0x1.fffffcp-127, 0x1.fffffep-127, 0x1.ffp-127, 0x1.fcp-127, 0x1.fdp-127, 0x1.5555p-130,
	0x1p-149, 0x1p-150, 0x1.8p-149, 0x1.4p-149, 0x1.0000000000001p-150, 0x1.fffffffffffffp-151,
	0x1p-133, 0x1p-134, 0x1.8p-133, 0x1.000002p-134, 0x1.00000000001p-134, 0x1.fffffep-135,
	1e-300, 0x1p-1022, math.SmallestNonzeroFloat64,
}

// spoilt is the bits of a NaN whose payload is lost if its upper half alone is taken: an infinity is left.
var spoilt = map[kernels.Type]kernels.Tensor{
	kernels.F32:  kernels.FromSlice([]float32{math.Float32frombits(0x7f800001)}, 1),
	kernels.F64:  kernels.FromSlice([]float64{math.Float64frombits(0x7ff0000000000001)}, 1),
	kernels.BF16: kernels.FromSlice([]kernels.BFloat16{0x7f81}, 1),
}

func testRound(t *testing.T, b kernels.Backend) {
	for _, from := range frozen {
		for _, to := range frozen {
			for _, n := range []int{1, 3, 8, 257, 4099} {
				t.Run(fmt.Sprintf("%d %v to %v", n, from, to), func(t *testing.T) {
					c := newCall(t, b)
					values := c.awkward(n)
					dst, src := c.out("dst", to, n), c.in("src", from, values, n)
					checkRound(c, dst, src)
				})
			}
			t.Run(fmt.Sprintf("%v to %v at other places", from, to), func(t *testing.T) {
				c := newCall(t, b)
				src, dst := c.in("src", from, c.awkward(301), 301), c.out("dst", to, 43, 7)
				checkRound(c, dst, src)
			})
		}
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		src, dst := c.in("src", kernels.F32, c.normal(6), 6), c.out("dst", kernels.BF16, 6)
		op := func() { b.Round(dst.tensor(), src.tensor()) }
		for _, o := range []*operand{src, dst} {
			right := o.view
			o.view = right.View(0, 5)
			c.mustPanic(o, op)
			o.view = newDevice(t, b).put(kernels.I32, make([]float64, 6), 6)
			c.mustPanic(o, op)
			o.view = kernels.Tensor{}
			c.mustPanic(o, op)
			o.view = right
		}
	})
}

// awkward is the numbers of that name with both signs, then others of any size, in any order.
func (c *call) awkward(n int) []float64 {
	x := make([]float64, max(n, 2*len(awkward)))
	for i := range x {
		x[i] = math.Ldexp(c.rand.NormFloat64(), c.rand.IntN(290)-155)
	}
	for i, v := range awkward {
		x[2*i], x[2*i+1] = v, -v
	}
	c.rand.Shuffle(len(x), func(i, j int) { x[i], x[j] = x[j], x[i] })
	return x[:n]
}

// checkRound runs Round and compares bits. The first element of src, and one in its middle, become NaN.
func checkRound(c *call, dst, src *operand) {
	c.t.Helper()
	size, n := src.view.Type.Size(), src.view.Len()
	for _, at := range []int{0, n / 2} {
		copy(hostBytes(src.before)[(src.guard+at)*size:], hostBytes(spoilt[src.view.Type]))
	}
	c.b.Write(src.whole, src.before)
	c.run(func() { c.b.Round(dst.tensor(), src.tensor()) })
	values := decode(src.before)[src.guard : src.guard+n]
	for i, got := range dst.got() {
		want := nearestTo(values[i], dst.view.Type)
		if !(math.IsNaN(got) && math.IsNaN(want)) && math.Float64bits(got) != math.Float64bits(want) {
			c.t.Errorf("%v becomes dst%v = %v, want %v", values[i], dst.index(i), got, want)
		}
	}
}
