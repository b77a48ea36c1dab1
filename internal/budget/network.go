package budget

import "loratrain/kernels"

// Embed implements [kernels.Network].
func (m *Meter) Embed(y, table, ids kernels.Tensor) {
	m.do("Embed", moves(y, ids).and(gathers(table, ids.Len())), func() { m.b.Embed(y, table, ids) })
}

// RMSNorm implements [kernels.Network].
func (m *Meter) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	m.do("RMSNorm", moves(y, x, w), func() { m.b.RMSNorm(y, x, w, eps) })
}

// Linear implements [kernels.Network].
func (m *Meter) Linear(y, x, w, bias, plus kernels.Tensor) {
	work := moves(y, x, w, bias, plus).and(product(x.Shape[0], w.Shape[0], w.Shape[1]))
	m.do("Linear", work, func() { m.b.Linear(y, x, w, bias, plus) })
}

// SwitchLinear implements [kernels.Network].
func (m *Meter) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	rows, columns := x.Shape[0], sw.A.Shape[1]
	work := moves(y, u, x, distinct(z, x), w, bias, plus, sw.A, sw.B, sw.Gates).and(
		product(rows, w.Shape[0], w.Shape[1]),
		product(rows, columns, sw.A.Shape[0]),
		product(rows, sw.B.Shape[1], columns))
	m.do("SwitchLinear", work, func() { m.b.SwitchLinear(y, u, x, z, w, bias, plus, sw) })
}

// Rotary implements [kernels.Network].
func (m *Meter) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	m.do("Rotary", moves(y, x, pos).and(gathers(table, pos.Len())), func() { m.b.Rotary(y, x, table, pos, backwards) })
}

// Attention implements [kernels.Network]. Its products are those of queries with keys and of probabilities with values.
func (m *Meter) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	scores := Work{Flops: 2 * m.pairs(spans) * float64(heads.Query*heads.Dim)}
	m.do("Attention", moves(o, lse, q, k, v, spans).and(scores.times(2)), func() { m.b.Attention(o, lse, q, k, v, spans, heads) })
}

// SwiGLU implements [kernels.Network].
func (m *Meter) SwiGLU(y, g, u kernels.Tensor) {
	m.do("SwiGLU", moves(y, g, u), func() { m.b.SwiGLU(y, g, u) })
}

// Sum implements [kernels.Network].
func (m *Meter) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	m.do("Sum", moves(y).and(moves(xs...)), func() { m.b.Sum(y, xs...) })
}

// Scale implements [kernels.Network].
func (m *Meter) Scale(y, x, factor kernels.Tensor) {
	m.do("Scale", moves(y, x, factor), func() { m.b.Scale(y, x, factor) })
}

// Dropout implements [kernels.Network].
func (m *Meter) Dropout(y, x, key kernels.Tensor, site int, rate float64) {
	m.do("Dropout", moves(y, x, key), func() { m.b.Dropout(y, x, key, site, rate) })
}

// Route implements [kernels.Network].
func (m *Meter) Route(logits, h, router kernels.Tensor) {
	work := moves(logits, h, router).and(product(h.Shape[0], router.Shape[0], router.Shape[1]))
	m.do("Route", work, func() { m.b.Route(logits, h, router) })
}

// Gate implements [kernels.Network].
func (m *Meter) Gate(gates, logits kernels.Tensor) {
	m.do("Gate", moves(gates, logits), func() { m.b.Gate(gates, logits) })
}

// Balance implements [kernels.Network].
func (m *Meter) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	m.do("Balance", moves(loss, loads, logits, gates, seq), func() { m.b.Balance(loss, loads, logits, gates, seq) })
}

// CrossEntropy implements [kernels.Network]. Its products are the logits and, from their gradient, that of h; rows without a
// target have neither.
func (m *Meter) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	rows := m.counted(targets)
	logits := product(rows, w.Shape[0], w.Shape[1])
	work := moves(loss, dh, w, targets).and(gathers(h, rows), logits)
	if !dh.None() {
		work = work.and(logits)
	}
	m.do("CrossEntropy", work, func() { m.b.CrossEntropy(loss, dh, h, w, targets) })
}

// LogProb implements [kernels.Network].
func (m *Meter) LogProb(lp, h, w, targets kernels.Tensor) {
	rows := m.counted(targets)
	work := moves(lp, w, targets).and(gathers(h, rows), product(rows, w.Shape[0], w.Shape[1]))
	m.do("LogProb", work, func() { m.b.LogProb(lp, h, w, targets) })
}
