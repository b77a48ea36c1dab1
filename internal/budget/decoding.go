package budget

import "loratrain/kernels"

// Top2 implements [kernels.Decoding].
func (m *Meter) Top2(ids, weights, logits kernels.Tensor) {
	m.do("Top2", moves(ids, weights, logits), func() { m.b.Top2(ids, weights, logits) })
}

// Experts implements [kernels.Decoding]. Each expert is read once, by as many tokens as chose it.
func (m *Meter) Experts(y, x, a, b, ids, weights kernels.Tensor, scale float64) {
	n := ids.Len()
	work := moves(y, y, x, ids, weights).and(gathers(a, n), gathers(b, n),
		product(n, a.Shape[1], a.Shape[2]), product(n, b.Shape[2], b.Shape[1]))
	m.do("Experts", work, func() { m.b.Experts(y, x, a, b, ids, weights, scale) })
}

// Spread implements [kernels.Decoding].
func (m *Meter) Spread(gates, ids, weights kernels.Tensor) {
	m.do("Spread", moves(gates, ids, weights), func() { m.b.Spread(gates, ids, weights) })
}

// Transpose implements [kernels.Decoding].
func (m *Meter) Transpose(y, x kernels.Tensor) {
	m.do("Transpose", moves(y, x), func() { m.b.Transpose(y, x) })
}

// PrepareMerge implements [kernels.Decoding].
func (m *Meter) PrepareMerge(layers []kernels.Merge) (kernels.Merging, error) {
	return m.b.PrepareMerge(layers)
}

// Merge implements [kernels.Decoding]. It counts as if nothing were in force, which the host cannot know.
func (m *Meter) Merge(p kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	n, work := ids.Len(), moves(ids, weights, force, force)
	for _, l := range p.Layers() {
		work = work.and(moves(l.Dst, l.Src), gathers(l.A, n), gathers(l.B, n), product(l.Dst.Shape[0], l.Dst.Shape[1], n*l.A.Shape[1]))
	}
	m.do("Merge", work, func() { m.b.Merge(p, ids, weights, force, scale) })
}

// Append implements [kernels.Decoding].
func (m *Meter) Append(cache, x, at kernels.Tensor) {
	rows := gathers(x, m.counted(at))
	m.do("Append", moves(at).and(rows, rows), func() { m.b.Append(cache, x, at) })
}

// Sample implements [kernels.Decoding].
func (m *Meter) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	m.do("Sample", moves(ids, logits, u), func() { m.b.Sample(ids, logits, u, rule) })
}

// Advance implements [kernels.Decoding].
func (m *Meter) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	work := moves(q.Tokens, q.Length, q.Length, q.Keys, q.Pos, q.Live, q.Rows, q.Spans, q.U, q.Experts, q.Weights)
	if !ids.None() {
		work = work.and(gathers(ids, q.Length.Len()), gathers(gates, q.Length.Len()))
	}
	m.do("Advance", work, func() { m.b.Advance(q, ids, gates) })
}
