package cpu

import "loratrain/kernels"

// attentionGrad is what AttentionGrad has beyond the inputs of Attention.
type attentionGrad[E float] struct {
	*attention[E]
	dq, dk, dv, do, o, lse []E
}

// AttentionGrad is the gradient of Attention, given its inputs and outputs. dq as q, dk and dv as k and v.
func (e *engine[E]) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	const op = "AttentionGrad"
	a := attentionIn[E](op, q, k, v, spans, heads)
	g := attentionGrad[E]{
		attention: a,
		dq:        in[E](op, "dq", dq, q.Shape...), dk: in[E](op, "dk", dk, k.Shape...), dv: in[E](op, "dv", dv, v.Shape...),
		do: in[E](op, "do", do, q.Shape...), o: in[E](op, "o", o, q.Shape...), lse: in[E](op, "lse", lse, a.tokens, a.heads),
	}
	clear(g.dk)
	clear(g.dv)
	work := 0
	for _, s := range a.segments {
		work += (s.to - s.from) * (1 + s.width()) * a.heads * a.dim
	}
	// dk and dv gather from all segments that see a row: one thread takes them all, in their order.
	units := families(a.segments, a.keys)
	e.each(len(units)*a.kv, work, func(w *worker[E], unit int) {
		head := unit % a.kv
		for _, i := range units[unit/a.kv] {
			s := a.segments[i]
			if s.to-s.from > 1 && !g.clean(w, s, head) {
				for t := s.from; t < s.to; t++ {
					g.backward(w, single(a.spans, t), head)
				}
				continue
			}
			g.backward(w, s, head)
		}
	})
}

// clean reports whether what a segment multiplies by weights of zero is finite.
func (g attentionGrad[E]) clean(w *worker[E], s segment, head int) bool {
	for t := s.from; t < s.to; t++ {
		if !w.finite(g.groupRow(g.do, t, head)) || !w.finite(g.groupRow(g.q, t, head)) {
			return false
		}
	}
	return g.attention.clean(w, g.k, s, head)
}

// backward takes a segment's tokens, for the query heads of a key-value head: with P the weights and
// dP = do·vᵀ, dS = P ⊙ (dP - do·o) is the gradient of the scores.
func (g attentionGrad[E]) backward(w *worker[E], s segment, head int) {
	defer w.release(w.mark())
	n, width, size := (s.to-s.from)*g.group, s.width(), g.group*g.dim
	q := g.gather(w, w.take(n*g.dim), g.q, s, head, g.scale)
	do := g.gather(w, w.take(n*g.dim), g.do, s, head, 1)
	p, ds := dense(w.take(n*width), n, width), dense(w.take(n*width), n, width)
	g.scores(w, p, q, g.k, s, head)
	g.scores(w, ds, do, g.v, s, head)
	for i := range n {
		t, h := s.from+i/g.group, head*g.group+i%g.group
		at := (t*g.heads + h) * g.dim
		delta := w.vec.dot(do.row(i), g.o[at:at+g.dim])
		w.scoreGrad(p.row(i), ds.row(i), s.visible(g.spans, t), g.lse[t*g.heads+h], delta)
	}
	g.accumulate(w, g.dv, p, do, s, head)
	g.accumulate(w, g.dk, ds, q, s, head) // q holds the factor 1/√d
	dq := q
	g.weighted(w, dq, ds, g.k, s, head)
	for t := s.from; t < s.to; t++ {
		w.vec.scale(g.groupRow(g.dq, t, head), dq.data[(t-s.from)*size:(t-s.from+1)*size], g.scale)
	}
}

// accumulate adds pᵀ·x to the rows of array that the segment sees.
func (g attentionGrad[E]) accumulate(w *worker[E], array []E, p, x matrix[E], s segment, head int) {
	first := s.keys[0].len()
	w.multiply(g.side(array, s.keys[0], head), p.colPart(0, first).t(), x, 1, 1)
	w.multiply(g.side(array, s.keys[1], head), p.colPart(first, p.cols).t(), x, 1, 1)
}

// scoreGrad turns a row of scores to weights and a row of dP to dS, zero where nothing is seen.
func (w *worker[E]) scoreGrad(p, ds []E, visible [2]rows, lse, delta E) {
	at := 0
	for _, r := range visible {
		if r.len() == 0 {
			continue
		}
		clear(p[at:r.from])
		clear(ds[at:r.from])
		p, ds := p[r.from:r.to], ds[r.from:r.to]
		w.vec.shift(p, p, -lse)
		w.exp(p, p)
		w.vec.shift(ds, ds, -delta)
		w.vec.mul(ds, ds, p)
		at = r.to
	}
	clear(p[at:])
	clear(ds[at:])
}
