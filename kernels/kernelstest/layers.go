package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"loratrain/kernels"
)

// sizes are numbers of rows and columns that are multiples of nothing. The last is for several threads.
var sizes = [][2]int{{1, 1}, {1, 3}, {3, 1}, {7, 33}, {3, 65}, {65, 257}}

func testEmbed(t *testing.T, b kernels.Backend) {
	for _, typ := range frozen {
		for _, width := range []int{1, 3, 65, 257, 2061} {
			t.Run(fmt.Sprintf("%v width %d", typ, width), func(t *testing.T) {
				c := newCall(t, b)
				const vocabulary, tokens = 7, 65
				ids := append(c.integers(tokens-4, vocabulary), vocabulary-1, 0, 0, vocabulary-1)
				table := c.weight("table", typ, outliers.make(c.rand, vocabulary*width), vocabulary, width)
				y, id := c.out("y", b.Float(), tokens, width), c.ids("ids", ids, tokens)
				c.run(func() { b.Embed(y.tensor(), table.tensor(), id.tensor()) })
				c.want(y, embed(table.matrix(), ids))
			})
		}
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		table, id := c.weight("table", b.Float(), c.normal(21), 7, 3), c.ids("ids", make([]int32, 5), 5)
		y := c.out("y", b.Float(), 5, 3)
		c.contradict(func() { b.Embed(y.tensor(), table.tensor(), id.tensor()) })
	})
}

// normCase is a norm of rows, or of pieces of rows: heads.
type normCase struct {
	name               string
	rows, cols, pieces int
	spread             spread
	typ                kernels.Type
	eps                float64
	nan                int // the element of x that is NaN; -1: none
	plus               addend
}

// addend is what kind of numbers an operand plus is; the zero addend is none.
type addend struct{ *spread }

// operand is the operand of a call that is to be added to a result, nil for none.
func (a addend) operand(c *call, shape ...int) *operand {
	if a.spread == nil {
		return nil
	}
	return c.in("plus", c.b.Float(), a.make(c.rand, kernels.Len(shape...)), shape...)
}

// name is a case's name with the addend's.
func (a addend) name(of string) string { return fmt.Sprintf("%s, plus %v", of, a.spread) }

// withAddends is cases and, behind them, each once more with an addend that give puts into it.
func withAddends[C any](cases []C, give func(n *C, plus addend)) []C {
	for i, n := range cases {
		give(&n, addend{&[]spread{outliers, normal}[i%2]})
		cases = append(cases, n)
	}
	return cases
}

func normCases(b kernels.Backend) []normCase {
	var cases []normCase
	for _, s := range spreads {
		for _, size := range sizes {
			cases = append(cases, normCase{fmt.Sprintf("%v %v", s, size), size[0], size[1], 1, s, b.Float(), 1e-5, -1, addend{}})
		}
	}
	for _, typ := range frozen {
		cases = append(
			cases,
			normCase{fmt.Sprintf("weight %v", typ), 5, 33, 1, normal, typ, 1e-6, -1, addend{}},
			normCase{fmt.Sprintf("long rows, weight %v", typ), 3, 1033, 1, normal, typ, 1e-6, -1, addend{}},
		)
	}
	// Rows that a warp, a block's registers, and neither can hold.
	for _, n := range [][2]int{{5, 1000}, {3, 2048}, {3, 2051}, {1, 16384}, {2, 16391}} {
		cases = append(cases, normCase{fmt.Sprintf("long rows %v", n), n[0], n[1], 1, outliers, b.Float(), 1e-5, -1, addend{}})
	}
	return append(
		cases,
		normCase{"heads of 16", 5, 16, 3, normal, b.Float(), 1e-6, -1, addend{}},
		normCase{"heads of 64", 65, 64, 9, normal, b.Float(), 1e-5, -1, addend{}},
		normCase{"heads of 128", 3, 128, 5, outliers, b.Float(), 1e-6, -1, addend{}},
		normCase{"heads of 3", 7, 3, 5, outliers, b.Float(), 1e-6, -1, addend{}},
		normCase{"large eps", 3, 7, 1, normal, b.Float(), 10, -1, addend{}},
		normCase{"NaN", 5, 33, 1, normal, b.Float(), 1e-5, 40, addend{}},
	)
}

// operands are x and w. Pieces are rows of their own in the reference.
func (n normCase) operands(c *call) (x, w *operand) {
	values := n.spread.make(c.rand, n.rows*n.pieces*n.cols)
	if n.nan >= 0 {
		values[n.nan] = math.NaN()
	}
	x = c.in("x", c.b.Float(), values, n.rows, n.pieces*n.cols)
	x.ref.rows, x.ref.cols = n.rows*n.pieces, n.cols
	return x, c.weight("w", n.typ, c.normal(n.cols), n.cols)
}

func testRMSNorm(t *testing.T, b kernels.Backend) {
	for _, n := range normCases(b) {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			x, w := n.operands(c)
			y := c.out("y", b.Float(), x.view.Shape...)
			c.run(func() { b.RMSNorm(y.tensor(), x.tensor(), w.tensor(), n.eps) })
			c.want(y, rmsNorm(x.matrix(), w.matrix(), n.eps))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, w := normCase{rows: 2, cols: 5, pieces: 1, spread: normal, typ: b.Float(), nan: -1}.operands(c)
		y := c.out("y", b.Float(), 2, 5)
		c.contradict(func() { b.RMSNorm(y.tensor(), x.tensor(), w.tensor(), 1e-5) })
	})
}

func testRMSNormGrad(t *testing.T, b kernels.Backend) {
	cases := withAddends(normCases(b), func(n *normCase, plus addend) { n.name, n.plus = plus.name(n.name), plus })
	for _, n := range cases {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			x, w := n.operands(c)
			dy := c.in("dy", b.Float(), c.normal(x.view.Len()), x.view.Shape...)
			dy.ref.rows, dy.ref.cols = x.ref.rows, x.ref.cols
			plus, dx := n.plus.operand(c, x.view.Shape...), c.out("dx", b.Float(), x.view.Shape...)
			if plus != nil {
				plus.ref.rows, plus.ref.cols = x.ref.rows, x.ref.cols
			}
			c.run(func() { b.RMSNormGrad(dx.tensor(), x.tensor(), w.tensor(), dy.tensor(), plus.tensor(), n.eps) })
			c.want(dx, rmsNormGrad(x.matrix(), w.matrix(), dy.matrix(), plus.matrix(), n.eps))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, w := normCase{rows: 2, cols: 5, pieces: 1, spread: normal, typ: b.Float(), nan: -1}.operands(c)
		dy, plus, dx := c.in("dy", b.Float(), c.normal(10), 2, 5), c.in("plus", b.Float(), c.normal(10), 2, 5), c.out("dx", b.Float(), 2, 5)
		c.contradict(func() { b.RMSNormGrad(dx.tensor(), x.tensor(), w.tensor(), dy.tensor(), plus.tensor(), 1e-5) })
	})
}

// linearCase is a product with a frozen weight.
type linearCase struct {
	name               string
	tokens, width, out int
	spread             spread
	typ                kernels.Type
	bias               bool
	nanX, nanW         int // elements that are NaN; -1: none
	plus               addend
}

func linearCases(b kernels.Backend) []linearCase {
	var cases []linearCase
	for _, s := range spreads {
		for _, n := range [][3]int{{1, 1, 1}, {1, 3, 7}, {3, 1, 33}, {7, 257, 1}, {1, 257, 65}, {33, 65, 7}, {65, 33, 129}} {
			cases = append(cases, linearCase{fmt.Sprintf("%v %v", s, n), n[0], n[1], n[2], s, b.Float(), n[0] != 7, -1, -1, addend{}})
		}
	}
	for _, typ := range frozen {
		cases = append(
			cases,
			linearCase{fmt.Sprintf("weight %v", typ), 17, 33, 65, normal, typ, false, -1, -1, addend{}},
			linearCase{fmt.Sprintf("weight %v with bias", typ), 1, 33, 65, normal, typ, true, -1, -1, addend{}},
		)
	}
	cases = append(
		cases,
		linearCase{"NaN in x", 7, 33, 17, normal, b.Float(), true, 40, -1, addend{}},
		linearCase{"NaN in w", 7, 33, 17, normal, b.Float(), true, -1, 40, addend{}},
		linearCase{"NaN in w of bf16", 1, 33, 17, normal, kernels.BF16, true, -1, 40, addend{}},
		linearCase{"larger than a block", 130, 131, 132, normal, b.Float(), false, -1, -1, addend{}},
		linearCase{"many tokens", 600, 9, 11, normal, b.Float(), false, -1, -1, addend{}},
		linearCase{"many outputs", 9, 11, 600, normal, b.Float(), true, -1, -1, addend{}},
	)
	return withAddends(cases, func(n *linearCase, plus addend) { n.name, n.plus = plus.name(n.name), plus })
}

func (n linearCase) weight(c *call) *operand {
	values := c.normal(n.out * n.width)
	if n.nanW >= 0 {
		values[n.nanW] = math.NaN()
	}
	return c.weight("w", n.typ, values, n.out, n.width)
}

func (n linearCase) activations(c *call, name string, cols int) *operand {
	values := n.spread.make(c.rand, n.tokens*cols)
	if n.nanX >= 0 {
		values[n.nanX] = math.NaN()
	}
	return c.in(name, c.b.Float(), values, n.tokens, cols)
}

func testLinear(t *testing.T, b kernels.Backend) {
	for _, n := range linearCases(b) {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			x, w, y := n.activations(c, "x", n.width), n.weight(c), c.out("y", b.Float(), n.tokens, n.out)
			var bias *operand
			if n.bias {
				bias = c.weight("bias", n.typ, c.normal(n.out), n.out)
			}
			plus := n.plus.operand(c, n.tokens, n.out)
			c.run(func() { b.Linear(y.tensor(), x.tensor(), w.tensor(), bias.tensor(), plus.tensor()) })
			c.want(y, linear(x.matrix(), w.matrix(), bias.matrix(), plus.matrix()))
		})
		if n.bias || n.plus.spread != nil || b.Param() == b.Float() {
			continue
		}
		t.Run(n.name+" in Param", func(t *testing.T) {
			c := newCall(t, b)
			x, w, y := n.activations(c, "x", n.width), n.weight(c), c.out("y", b.Param(), n.tokens, n.out)
			c.run(func() { b.Linear(y.tensor(), x.tensor(), w.tensor(), kernels.Tensor{}, kernels.Tensor{}) })
			c.want(y, linear(x.matrix(), w.matrix(), matrix{}, matrix{}))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, w, bias := c.in("x", b.Float(), c.normal(6), 2, 3), c.weight("w", b.Float(), c.normal(12), 4, 3), c.weight("bias", b.Float(), c.normal(4), 4)
		plus, y := c.in("plus", b.Float(), c.normal(8), 2, 4), c.out("y", b.Float(), 2, 4)
		c.contradict(func() { b.Linear(y.tensor(), x.tensor(), w.tensor(), bias.tensor(), plus.tensor()) })
	})
}

func testLinearGrad(t *testing.T, b kernels.Backend) {
	for _, n := range linearCases(b) {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			dy, w, dx := n.activations(c, "dy", n.out), n.weight(c), c.out("dx", b.Float(), n.tokens, n.width)
			plus := n.plus.operand(c, n.tokens, n.width)
			c.run(func() { b.LinearGrad(dx.tensor(), dy.tensor(), w.tensor(), plus.tensor()) })
			c.want(dx, linearGrad(dy.matrix(), w.matrix(), plus.matrix()))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		dy, w, dx := c.in("dy", b.Float(), c.normal(8), 2, 4), c.weight("w", b.Float(), c.normal(12), 4, 3), c.out("dx", b.Float(), 2, 3)
		plus := c.in("plus", b.Float(), c.normal(6), 2, 3)
		c.contradict(func() { b.LinearGrad(dx.tensor(), dy.tensor(), w.tensor(), plus.tensor()) })
	})
}
