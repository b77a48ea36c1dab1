package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"loratrain/kernels"
)

// rotaryTable is the cosines and sines of positions, as the model makes them.
func rotaryTable(positions, d int) []float64 {
	table := make([]float64, positions*d)
	for p := range positions {
		for i := range d / 2 {
			n, c := math.Sincos(float64(p) * math.Pow(10000, -2*float64(i)/float64(d)))
			table[p*d+i], table[p*d+d/2+i] = c, n
		}
	}
	return table
}

func testRotary(t *testing.T, b kernels.Backend) {
	const positions = 11
	for _, n := range []struct{ tokens, heads, d int }{{1, 1, 2}, {7, 3, 8}, {5, 2, 12}, {9, 1, 64}, {3, 4, 80}, {65, 3, 48}, {3, 41, 2}, {2, 33, 128}} {
		for _, backwards := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d heads of %d backwards %v", n.heads, n.d, backwards), func(t *testing.T) {
				c := newCall(t, b)
				// Positions in any order, with the first and the last.
				pos := c.integers(n.tokens, positions)
				pos[0], pos[len(pos)/2] = 0, positions-1
				x := c.in("x", b.Float(), outliers.make(c.rand, n.tokens*n.heads*n.d), n.tokens, n.heads*n.d)
				table, p := c.in("table", b.Param(), rotaryTable(positions, n.d), positions, n.d), c.ids("pos", pos, n.tokens)
				y := c.out("y", b.Float(), n.tokens, n.heads*n.d)
				c.run(func() { b.Rotary(y.tensor(), x.tensor(), table.tensor(), p.tensor(), backwards) })
				c.want(y, rotary(x.matrix(), table.matrix(), pos, backwards))
			})
		}
	}
	t.Run("a quarter turn", func(t *testing.T) {
		c := newCall(t, b)
		x, table, p := c.in("x", b.Float(), []float64{1, 2, 3, 4}, 1, 4), c.in("table", b.Param(), []float64{9, 9, 9, 9, 0, 1, 1, 0}, 2, 4), c.ids("pos", []int32{1}, 1)
		y := c.out("y", b.Float(), 1, 4)
		c.run(func() { b.Rotary(y.tensor(), x.tensor(), table.tensor(), p.tensor(), false) })
		c.wantValues(y, -3, 2, 1, 4)
	})
	t.Run("there and back", func(t *testing.T) {
		c := newCall(t, b)
		x, table, p := c.in("x", b.Float(), c.normal(48), 3, 16), c.in("table", b.Param(), rotaryTable(positions, 8), positions, 8), c.ids("pos", []int32{10, 0, 7}, 3)
		y, back := c.out("y", b.Float(), 3, 16), c.out("back", b.Float(), 3, 16)
		c.run(func() {
			b.Rotary(y.tensor(), x.tensor(), table.tensor(), p.tensor(), false)
			b.Rotary(back.tensor(), y.tensor(), table.tensor(), p.tensor(), true)
		})
		c.want(back, fill(3, 16, func(i, j int) number {
			v := x.matrix().at(i, j).v
			return number{v: v, acc: 16, sto: 4} // the table's own rounding, and y's
		}))
	})
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, table, p := c.in("x", b.Float(), c.normal(48), 3, 16), c.in("table", b.Param(), c.normal(40), 5, 8), c.ids("pos", []int32{1, 0, 2}, 3)
		y := c.out("y", b.Float(), 3, 16)
		c.contradict(func() { b.Rotary(y.tensor(), x.tensor(), table.tensor(), p.tensor(), false) })
	})
}

// steep is numbers at which a sigmoid must not overflow, among ordinary ones.
func (c *call) steep(n int) []float64 {
	x := c.normal(n)
	for i, v := range []float64{0, 1e4, -1e4, 88, -88, 104, -104, 700, -700, 30, -30} {
		if 2*i < n {
			x[2*i] = v
		}
	}
	return x
}

func testSwiGLU(t *testing.T, b kernels.Backend) {
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCall(t, b)
			g, u := c.in("g", b.Float(), c.steep(n[0]*n[1]), n[0], n[1]), c.in("u", b.Float(), c.normal(n[0]*n[1]), n[0], n[1])
			y := c.out("y", b.Float(), n[0], n[1])
			c.run(func() { b.SwiGLU(y.tensor(), g.tensor(), u.tensor()) })
			c.want(y, swiGLU(g.matrix(), u.matrix()))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		g, u, y := c.in("g", b.Float(), c.normal(6), 2, 3), c.in("u", b.Float(), c.normal(6), 2, 3), c.out("y", b.Float(), 2, 3)
		c.contradict(func() { b.SwiGLU(y.tensor(), g.tensor(), u.tensor()) })
	})
}

func testSwiGLUGrad(t *testing.T, b kernels.Backend) {
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCall(t, b)
			g, u := c.in("g", b.Float(), c.steep(n[0]*n[1]), n[0], n[1]), c.in("u", b.Float(), c.normal(n[0]*n[1]), n[0], n[1])
			dy := c.in("dy", b.Float(), c.normal(n[0]*n[1]), n[0], n[1])
			dg, du := c.out("dg", b.Float(), n[0], n[1]), c.out("du", b.Float(), n[0], n[1])
			c.run(func() { b.SwiGLUGrad(dg.tensor(), du.tensor(), g.tensor(), u.tensor(), dy.tensor()) })
			wantG, wantU := swiGLUGrad(g.matrix(), u.matrix(), dy.matrix())
			c.want(dg, wantG)
			c.want(du, wantU)
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		g, u, dy := c.in("g", b.Float(), c.normal(6), 2, 3), c.in("u", b.Float(), c.normal(6), 2, 3), c.in("dy", b.Float(), c.normal(6), 2, 3)
		dg, du := c.out("dg", b.Float(), 2, 3), c.out("du", b.Float(), 2, 3)
		c.contradict(func() { b.SwiGLUGrad(dg.tensor(), du.tensor(), g.tensor(), u.tensor(), dy.tensor()) })
	})
}

func testSum(t *testing.T, b kernels.Backend) {
	for count := 1; count <= 5; count++ {
		for _, n := range sizes {
			t.Run(fmt.Sprintf("%d of %v", count, n), func(t *testing.T) {
				c := newCall(t, b)
				y := c.out("y", b.Float(), n[0], n[1])
				var xs []*operand
				var refs []matrix
				for k := range count {
					xs = append(xs, c.in(fmt.Sprintf("xs[%d]", k), b.Float(), spreads[k%2].make(c.rand, n[0]*n[1]), n[0], n[1]))
					refs = append(refs, xs[k].matrix())
				}
				c.run(func() { b.Sum(y.tensor(), tensors(xs)...) })
				c.want(y, total(refs))
			})
		}
	}
	t.Run("the same twice", func(t *testing.T) {
		c := newCall(t, b)
		x, y := c.in("x", b.Float(), []float64{1, -2, 0.5}, 3), c.out("y", b.Float(), 3)
		c.run(func() { b.Sum(y.tensor(), x.tensor(), x.tensor()) })
		c.wantValues(y, 2, -4, 1)
	})
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, z, y := c.in("x", b.Float(), c.normal(6), 2, 3), c.in("z", b.Float(), c.normal(6), 2, 3), c.out("y", b.Float(), 2, 3)
		c.contradict(func() { b.Sum(y.tensor(), x.tensor(), z.tensor()) })
	})
}

func tensors(operands []*operand) []kernels.Tensor {
	var ts []kernels.Tensor
	for _, o := range operands {
		ts = append(ts, o.tensor())
	}
	return ts
}

func testScale(t *testing.T, b kernels.Backend) {
	for _, factor := range []float64{0, 1, -0.3, 1e4} {
		for _, n := range sizes {
			t.Run(fmt.Sprintf("%v of %v", factor, n), func(t *testing.T) {
				c := newCall(t, b)
				x, f := c.in("x", b.Float(), outliers.make(c.rand, n[0]*n[1]), n[0], n[1]), c.in("factor", b.Param(), []float64{factor}, 1)
				y := c.out("y", b.Float(), n[0], n[1])
				c.run(func() { b.Scale(y.tensor(), x.tensor(), f.tensor()) })
				c.want(y, scale(x.matrix(), f.matrix().at(0, 0)))
			})
			t.Run(fmt.Sprintf("%v of %v in place", factor, n), func(t *testing.T) {
				c := newCall(t, b)
				x, f := c.adds("x", b.Float(), outliers.make(c.rand, n[0]*n[1]), n[0], n[1]), c.in("factor", b.Param(), []float64{factor}, 1)
				c.run(func() { b.Scale(x.tensor(), x.tensor(), f.tensor()) })
				c.want(x, scale(x.matrix(), f.matrix().at(0, 0)))
			})
		}
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, f, y := c.in("x", b.Float(), c.normal(6), 2, 3), c.in("factor", b.Param(), []float64{2}, 1), c.out("y", b.Float(), 2, 3)
		c.contradict(func() { b.Scale(y.tensor(), x.tensor(), f.tensor()) })
	})
}

func testDropout(t *testing.T, b kernels.Backend) {
	for _, n := range []struct {
		rows, cols, site int
		key              []int32
		rate             float64
	}{
		{1, 1, 0, []int32{0, 0}, 0.5},
		{7, 33, 0, []int32{1, 2}, 0.05},
		{7, 33, 223, []int32{-1, 1 << 30}, 0.5},
		{33, 65, 3, []int32{42, 7}, 0.9},
		{33, 65, 3, []int32{42, 8}, 0},
		{33, 257, 1 << 20, []int32{math.MinInt32, -5}, 1.0 / 3},
	} {
		t.Run(fmt.Sprintf("%v of %dx%d at %d, key %v", n.rate, n.rows, n.cols, n.site, n.key), func(t *testing.T) {
			c := newCall(t, b)
			values := outliers.make(c.rand, n.rows*n.cols)
			for i := range values {
				if dropped(n.key, n.site, i, n.rate) && i%3 == 0 {
					values[i] = math.NaN()
				}
			}
			x, key := c.in("x", b.Float(), values, n.rows, n.cols), c.ids("key", n.key, 2)
			y := c.out("y", b.Float(), n.rows, n.cols)
			c.run(func() { b.Dropout(y.tensor(), x.tensor(), key.tensor(), n.site, n.rate) })
			c.want(y, dropout(x.matrix(), n.key, n.site, n.rate))
			kept := 0
			for i, v := range y.got() {
				if (v == 0) != dropped(n.key, n.site, i, n.rate) && values[i] != 0 {
					t.Fatalf("y%v is %v: the mask is not the contract's", y.index(i), v)
				}
				if v != 0 {
					kept++
				}
			}
			mean, all := float64(len(values))*(1-n.rate), float64(len(values))
			if limit := 5*math.Sqrt(all*n.rate*(1-n.rate)) + 1; math.Abs(float64(kept)-mean) > limit {
				t.Errorf("%d of %v elements are kept, want %.0f ± %.0f", kept, all, mean, limit)
			}
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, key, y := c.in("x", b.Float(), c.normal(6), 2, 3), c.ids("key", []int32{1, 2}, 2), c.out("y", b.Float(), 2, 3)
		c.contradict(func() { b.Dropout(y.tensor(), x.tensor(), key.tensor(), 0, 0.5) })
	})
}
