package cuda

import "loratrain/kernels"

// Spread is gates[t, e] = Σ_k weights[t, k] over the k with ids[t, k] = e: a token's experts as SwitchLinear takes them. gates (T, E),
// ids (T, n) i32, weights (T, n).
func (b *Backend) Spread(gates, ids, weights kernels.Tensor) {
	const op = "Spread"
	tokens, experts := matrixShape(op, "gates", gates)
	_, n := matrixShape(op, "ids", ids)
	need(op, "gates", gates, b.Param(), tokens, experts)
	need(op, "ids", ids, kernels.I32, tokens, n)
	need(op, "weights", weights, b.Param(), tokens, n)
	b.dev.Launch("spread", threads1(tokens*experts, 1), at(gates), at(ids), at(weights), int32(n), int32(experts), int64(tokens*experts))
}
