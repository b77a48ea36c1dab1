package cuda

import "loratrain/kernels"

// Experts adds s·Σ_k weights[t, k]·B[i]ᵀ·(A[i]·x[t]), i = ids[t, k], to y[t]. y (T, D_out), x (T, D), a (E, R, D),
// b (E, R, D_out), ids (T, n) i32, weights (T, n).
func (b *Backend) Experts(y, x, a, up, ids, weights kernels.Tensor, scale float64) {
	const op = "Experts"
	e := expertsOf(op, a, up)
	tokens, n := matrixShape(op, "ids", ids)
	need(op, "y", y, b.Float(), tokens, e.out)
	need(op, "x", x, b.Float(), tokens, e.width)
	need(op, "ids", ids, kernels.I32, tokens, n)
	need(op, "weights", weights, b.Param(), tokens, n)
	chunk := min(tokens, max(1, workspaceBytes/(4*n*e.rank)))
	hidden := b.scratch(kernels.F32, 0, chunk, n*e.rank)
	for from := 0; from < tokens; from += chunk {
		rows := min(chunk, tokens-from)
		id := at(ids.View(from*n, rows, n))
		b.dev.Launch("experts_down"+suffix(b.Float(), a.Type), Launch{Grid: [3]int{rows, ceil(n*e.rank, 8)}, Block: [3]int{256}},
			at(hidden), at(x.View(from*e.width, rows, e.width)), at(a), id, at(weights.View(from*n, rows, n)),
			int32(n), int32(e.count), int32(e.rank), int32(e.width), float32(scale))
		b.dev.Launch("experts_up"+suffix(b.Float(), up.Type), Launch{Grid: [3]int{rows, ceil(e.out, 8*64)}, Block: [3]int{64}},
			at(y.View(from*e.out, rows, e.out)), at(hidden), at(up), id,
			int32(n), int32(e.count), int32(e.rank), int32(e.out))
	}
}

// experts is the dimensions of a layer's experts as an export holds them.
type experts struct{ count, rank, width, out int }

func expertsOf(op string, a, b kernels.Tensor) experts {
	count, rank, width := cubeShape(op, "a", a)
	_, _, out := cubeShape(op, "b", b)
	needWeight(op, "a", a, count, rank, width)
	needWeight(op, "b", b, count, rank, out)
	return experts{count, rank, width, out}
}
