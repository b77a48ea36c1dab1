package cuda

import "loratrain/kernels"

// Append is cache[at[t]] = x[t], where at[t] ≥ 0. cache (P, K·d), x (T, K·d), at (T) i32.
func (b *Backend) Append(cache, x, where kernels.Tensor) {
	const op = "Append"
	rows, cols := matrixShape(op, "x", x)
	places, _ := matrixShape(op, "cache", cache)
	need(op, "cache", cache, b.Float(), places, cols)
	need(op, "x", x, b.Float(), rows, cols)
	need(op, "at", where, kernels.I32, rows)
	b.dev.Launch("append"+suffix(x.Type), rowBlocks(rows, cols),
		at(cache), at(x), at(where), int32(places), int32(cols))
}
