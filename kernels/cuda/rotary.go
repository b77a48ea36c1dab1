package cuda

import "loratrain/kernels"

// Rotary turns each head's pairs (x[i], x[i+d/2]) by the angle of its position p = pos[t]: with c and n the
// cosines and sines table[p, :d/2] and table[p, d/2:], y[i] = x[i]·c[i] - x[i+d/2]·n[i] and
// y[i+d/2] = x[i+d/2]·c[i] + x[i]·n[i]; backwards turns by the opposite angle, which is the gradient.
// y, x (T, H·d), table (P, d), pos (T) i32.
func (b *Backend) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	const op = "Rotary"
	rows, cols := matrixShape(op, "x", x)
	positions, d := matrixShape(op, "table", table)
	if d == 0 || d%2 != 0 || cols%d != 0 {
		fail(op, "x is %v, table %v: expected whole heads of an even size", x, table)
	}
	need(op, "y", y, b.Float(), rows, cols)
	need(op, "x", x, b.Float(), rows, cols)
	need(op, "table", table, b.Param(), positions, d)
	need(op, "pos", pos, kernels.I32, rows)
	sign := float32(1)
	if backwards {
		sign = -1
	}
	b.dev.Launch("rotary"+suffix(x.Type), rowBlocks(rows, cols/2),
		at(y), at(x), at(table), at(pos), int32(positions), int32(cols/d), int32(d), sign)
}
