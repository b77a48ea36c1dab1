package cuda

import "loratrain/kernels"

// Gate is, in each row, softmax over the two largest logits, zero elsewhere; ties go to the lower expert.
// gates, logits (T, E).
func (b *Backend) Gate(gates, logits kernels.Tensor) {
	const op = "Gate"
	tokens, experts := matrixShape(op, "logits", logits)
	need(op, "gates", gates, b.Param(), tokens, experts)
	need(op, "logits", logits, b.Param(), tokens, experts)
	b.dev.Launch("gate", rowWarps(tokens), at(gates), at(logits), int32(tokens), int32(experts))
}

// GateGrad is dlogits = g ⊙ (dg - Σ_e g_e·dg_e), row by row.
func (b *Backend) GateGrad(dlogits, gates, dg kernels.Tensor) {
	const op = "GateGrad"
	tokens, experts := matrixShape(op, "gates", gates)
	need(op, "dlogits", dlogits, b.Param(), tokens, experts)
	need(op, "gates", gates, b.Param(), tokens, experts)
	need(op, "dg", dg, b.Param(), tokens, experts)
	b.dev.Launch("gategrad", rowWarps(tokens), at(dlogits), at(gates), at(dg), int32(tokens), int32(experts))
}

// Top2 is Gate in short form: ids of the two largest logits, the larger first, and their softmax. Ties go to the
// lower expert. ids (T, 2) i32, weights (T, 2), logits (T, E).
func (b *Backend) Top2(ids, weights, logits kernels.Tensor) {
	const op = "Top2"
	tokens, experts := matrixShape(op, "logits", logits)
	if experts < 2 {
		fail(op, "logits are %v, expected at least two experts", logits)
	}
	need(op, "ids", ids, kernels.I32, tokens, 2)
	need(op, "weights", weights, b.Param(), tokens, 2)
	need(op, "logits", logits, b.Param(), tokens, experts)
	b.dev.Launch("top2", rowWarps(tokens), at(ids), at(weights), at(logits), int32(tokens), int32(experts))
}
