package cuda

import "loratrain/kernels"

// Transpose is y[d, c] = x[c, d], bit for bit. y (D, C), x (C, D) of one type: F32, BF16 or F64.
func (b *Backend) Transpose(y, x kernels.Tensor) {
	const op, tile, threads = "Transpose", 32, 256
	rows, cols := matrixShape(op, "x", x)
	needWeight(op, "x", x, rows, cols)
	need(op, "y", y, x.Type, cols, rows)
	l := Launch{Grid: [3]int{ceil(rows, tile) * ceil(cols, tile)}, Block: [3]int{threads}}
	b.dev.Launch("transpose"+suffix(x.Type), l, at(y), at(x), int32(rows), int32(cols))
}
