package cuda

import (
	"math"

	"loratrain/kernels"
)

// Advance puts each sequence's token behind those before it. With p = length[s], if 0 ≤ p < P: pos[s] = live[s] = p, rows[s] = s·P + p,
// spans[s] = (0, 0, s·P + f, s·P + p+1) with f = max(0, p+1-W), or 0 if W is 0, u[s] = ⌊Random(keys[s, 0], keys[s, 1], 0).At(p)/2⁴⁰⌋/2²⁴,
// experts[s] = ids[tokens[s]] and weights[s] = gates[tokens[s]], if there is a routing table, and length[s] becomes p+1. A sequence that
// is stopped or full does no harm: rows[s] and live[s] are -1, all else is 0, and length[s] stays. ids (V, n) i32, gates (V, n) of type Param.
func (b *Backend) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	const op = "Advance"
	n := q.Length.Len()
	if q.Room < 0 || q.Window < 0 || n*q.Room > math.MaxInt32 {
		fail(op, "%d sequences with room for %d, a window of %d: expected none below 0 and fewer than 2³¹ rows", n, q.Room, q.Window)
	}
	for _, x := range []struct {
		name  string
		t     kernels.Tensor
		shape []int
	}{
		{"tokens", q.Tokens, []int{n}},
		{"length", q.Length, []int{n}},
		{"keys", q.Keys, []int{n, 2}},
		{"pos", q.Pos, []int{n}},
		{"live", q.Live, []int{n}},
		{"rows", q.Rows, []int{n}},
		{"spans", q.Spans, []int{n, 4}},
	} {
		need(op, x.name, x.t, kernels.I32, x.shape...)
	}
	need(op, "u", q.U, b.Param(), n)
	args := advancing{
		Tokens: at(q.Tokens), Length: at(q.Length), Keys: at(q.Keys), Pos: at(q.Pos), Live: at(q.Live), Rows: at(q.Rows),
		Spans: at(q.Spans), U: at(q.U),
		N: int32(n), Room: int32(q.Room), Window: int32(min(q.Window, q.Room)),
	}
	if !ids.None() || !gates.None() {
		vocabulary, chosen := matrixShape(op, "ids", ids)
		need(op, "ids", ids, kernels.I32, vocabulary, chosen)
		need(op, "gates", gates, b.Param(), vocabulary, chosen)
		need(op, "experts", q.Experts, kernels.I32, n, chosen)
		need(op, "weights", q.Weights, b.Param(), n, chosen)
		args.IDs, args.Gates, args.Experts, args.Weights = at(ids), at(gates), at(q.Experts), at(q.Weights)
		args.Vocabulary, args.Chosen = int32(vocabulary), int32(chosen)
	}
	if n > 0 {
		b.dev.Launch("advance", threads1(n, 1), args)
	}
}

// advancing is the struct Advancing of advance.cu.
type advancing struct {
	Tokens, Length, Keys, Pos, Live, Rows, Spans, U, IDs, Gates, Experts, Weights Address
	N, Room, Window, Vocabulary, Chosen, _                                        int32
}
