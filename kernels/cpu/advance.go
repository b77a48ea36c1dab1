package cpu

import "loratrain/kernels"

// Advance puts each sequence's token behind those before it. With p = length[s], if 0 ≤ p < P: pos[s] = live[s] = p, rows[s] = s·P + p,
// spans[s] = (0, 0, s·P + f, s·P + p+1) with f = max(0, p+1-W), or 0 if W is 0, u[s] = ⌊Random(keys[s, 0], keys[s, 1], 0).At(p)/2⁴⁰⌋/2²⁴,
// experts[s] = ids[tokens[s]] and weights[s] = gates[tokens[s]], if there is a routing table, and length[s] becomes p+1. A sequence that
// is stopped or full does no harm: rows[s] and live[s] are -1, all else is 0, and length[s] stays. ids (V, n) i32, gates (V, n) of type Param.
func (e *engine[E]) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	const op = "Advance"
	a := advancing[E]{q: q}
	n := q.Length.Len()
	if q.Room < 0 || q.Window < 0 {
		fail(op, "room for %d, a window of %d: expected none below 0", q.Room, q.Window)
	}
	a.length, a.keys = in[int32](op, "length", q.Length, n), in[int32](op, "keys", q.Keys, n, 2)
	a.pos, a.live, a.rows = in[int32](op, "pos", q.Pos, n), in[int32](op, "live", q.Live, n), in[int32](op, "rows", q.Rows, n)
	a.spans, a.u = in[int32](op, "spans", q.Spans, n, 4), in[E](op, "u", q.U, n)
	tokens := in[int32](op, "tokens", q.Tokens, n)
	if !ids.None() || !gates.None() {
		vocabulary, k := matrixShape(op, "ids", ids)
		a.chosen, a.ids, a.gates = k, in[int32](op, "ids", ids, vocabulary, k), in[E](op, "gates", gates, vocabulary, k)
		a.experts, a.weights = in[int32](op, "experts", q.Experts, n, k), in[E](op, "weights", q.Weights, n, k)
	}
	for s := range n {
		if p := int(a.length[s]); p < 0 || p >= q.Room {
			a.rest(s)
			continue
		}
		if t := int(tokens[s]); a.chosen > 0 && (t < 0 || t*a.chosen >= len(a.ids)) {
			fail(op, "tokens[%d] is %d, expected 0 to %d", s, t, len(a.ids)/a.chosen-1)
		}
		a.run(s, int(tokens[s]))
	}
}

// advancing is the operands of an Advance.
type advancing[E float] struct {
	q                                    kernels.Sequences
	length, keys, pos, live, rows, spans []int32
	u                                    []E
	chosen                               int // experts of a token, 0 without a table
	ids, experts                         []int32
	gates, weights                       []E
}

// run is a sequence that goes on with token t.
func (a *advancing[E]) run(s, t int) {
	p, first := int(a.length[s]), 0
	if w := a.q.Window; w > 0 {
		first = max(0, p+1-w)
	}
	from := s * a.q.Room
	a.pos[s], a.live[s], a.rows[s], a.length[s] = int32(p), int32(p), int32(from+p), int32(p+1)
	copy(a.spans[4*s:], []int32{0, 0, int32(from + first), int32(from + p + 1)})
	a.u[s] = E(kernels.Random(a.keys[2*s], a.keys[2*s+1], 0).Uniform(p))
	k := a.chosen
	copy(a.experts[k*s:k*(s+1)], a.ids[k*t:])
	copy(a.weights[k*s:k*(s+1)], a.gates[k*t:])
}

// rest is one that does not.
func (a *advancing[E]) rest(s int) {
	a.pos[s], a.live[s], a.rows[s], a.u[s] = 0, -1, -1, 0
	clear(a.spans[4*s : 4*s+4])
	clear(a.experts[a.chosen*s : a.chosen*(s+1)])
	clear(a.weights[a.chosen*s : a.chosen*(s+1)])
}
