package kernelstest

import (
	"testing"

	"loratrain/internal/gradcheck"
	"loratrain/kernels"
)

// testDifferences compares gradients with central differences of the backend's own forward operations, which
// needs its float64.
func testDifferences(t *testing.T, b kernels.Backend) {
	if b.Float() != kernels.F64 {
		t.Skipf("differences drown in the rounding of %v", b.Float())
	}
	for _, test := range []struct {
		name string
		run  func(d *differences)
	}{
		{"RMSNorm", differRMSNorm},
		{"Linear", differLinear},
		{"SwitchLinear", differSwitchLinear},
		{"Rotary", differRotary},
		{"Attention", differAttention},
		{"SwiGLU", differSwiGLU},
		{"Dropout", differDropout},
		{"Route", differRoute},
		{"Gate", differGate},
		{"Balance", differBalance},
		{"CrossEntropy", differCrossEntropy},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&differences{device: newDevice(t, b), call: newCall(t, b)})
		})
	}
}

// differences is what a comparison needs: variables, and outputs weighted by numbers that play dy.
type differences struct {
	device
	call *call
}

// variable is n random numbers on the backend.
func (d *differences) variable(shape ...int) kernels.Tensor {
	return d.put(kernels.F64, d.call.normal(kernels.Len(shape...)), shape...)
}

// zero is room for a result.
func (d *differences) zero(shape ...int) kernels.Tensor {
	return d.put(kernels.F64, make([]float64, kernels.Len(shape...)), shape...)
}

// check compares grad with the differences in x of Σ dy·y, where forward computes y.
func (d *differences) check(name string, x, grad, y, dy kernels.Tensor, forward func()) {
	d.t.Helper()
	at, weights := d.get(x), d.get(dy)
	gradcheck.Check(d.t, name, func(values []float64) float64 {
		d.set(x, values)
		forward()
		s := 0.0
		for i, v := range d.get(y) {
			s += v * weights[i]
		}
		return s
	}, at, d.get(grad), 1e-8)
	d.set(x, at)
	forward()
}

func differRMSNorm(d *differences) {
	x, w, dy := d.variable(3, 10), d.variable(5), d.variable(3, 10)
	y, dx := d.zero(3, 10), d.zero(3, 10)
	d.b.RMSNormGrad(dx, x, w, dy, kernels.Tensor{}, 1e-2)
	d.check("x", x, dx, y, dy, func() { d.b.RMSNorm(y, x, w, 1e-2) })
	// x on two ways: dx is that of the second plus that of the first.
	both := d.zero(3, 10)
	d.b.RMSNormGrad(dx, x, w, dy, dy, 1e-2)
	d.check("x, and x beside", x, dx, both, dy, func() {
		d.b.RMSNorm(y, x, w, 1e-2)
		d.b.Sum(both, x, y)
	})
}

func differLinear(d *differences) {
	x, w, dy := d.variable(3, 5), d.variable(7, 5), d.variable(3, 7)
	y, dx := d.zero(3, 7), d.zero(3, 5)
	d.b.LinearGrad(dx, dy, w, kernels.Tensor{})
	d.check("x", x, dx, y, dy, func() { d.b.Linear(y, x, w, kernels.Tensor{}, kernels.Tensor{}) })

	// y = x·vᵀ + x·wᵀ, whose gradient is dy·v + dy·w.
	v, first, sum := d.variable(7, 5), d.zero(3, 7), d.zero(3, 5)
	forward := func() {
		d.b.Linear(first, x, v, kernels.Tensor{}, kernels.Tensor{})
		d.b.Linear(y, x, w, kernels.Tensor{}, first)
	}
	d.b.LinearGrad(dx, dy, v, kernels.Tensor{})
	d.b.LinearGrad(sum, dy, w, dx)
	d.check("x, twice", x, sum, y, dy, forward)
	plus := d.variable(3, 7)
	d.check("plus", plus, dy, y, dy, func() { d.b.Linear(y, x, w, kernels.Tensor{}, plus) })
}

func differSwitchLinear(d *differences) {
	const tokens, width, out, experts, rank, shared = 5, 4, 7, 3, 2, 1
	const cols = experts*rank + shared
	x, w, bias, dy := d.variable(tokens, width), d.variable(out, width), d.variable(out), d.variable(tokens, out)
	sw := kernels.Switch{A: d.variable(width, cols), B: d.variable(cols, out), Gates: d.variable(tokens, experts), Rank: rank, Scale: 0.7}
	y, u, du, dg := d.zero(tokens, out), d.zero(tokens, cols), d.zero(tokens, cols), d.zero(tokens, experts)
	da, db, dx := d.zero(width, cols), d.zero(cols, out), d.zero(tokens, width)
	plus := d.variable(tokens, out)
	forward := func() { d.b.SwitchLinear(y, u, x, x, w, bias, plus, sw) }
	forward()
	d.b.SwitchGradHidden(du, dg, dy, u, sw)
	d.b.SwitchGradInput(dx, dy, w, du, sw.A, kernels.Tensor{})
	d.b.SwitchGradA(da, x, du)
	d.b.SwitchGradB(db, u, dy, sw)
	d.check("x", x, dx, y, dy, forward)
	d.check("A", sw.A, da, y, dy, forward)
	d.check("B", sw.B, db, y, dy, forward)
	d.check("Gates", sw.Gates, dg, y, dy, forward)
	d.check("plus", plus, dy, y, dy, forward)

	// y = x·vᵀ + the same, whose gradient is dy·v + dx.
	v, sum := d.variable(out, width), d.zero(tokens, width)
	d.b.LinearGrad(dx, dy, v, kernels.Tensor{})
	d.b.SwitchGradInput(sum, dy, w, du, sw.A, dx)
	d.check("x, twice", x, sum, y, dy, func() {
		d.b.Linear(plus, x, v, kernels.Tensor{}, kernels.Tensor{})
		forward()
	})
}

func differRotary(d *differences) {
	x, dy := d.variable(3, 12), d.variable(3, 12)
	table, pos := d.put(kernels.F64, rotaryTable(9, 6), 9, 6), d.put(kernels.I32, []float64{8, 0, 3}, 3)
	y, dx := d.zero(3, 12), d.zero(3, 12)
	d.b.Rotary(dx, dy, table, pos, true)
	d.check("x", x, dx, y, dy, func() { d.b.Rotary(y, x, table, pos, false) })
}

func differAttention(d *differences) {
	heads := kernels.Heads{Query: 4, KV: 2, Dim: 3}
	spans := append(continued(3, 2, 1), nothing(1)...)
	tokens := len(spans) / 4
	ranges := make([]float64, len(spans))
	for i, s := range spans {
		ranges[i] = float64(s)
	}
	at := d.put(kernels.I32, ranges, tokens, 4)
	q, k, v, do := d.variable(tokens, 12), d.variable(tokens, 6), d.variable(tokens, 6), d.variable(tokens, 12)
	o, lse := d.zero(tokens, 12), d.zero(tokens, 4)
	dq, dk, dv := d.zero(tokens, 12), d.zero(tokens, 6), d.zero(tokens, 6)
	forward := func() { d.b.Attention(o, lse, q, k, v, at, heads) }
	forward()
	d.b.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, at, heads)
	d.check("q", q, dq, o, do, forward)
	d.check("k", k, dk, o, do, forward)
	d.check("v", v, dv, o, do, forward)
}

func differSwiGLU(d *differences) {
	g, u, dy := d.variable(3, 5), d.variable(3, 5), d.variable(3, 5)
	y, dg, du := d.zero(3, 5), d.zero(3, 5), d.zero(3, 5)
	forward := func() { d.b.SwiGLU(y, g, u) }
	d.b.SwiGLUGrad(dg, du, g, u, dy)
	d.check("g", g, dg, y, dy, forward)
	d.check("u", u, du, y, dy, forward)
}

func differDropout(d *differences) {
	x, dy, key := d.variable(5, 7), d.variable(5, 7), d.put(kernels.I32, []float64{3, 9}, 2)
	y, dx := d.zero(5, 7), d.zero(5, 7)
	d.b.Dropout(dx, dy, key, 4, 0.3)
	d.check("x", x, dx, y, dy, func() { d.b.Dropout(y, x, key, 4, 0.3) })
}

func differRoute(d *differences) {
	h, router, dy := d.variable(3, 5), d.variable(4, 5), d.variable(3, 4)
	logits, dh, dr := d.zero(3, 4), d.zero(3, 5), d.zero(4, 5)
	forward := func() { d.b.Route(logits, h, router) }
	d.b.RouteGradInput(dh, dy, router)
	d.b.RouteGradWeight(dr, dy, h)
	d.check("h", h, dh, logits, dy, forward)
	d.check("router", router, dr, logits, dy, forward)
}

// differGate takes logits that no step of a difference can put in another order.
func differGate(d *differences) {
	logits := d.put(kernels.F64, []float64{0.1, 1.2, -0.5, 0.7, 2, -1, 1.5, 0.3, -2, -3, -4, -2.5}, 3, 4)
	dy, gates, dlogits := d.variable(3, 4), d.zero(3, 4), d.zero(3, 4)
	forward := func() { d.b.Gate(gates, logits) }
	forward()
	d.b.GateGrad(dlogits, gates, dy)
	d.check("logits", logits, dlogits, gates, dy, forward)
}

func differBalance(d *differences) {
	logits, seq := d.variable(5, 4), d.put(kernels.I32, []float64{0, 0, -1, 1, 2}, 5)
	gates := d.put(kernels.F64, d.call.gates(5, 4, -1), 5, 4)
	loss, loads, dloss, dlogits := d.zero(1), d.zero(4), d.put(kernels.F64, []float64{-0.7}, 1), d.zero(5, 4)
	forward := func() { d.b.Balance(loss, loads, logits, gates, seq) }
	forward()
	d.b.BalanceGrad(dlogits, dloss, logits, loads, seq)
	d.check("logits", logits, dlogits, loss, dloss, forward)
}

func differCrossEntropy(d *differences) {
	h, w := d.variable(5, 3), d.variable(17, 3)
	targets := d.put(kernels.I32, []float64{0, 16, -100, 7, 7}, 5)
	loss, dh, dloss := d.zero(1), d.zero(5, 3), d.put(kernels.F64, []float64{1}, 1)
	d.b.CrossEntropy(loss, dh, h, w, targets)
	d.check("h", h, dh, loss, dloss, func() { d.b.CrossEntropy(loss, kernels.Tensor{}, h, w, targets) })
	lp, sum := d.zero(5), d.put(kernels.F64, []float64{-1, -1, -1, -1, -1}, 5)
	d.check("h, by LogProb", h, dh, lp, sum, func() { d.b.LogProb(lp, h, w, targets) })
}
