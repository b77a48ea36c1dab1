package kernelstest

import (
	"fmt"
	"slices"
	"testing"

	"loratrain/kernels"
)

// switchCase is a linear layer with its experts.
type switchCase struct {
	name                  string
	tokens, width, out    int
	experts, rank, shared int
	scale                 float64
	spread                spread
	typ                   kernels.Type
	bias                  bool
	dropped               bool // z is not x
	one                   int  // the expert that all tokens use with gate 1; -1: as it comes
	rounded               bool // A and B are of type Float
	plus                  addend
}

func switchCases(b kernels.Backend) []switchCase {
	f := b.Float()
	cases := []switchCase{
		{"smallest", 1, 1, 1, 2, 1, 0, 2, normal, f, false, false, -1, false, addend{}},
		{"one token", 1, 33, 17, 8, 4, 0, 2, normal, f, true, false, -1, false, addend{}},
		{"odd sizes", 7, 33, 65, 3, 5, 0, 0.5, normal, f, false, false, -1, false, addend{}},
		{"shared columns", 7, 33, 65, 4, 3, 5, 2, normal, f, true, false, -1, false, addend{}},
		{"one shared column", 5, 9, 3, 2, 7, 1, 2, normal, f, false, true, -1, false, addend{}},
		{"dropout", 9, 33, 17, 4, 4, 2, 2, normal, f, false, true, -1, false, addend{}},
		{"plain LoRA", 7, 33, 17, 0, 8, 8, 2, normal, f, true, false, -1, false, addend{}},
		{"plain LoRA of no rank", 7, 33, 17, 0, 0, 3, 2, normal, f, false, true, -1, false, addend{}},
		{"one expert", 7, 17, 9, 1, 3, 0, 2, normal, f, false, false, 0, false, addend{}},
		{"all tokens on one expert", 33, 17, 9, 4, 3, 0, 2, normal, f, false, false, 2, false, addend{}},
		{"outliers", 33, 65, 33, 8, 8, 8, 2, outliers, f, true, true, -1, false, addend{}},
		{"zeros", 3, 65, 33, 4, 4, 4, 2, zeros, f, true, false, -1, false, addend{}},
		{"more columns than width", 5, 9, 7, 8, 5, 3, 2, normal, f, false, false, -1, false, addend{}},
		{"many tokens", 257, 9, 7, 8, 4, 1, 2, normal, f, false, false, -1, false, addend{}},
		{"wide", 3, 257, 129, 4, 8, 0, -1.5, normal, f, false, false, -1, false, addend{}},
		{"weight f32", 7, 33, 17, 4, 4, 0, 2, normal, kernels.F32, true, false, -1, false, addend{}},
		{"weight bf16", 7, 33, 17, 4, 4, 0, 2, normal, kernels.BF16, true, true, -1, false, addend{}},
		{"weight f64", 7, 33, 17, 4, 4, 0, 2, normal, kernels.F64, true, false, -1, false, addend{}},
		{"no scale", 5, 9, 7, 4, 2, 1, 0, normal, f, false, false, -1, false, addend{}},
	}
	if f == b.Param() {
		return cases
	}
	for _, n := range slices.Clone(cases) {
		n.name, n.rounded = fmt.Sprintf("%s, adapter of %v", n.name, f), true
		cases = append(cases, n)
	}
	return cases
}

func (n switchCase) cols() int { return n.experts*n.rank + n.shared }

// switchCasesPlus is switchCases for the operations that have an operand plus: without it, and with it.
func switchCasesPlus(b kernels.Backend) []switchCase {
	return withAddends(switchCases(b), func(n *switchCase, plus addend) { n.name, n.plus = plus.name(n.name), plus })
}

// adapter is the switch of a case for the backend, and for the reference.
type adapter struct {
	a, b, gates *operand
	n           switchCase
}

// bank is the type of A and B.
func (n switchCase) bank(b kernels.Backend) kernels.Type {
	if n.rounded {
		return b.Float()
	}
	return b.Param()
}

func (n switchCase) adapter(c *call) adapter {
	s := adapter{n: n}
	s.a = c.in("A", n.bank(c.b), c.normal(n.width*n.cols()), n.width, n.cols())
	s.b = c.in("B", n.bank(c.b), c.normal(n.cols()*n.out), n.cols(), n.out)
	if n.experts > 0 {
		s.gates = c.in("Gates", c.b.Param(), c.gates(n.tokens, n.experts, n.one), n.tokens, n.experts)
	}
	return s
}

func (s adapter) kernel() kernels.Switch {
	return kernels.Switch{A: s.a.tensor(), B: s.b.tensor(), Gates: s.gates.tensor(), Rank: s.n.rank, Scale: s.n.scale}
}

func (s adapter) bank() bank {
	return bank{s.a.matrix(), s.b.matrix(), s.gates.matrix(), s.n.rank, s.n.scale}
}

func (n switchCase) activations(c *call, name string, cols int) *operand {
	return c.in(name, c.b.Float(), n.spread.make(c.rand, n.tokens*cols), n.tokens, cols)
}

// eachSwitch does test for all cases, then for contradictions on a case that has everything.
func eachSwitch(t *testing.T, b kernels.Backend, cases []switchCase, test func(c *call, n switchCase) (op, check func())) {
	for _, n := range cases {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			op, check := test(c, n)
			c.run(op)
			check()
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		op, _ := test(c, switchCase{"", 3, 5, 7, 2, 2, 2, 2, normal, b.Float(), true, true, -1, false, addend{&normal}})
		c.contradict(op, "Gates") // fewer experts are more shared columns
	})
}

func testSwitchLinear(t *testing.T, b kernels.Backend) {
	eachSwitch(t, b, switchCasesPlus(b), func(c *call, n switchCase) (op, check func()) {
		x, s := n.activations(c, "x", n.width), n.adapter(c)
		z := x
		if n.dropped {
			z = n.activations(c, "z", n.width)
		}
		w := c.weight("w", n.typ, c.normal(n.out*n.width), n.out, n.width)
		var bias *operand
		if n.bias {
			bias = c.weight("bias", n.typ, c.normal(n.out), n.out)
		}
		plus := n.plus.operand(c, n.tokens, n.out)
		y, u := c.out("y", b.Float(), n.tokens, n.out), c.out("u", b.Float(), n.tokens, n.cols())
		op = func() {
			b.SwitchLinear(y.tensor(), u.tensor(), x.tensor(), z.tensor(), w.tensor(), bias.tensor(), plus.tensor(), s.kernel())
		}
		return op, func() {
			wantY, wantU := switchLinear(x.matrix(), z.matrix(), w.matrix(), bias.matrix(), plus.matrix(), s.bank())
			c.want(u, wantU)
			c.want(y, wantY)
		}
	})
	t.Run("A and B of different types", func(t *testing.T) { testMixedBank(t, b) })
}

// testMixedBank asks for a panic if A and B are of different types.
func testMixedBank(t *testing.T, b kernels.Backend) {
	if b.Float() == b.Param() {
		t.Skipf("Param is %v as well", b.Float())
	}
	c := newCall(t, b)
	n := switchCase{"", 3, 5, 7, 2, 2, 2, 2, normal, b.Float(), false, false, -1, false, addend{}}
	s, x, w := n.adapter(c), n.activations(c, "x", n.width), c.weight("w", n.typ, c.normal(n.out*n.width), n.out, n.width)
	y, u := c.out("y", b.Float(), n.tokens, n.out), c.out("u", b.Float(), n.tokens, n.cols())
	s.b = c.in("B", b.Float(), c.normal(n.cols()*n.out), n.cols(), n.out)
	c.mustPanic(s.b, func() {
		b.SwitchLinear(y.tensor(), u.tensor(), x.tensor(), x.tensor(), w.tensor(), kernels.Tensor{}, kernels.Tensor{}, s.kernel())
	})
}

func testSwitchGradHidden(t *testing.T, b kernels.Backend) {
	eachSwitch(t, b, switchCases(b), func(c *call, n switchCase) (op, check func()) {
		dy, u, s := n.activations(c, "dy", n.out), n.activations(c, "u", n.cols()), n.adapter(c)
		s.a.idle = true
		du := c.out("du", b.Float(), n.tokens, n.cols())
		var dg *operand
		if n.experts > 0 {
			dg = c.out("dg", b.Param(), n.tokens, n.experts)
		}
		op = func() { b.SwitchGradHidden(du.tensor(), dg.tensor(), dy.tensor(), u.tensor(), s.kernel()) }
		return op, func() {
			wantU, wantG := switchGradHidden(dy.matrix(), u.matrix(), s.bank())
			c.want(du, wantU)
			if dg != nil {
				c.want(dg, wantG)
			}
		}
	})
}

func testSwitchGradInput(t *testing.T, b kernels.Backend) {
	eachSwitch(t, b, switchCasesPlus(b), func(c *call, n switchCase) (op, check func()) {
		dy, du := n.activations(c, "dy", n.out), n.activations(c, "du", n.cols())
		w := c.weight("w", n.typ, c.normal(n.out*n.width), n.out, n.width)
		a := c.in("a", n.bank(b), c.normal(n.width*n.cols()), n.width, n.cols())
		plus, dx := n.plus.operand(c, n.tokens, n.width), c.out("dx", b.Float(), n.tokens, n.width)
		op = func() {
			b.SwitchGradInput(dx.tensor(), dy.tensor(), w.tensor(), du.tensor(), a.tensor(), plus.tensor())
		}
		return op, func() {
			c.want(dx, switchGradInput(dy.matrix(), w.matrix(), du.matrix(), plus.matrix(), bank{a: a.matrix()}))
		}
	})
}

func testSwitchGradA(t *testing.T, b kernels.Backend) {
	eachSwitch(t, b, switchCases(b), func(c *call, n switchCase) (op, check func()) {
		z, du := n.activations(c, "z", n.width), n.activations(c, "du", n.cols())
		da := c.adds("da", b.Param(), c.normal(n.width*n.cols()), n.width, n.cols())
		op = func() { b.SwitchGradA(da.tensor(), z.tensor(), du.tensor()) }
		return op, func() { c.want(da, switchGradA(da.matrix(), z.matrix(), du.matrix())) }
	})
}

func testSwitchGradB(t *testing.T, b kernels.Backend) {
	eachSwitch(t, b, switchCases(b), func(c *call, n switchCase) (op, check func()) {
		u, dy, s := n.activations(c, "u", n.cols()), n.activations(c, "dy", n.out), n.adapter(c)
		s.a.idle, s.b.idle = true, true
		db := c.adds("db", b.Param(), c.normal(n.cols()*n.out), n.cols(), n.out)
		op = func() { b.SwitchGradB(db.tensor(), u.tensor(), dy.tensor(), s.kernel()) }
		return op, func() { c.want(db, switchGradB(db.matrix(), u.matrix(), dy.matrix(), s.bank())) }
	})
}
