package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"loratrain/kernels"
)

func testTranspose(t *testing.T, b kernels.Backend) {
	for _, typ := range frozen {
		for _, n := range [][2]int{{1, 1}, {1, 2}, {1, 70}, {70, 1}, {7, 3}, {31, 33}, {32, 32}, {32, 96}, {33, 65}, {64, 576}, {576, 64}, {5, 2063}, {2063, 2}} {
			t.Run(fmt.Sprintf("%v of %dx%d", typ, n[0], n[1]), func(t *testing.T) {
				c := newCall(t, b)
				x, y := c.in("x", typ, c.bitwise(n[0]*n[1]), n[0], n[1]), c.out("y", typ, n[1], n[0])
				checkTranspose(c, y, x)
			})
			t.Run(fmt.Sprintf("%v of %dx%d at round places", typ, n[0], n[1]), func(t *testing.T) {
				c := newCall(t, b)
				c.aligned = true
				x, y := c.in("x", typ, c.bitwise(n[0]*n[1]), n[0], n[1]), c.out("y", typ, n[1], n[0])
				checkTranspose(c, y, x)
			})
		}
	}
	t.Run("worked", func(t *testing.T) {
		c := newCall(t, b)
		x, y := c.in("x", b.Float(), []float64{1, 2, 3, 4, 5, 6}, 2, 3), c.out("y", b.Float(), 3, 2)
		c.run(func() { b.Transpose(y.tensor(), x.tensor()) })
		c.wantValues(y, 1, 4, 2, 5, 3, 6)
	})
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, y := c.in("x", kernels.F32, c.normal(6), 2, 3), c.out("y", kernels.F32, 3, 2)
		op := func() { b.Transpose(y.tensor(), x.tensor()) }
		c.contradict(op)
		d := newDevice(t, b)
		for _, o := range []*operand{x, y} {
			right := o.view
			for _, wrong := range []kernels.Tensor{
				{},
				right.Reshape(6), right.Reshape(1, right.Shape[0], right.Shape[1]), right.Reshape(right.Shape[1], right.Shape[0]),
				right.View(0, right.Shape[0]-1, right.Shape[1]), d.put(kernels.BF16, make([]float64, 6), right.Shape...),
			} {
				o.view = wrong
				c.mustPanic(o, op)
			}
			o.view = right
		}
		x.view, y.view = d.put(kernels.I32, make([]float64, 6), 2, 3), d.put(kernels.I32, make([]float64, 6), 3, 2)
		c.mustPanic(x, op)
	})
}

// bitwise is numbers whose bits are lost if they are computed with, of both signs, then outliers, in any order.
func (c *call) bitwise(n int) []float64 {
	x := outliers.make(c.rand, n)
	for i, v := range []float64{math.Copysign(0, -1), math.Inf(1), math.Inf(-1), 0x1p-133, -0x1p-149, math.SmallestNonzeroFloat64, math.MaxFloat64} {
		if at := 3 * i; at < n {
			x[at] = v
		}
	}
	c.rand.Shuffle(n, func(i, j int) { x[i], x[j] = x[j], x[i] })
	return x
}

// checkTranspose runs Transpose and compares bits. The first element of x, the last and one in its middle become NaN, whose bits count too.
func checkTranspose(c *call, y, x *operand) {
	c.t.Helper()
	size, n := x.view.Type.Size(), x.view.Len()
	for _, at := range []int{0, n / 2, n - 1} {
		copy(hostBytes(x.before)[(x.guard+at)*size:], hostBytes(spoilt[x.view.Type]))
	}
	c.b.Write(x.whole, x.before)
	c.run(func() { c.b.Transpose(y.tensor(), x.tensor()) })
	want := transposed(hostBytes(x.before)[x.guard*size:(x.guard+n)*size], size, x.view.Shape[0])
	got := hostBytes(y.after)[y.guard*size : (y.guard+n)*size]
	if at := differs(got, want); at >= 0 {
		i := at / size * size
		c.t.Errorf("y%v has the bytes %x, want %x", y.index(at/size), got[i:i+size], want[i:i+size])
	}
}
