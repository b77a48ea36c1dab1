package kernelstest

import (
	"math"

	"loratrain/kernels"
)

// seen is the keys that a token sees: [a, b) and [c, e).
func seen(span []int32) []int {
	var keys []int
	for j := span[0]; j < span[1]; j++ {
		keys = append(keys, int(j))
	}
	for j := span[2]; j < span[3]; j++ {
		keys = append(keys, int(j))
	}
	return keys
}

// view is one query head of one token and what it sees.
type view struct {
	q, k matrix
	t    int
	from int   // first column of the query head
	kv   int   // first column of its key-value head
	dim  int   // d
	keys []int // rows of k
}

func viewOf(q, k matrix, spans []int32, heads kernels.Heads, t, h int) view {
	return view{
		q: q, k: k, t: t, from: h * heads.Dim, kv: h / (heads.Query / heads.KV) * heads.Dim, dim: heads.Dim,
		keys: seen(spans[4*t : 4*t+4]),
	}
}

// scores is q·k/√d for each key.
func (a view) scores() []number {
	s := make([]number, len(a.keys))
	for n, j := range a.keys {
		dot := sum(a.dim, func(i int) number { return a.q.at(a.t, a.from+i).times(a.k.at(j, a.kv+i)) })
		s[n] = dot.times(exact(1 / math.Sqrt(float64(a.dim))))
	}
	return s
}

func attention(q, k, v matrix, spans []int32, heads kernels.Heads) (o, lse matrix) {
	o = matrix{q.rows, q.cols, make([]number, q.rows*q.cols)}
	lse = matrix{q.rows, heads.Query, make([]number, q.rows*heads.Query)}
	for t := range q.rows {
		for h := range heads.Query {
			a := viewOf(q, k, spans, heads, t, h)
			if len(a.keys) == 0 {
				lse.row(t)[h] = anything
				continue
			}
			p, l := softmax(a.scores())
			lse.row(t)[h] = l
			for i := range heads.Dim {
				o.row(t)[a.from+i] = sum(len(p), func(n int) number {
					return p[n].stored().times(v.at(a.keys[n], a.kv+i))
				})
			}
		}
	}
	return o, lse
}

// attentionGrad is the gradient with P = softmax(S), S = QKᵀ/√d: dV = Pᵀ·dO, dP = dO·Vᵀ,
// dS = P ⊙ (dP - rowsum(dO ⊙ O)), dQ = dS·K/√d and dK = dSᵀ·Q/√d (Dao et al., arXiv 2205.14135, appendix B).
func attentionGrad(do, o, lse, q, k, v matrix, spans []int32, heads kernels.Heads) (dq, dk, dv matrix) {
	queries, keys, values := newTerms(q), newTerms(k), newTerms(v)
	root := exact(1 / math.Sqrt(float64(heads.Dim)))
	for t := range q.rows {
		for h := range heads.Query {
			a := viewOf(q, k, spans, heads, t, h)
			delta := sum(a.dim, func(i int) number { return do.at(t, a.from+i).times(o.at(t, a.from+i).stored()) })
			for n, s := range a.scores() {
				j := a.keys[n]
				p := s.minus(lse.at(t, h)).exp()
				dp := sum(a.dim, func(i int) number { return do.at(t, a.from+i).times(v.at(j, a.kv+i)) })
				ds := p.times(dp.minus(delta)).stored().times(root)
				for i := range a.dim {
					queries.add(t, a.from+i, ds.times(k.at(j, a.kv+i)))
					keys.add(j, a.kv+i, ds.times(q.at(t, a.from+i)))
					values.add(j, a.kv+i, p.stored().times(do.at(t, a.from+i)))
				}
			}
		}
	}
	return queries.sums(), keys.sums(), values.sums()
}

// terms collects the terms of sums, one sum for each element of a matrix.
type terms struct {
	rows, cols int
	of         [][]number
}

func newTerms(shape matrix) terms {
	return terms{shape.rows, shape.cols, make([][]number, shape.rows*shape.cols)}
}

func (x terms) add(i, j int, term number) { x.of[i*x.cols+j] = append(x.of[i*x.cols+j], term) }

func (x terms) sums() matrix {
	return fill(x.rows, x.cols, func(i, j int) number {
		all := x.of[i*x.cols+j]
		return sum(len(all), func(n int) number { return all[n] })
	})
}
