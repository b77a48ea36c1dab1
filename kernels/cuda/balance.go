package cuda

import "loratrain/kernels"

// balanceTokens is how many tokens a block of balance's kernels takes.
const balanceTokens = 64

// Balance is loss = E·Σ_e f_e·p_e over the tokens with seq ≥ 0, where f_e is the share of the top-2 places
// that e holds (a place counts if its gate is above 0) and p_e its mean softmax probability: 1 if all experts
// are used alike. It also writes f to loads. loss (1), loads (E), logits, gates (T, E), seq (T) i32.
func (b *Backend) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	const op = "Balance"
	tokens, experts := matrixShape(op, "logits", logits)
	need(op, "loss", loss, b.Param(), 1)
	need(op, "loads", loads, b.Param(), experts)
	need(op, "logits", logits, b.Param(), tokens, experts)
	need(op, "gates", gates, b.Param(), tokens, experts)
	need(op, "seq", seq, kernels.I32, tokens)
	parts := ceil(tokens, balanceTokens)
	var room layout
	probabilities := room.take(b, kernels.F32, parts, experts)
	places, counted := room.take(b, kernels.I32, parts, experts), room.take(b, kernels.I32, parts)
	l := Launch{Grid: [3]int{parts, ceil(experts, 32)}, Block: [3]int{256}}
	b.dev.Launch("balance_parts", l, at(probabilities), at(places), at(counted), at(logits), at(gates), at(seq),
		int32(tokens), int32(experts))
	b.dev.Launch("balance", Launch{Block: [3]int{256}}, at(loss), at(loads), at(probabilities), at(places), at(counted),
		int32(parts), int32(experts))
}

// BalanceGrad is dlogits[t] = dloss·E/N·p[t] ⊙ (f - Σ_e f_e·p[t, e]) for the N tokens with seq ≥ 0, where p[t] is
// the softmax of a row and f = loads; zero for the others. dloss (1).
func (b *Backend) BalanceGrad(dlogits, dloss, logits, loads, seq kernels.Tensor) {
	const op = "BalanceGrad"
	tokens, experts := matrixShape(op, "logits", logits)
	need(op, "dlogits", dlogits, b.Param(), tokens, experts)
	need(op, "dloss", dloss, b.Param(), 1)
	need(op, "logits", logits, b.Param(), tokens, experts)
	need(op, "loads", loads, b.Param(), experts)
	need(op, "seq", seq, kernels.I32, tokens)
	l := Launch{Grid: [3]int{ceil(tokens, balanceTokens)}, Block: [3]int{256}}
	b.dev.Launch("balancegrad", l, at(dlogits), at(dloss), at(logits), at(loads), at(seq), int32(tokens), int32(experts))
}
