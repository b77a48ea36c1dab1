package cpu

import (
	"math"

	"loratrain/kernels"
)

// attention is the inputs of an attention operation, their shapes checked.
type attention[E float] struct {
	q, k, v  []E
	tokens   int // rows of q
	keys     int // rows of k and v
	heads    int // query heads
	kv       int // key-value heads
	group    int // query heads per key-value head
	dim      int
	scale    E // 1/√dim
	spans    []int32
	segments []segment
}

func attentionIn[E float](op string, q, k, v, spans kernels.Tensor, h kernels.Heads) *attention[E] {
	if h.KV <= 0 || h.Dim <= 0 || h.Query%h.KV != 0 {
		fail(op, "%v, expected query heads in equal groups for the key-value heads", h)
	}
	tokens, _ := matrixShape(op, "q", q)
	keys, _ := matrixShape(op, "k", k)
	a := &attention[E]{
		q: in[E](op, "q", q, tokens, h.Query*h.Dim),
		k: in[E](op, "k", k, keys, h.KV*h.Dim), v: in[E](op, "v", v, keys, h.KV*h.Dim),
		tokens: tokens, keys: keys, heads: h.Query, kv: h.KV, group: h.Query / h.KV, dim: h.Dim,
		scale: E(1 / math.Sqrt(float64(h.Dim))), spans: in[int32](op, "spans", spans, tokens, 4),
	}
	a.segments = plan(op, a.spans, keys, a.group)
	return a
}

// groupRow is token t's part of an array (T, H·d) for all query heads that share a key-value head.
func (a *attention[E]) groupRow(array []E, t, head int) []E {
	from := (t*a.kv + head) * a.group * a.dim
	return array[from : from+a.group*a.dim]
}

// side is a range of the rows of k or v (N, K·d) for a key-value head.
func (a *attention[E]) side(array []E, r rows, head int) matrix[E] {
	m := matrix[E]{data: array, rows: a.keys, cols: a.kv * a.dim, stride: a.kv * a.dim}
	return m.part(r.from, r.to, head*a.dim, (head+1)*a.dim)
}

// gather copies a segment's rows for a key-value head to dst (tokens·group, d), multiplied by scale.
func (a *attention[E]) gather(w *worker[E], dst, array []E, s segment, head int, scale E) matrix[E] {
	size := a.group * a.dim
	for t := s.from; t < s.to; t++ {
		row := dst[(t-s.from)*size : (t-s.from+1)*size]
		if scale == 1 {
			copy(row, a.groupRow(array, t, head))
		} else {
			w.vec.scale(row, a.groupRow(array, t, head), scale)
		}
	}
	return dense(dst, (s.to-s.from)*a.group, a.dim)
}

// scores is a·bᵀ for a segment's rows a and the two ranges of keys in b's array, side by side.
func (a *attention[E]) scores(w *worker[E], dst matrix[E], x matrix[E], array []E, s segment, head int) {
	first := s.keys[0].len()
	w.multiply(dst.colPart(0, first), x, a.side(array, s.keys[0], head).t(), 1, 0)
	w.multiply(dst.colPart(first, dst.cols), x, a.side(array, s.keys[1], head).t(), 1, 0)
}

// weighted is dst = p·v over the two ranges of keys in v's array.
func (a *attention[E]) weighted(w *worker[E], dst, p matrix[E], array []E, s segment, head int) {
	first := s.keys[0].len()
	w.multiply(dst, p.colPart(0, first), a.side(array, s.keys[0], head), 1, 0)
	if s.keys[1].len() > 0 {
		w.multiply(dst, p.colPart(first, p.cols), a.side(array, s.keys[1], head), 1, 1)
	}
}

// Attention is o[t] = Σ_j softmax_j(q[t]·k[j]/√d)·v[j] for each head, over the keys j that token t sees:
// spans[t] = (a, b, c, e) makes them the rows [a, b) and [c, e) of k and v, two ranges that do not meet. A
// token that sees nothing gets zeros. lse[t, h] is the logarithm of the softmax's denominator, kept for the
// gradient, or none. o, q (T, H·d), k, v (N, K·d), spans (T, 4) i32, lse (T, H).
//
// Rows of k and v are the batch's own tokens in training, where one range is the token's sequence up to
// itself and the other a prompt shared by several continuations; or a cache that holds them.
func (e *engine[E]) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	const op = "Attention"
	a := attentionIn[E](op, q, k, v, spans, heads)
	out := in[E](op, "o", o, a.tokens, a.heads*a.dim)
	logs := maybe[E](op, "lse", lse, a.tokens, a.heads)
	work := 0
	for _, s := range a.segments {
		work += (s.to - s.from) * (1 + s.width()) * a.heads * a.dim / 2
	}
	e.each(len(a.segments)*a.kv, work, func(w *worker[E], unit int) {
		s, head := a.segments[unit/a.kv], unit%a.kv
		if s.to-s.from > 1 && !a.clean(w, a.v, s, head) {
			for t := s.from; t < s.to; t++ {
				a.forward(w, out, logs, single(a.spans, t), head)
			}
			return
		}
		a.forward(w, out, logs, s, head)
	})
}

// clean reports whether the rows of array that a segment reads are finite. A row that holds a NaN would spoil all
// tokens of the segment, since a weight of zero does not remove it: such a segment is taken apart.
func (a *attention[E]) clean(w *worker[E], array []E, s segment, head int) bool {
	for _, r := range s.keys {
		m := a.side(array, r, head)
		for i := range m.rows {
			if !w.finite(m.row(i)) {
				return false
			}
		}
	}
	return true
}

// forward attends for the tokens of a segment and the query heads of a key-value head.
func (a *attention[E]) forward(w *worker[E], out, logs []E, s segment, head int) {
	defer w.release(w.mark())
	n, width, size := (s.to-s.from)*a.group, s.width(), a.group*a.dim
	q := a.gather(w, w.take(n*a.dim), a.q, s, head, a.scale)
	p := dense(w.take(n*width), n, width)
	a.scores(w, p, q, a.k, s, head)
	sums := w.take(n)
	for i := range n {
		t := s.from + i/a.group
		var most float64
		sums[i], most = w.expRow(p.row(i), s.visible(a.spans, t))
		if logs != nil {
			logs[t*a.heads+head*a.group+i%a.group] = E(most + math.Log(float64(sums[i])))
		}
	}
	o := dense(q.data, n, a.dim) // q is not needed any more
	a.weighted(w, o, p, a.v, s, head)
	for i := range n {
		if sums[i] == 0 {
			clear(o.row(i)) // sees nothing
			continue
		}
		w.vec.scale(o.row(i), o.row(i), 1/sums[i])
	}
	for t := s.from; t < s.to; t++ {
		copy(a.groupRow(out, t, head), o.data[(t-s.from)*size:])
	}
}

// expRow is row = exp(row - most) in the two visible ranges, zero elsewhere, the sum of the row, and most.
func (w *worker[E]) expRow(row []E, visible [2]rows) (sum E, most float64) {
	most = math.Inf(-1)
	for _, r := range visible {
		if r.len() > 0 {
			most = max(most, float64(w.vec.max(row[r.from:r.to])))
		}
	}
	var s float64
	at := 0
	for _, r := range visible {
		if r.len() == 0 {
			continue
		}
		clear(row[at:r.from])
		part := row[r.from:r.to]
		w.vec.shift(part, part, E(-most))
		w.exp(part, part)
		s += total(part, w.vec.sum)
		at = r.to
	}
	clear(row[at:])
	return E(s), most
}
