package budget

import "loratrain/kernels"

// RMSNormGrad implements [kernels.Gradients].
func (m *Meter) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	m.do("RMSNormGrad", moves(dx, x, w, dy, plus), func() { m.b.RMSNormGrad(dx, x, w, dy, plus, eps) })
}

// LinearGrad implements [kernels.Gradients].
func (m *Meter) LinearGrad(dx, dy, w, plus kernels.Tensor) {
	work := moves(dx, dy, w, plus).and(product(dy.Shape[0], w.Shape[1], w.Shape[0]))
	m.do("LinearGrad", work, func() { m.b.LinearGrad(dx, dy, w, plus) })
}

// SwitchGradHidden implements [kernels.Gradients].
func (m *Meter) SwitchGradHidden(du, dg, dy, u kernels.Tensor, sw kernels.Switch) {
	work := moves(du, dg, dy, u, sw.B, sw.Gates).and(product(dy.Shape[0], sw.B.Shape[0], sw.B.Shape[1]))
	m.do("SwitchGradHidden", work, func() { m.b.SwitchGradHidden(du, dg, dy, u, sw) })
}

// SwitchGradInput implements [kernels.Gradients].
func (m *Meter) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	rows := dy.Shape[0]
	work := moves(dx, dy, w, du, a, plus).and(product(rows, w.Shape[1], w.Shape[0]), product(rows, a.Shape[0], a.Shape[1]))
	m.do("SwitchGradInput", work, func() { m.b.SwitchGradInput(dx, dy, w, du, a, plus) })
}

// SwitchGradA implements [kernels.Gradients].
func (m *Meter) SwitchGradA(da, z, du kernels.Tensor) {
	work := moves(da, da, z, du).and(product(da.Shape[0], da.Shape[1], z.Shape[0]))
	m.do("SwitchGradA", work, func() { m.b.SwitchGradA(da, z, du) })
}

// SwitchGradB implements [kernels.Gradients].
func (m *Meter) SwitchGradB(db, u, dy kernels.Tensor, sw kernels.Switch) {
	work := moves(db, db, u, dy, sw.Gates).and(product(db.Shape[0], db.Shape[1], u.Shape[0]))
	m.do("SwitchGradB", work, func() { m.b.SwitchGradB(db, u, dy, sw) })
}

// AttentionGrad implements [kernels.Gradients]. Its products are the scores, which are not kept, and the gradients of
// probabilities, values, queries and keys.
func (m *Meter) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	scores := Work{Flops: 2 * m.pairs(spans) * float64(heads.Query*heads.Dim)}
	m.do("AttentionGrad", moves(dq, dk, dv, do, o, lse, q, k, v, spans).and(scores.times(5)), func() {
		m.b.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans, heads)
	})
}

// SwiGLUGrad implements [kernels.Gradients].
func (m *Meter) SwiGLUGrad(dg, du, g, u, dy kernels.Tensor) {
	m.do("SwiGLUGrad", moves(dg, du, g, u, dy), func() { m.b.SwiGLUGrad(dg, du, g, u, dy) })
}

// RouteGradInput implements [kernels.Gradients].
func (m *Meter) RouteGradInput(dh, dlogits, router kernels.Tensor) {
	work := moves(dh, dlogits, router).and(product(dlogits.Shape[0], router.Shape[1], router.Shape[0]))
	m.do("RouteGradInput", work, func() { m.b.RouteGradInput(dh, dlogits, router) })
}

// RouteGradWeight implements [kernels.Gradients].
func (m *Meter) RouteGradWeight(dr, dlogits, h kernels.Tensor) {
	work := moves(dr, dr, dlogits, h).and(product(dr.Shape[0], dr.Shape[1], h.Shape[0]))
	m.do("RouteGradWeight", work, func() { m.b.RouteGradWeight(dr, dlogits, h) })
}

// GateGrad implements [kernels.Gradients].
func (m *Meter) GateGrad(dlogits, gates, dg kernels.Tensor) {
	m.do("GateGrad", moves(dlogits, gates, dg), func() { m.b.GateGrad(dlogits, gates, dg) })
}

// BalanceGrad implements [kernels.Gradients].
func (m *Meter) BalanceGrad(dlogits, dloss, logits, loads, seq kernels.Tensor) {
	m.do("BalanceGrad", moves(dlogits, dloss, logits, loads, seq), func() { m.b.BalanceGrad(dlogits, dloss, logits, loads, seq) })
}

// Norm implements [kernels.Optimizer].
func (m *Meter) Norm(norm, g kernels.Tensor) {
	m.do("Norm", moves(norm, g), func() { m.b.Norm(norm, g) })
}

// Step implements [kernels.Optimizer].
func (m *Meter) Step(p, g, mean, square, norm, hyper kernels.Tensor, c kernels.AdamW) {
	work := moves(p, p, g, mean, mean, square, square, norm, hyper)
	m.do("Step", work, func() { m.b.Step(p, g, mean, square, norm, hyper, c) })
}

// Round implements [kernels.Optimizer].
func (m *Meter) Round(dst, src kernels.Tensor) {
	m.do("Round", moves(dst, src), func() { m.b.Round(dst, src) })
}
