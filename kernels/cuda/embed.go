package cuda

import "loratrain/kernels"

// Embed gathers rows: y[t] = table[ids[t]]. y (T, D), table (V, D), ids (T) i32.
func (b *Backend) Embed(y, table, ids kernels.Tensor) {
	const op = "Embed"
	rows, cols := matrixShape(op, "y", y)
	vocabulary, _ := matrixShape(op, "table", table)
	need(op, "y", y, b.Float(), rows, cols)
	needWeight(op, "table", table, vocabulary, cols)
	need(op, "ids", ids, kernels.I32, rows)
	b.dev.Launch("embed"+suffix(y.Type, table.Type), rowBlocks(rows, cols),
		at(y), at(table), at(ids), int32(vocabulary), int32(cols))
}
