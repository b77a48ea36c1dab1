package cuda

import "loratrain/kernels"

// Linear is y = plus + x·wᵀ + bias. y (T, D_out), of type Float or, with neither bias nor plus, Param, x (T, D), w (D_out, D), bias (D_out)
// or none, plus as y or none.
func (b *Backend) Linear(y, x, w, bias, plus kernels.Tensor) {
	const op = "Linear"
	typ := b.float
	if y.Type == b.Param() && bias.None() && plus.None() {
		typ = b.Param()
	}
	b.checkLinear(op, typ, y, x, w, bias, plus)
	b.timesTransposed(y, x, w, b.start(y, bias, plus), 0)
}

// checkLinear checks operands whose result is of a type.
func (b *Backend) checkLinear(op string, typ kernels.Type, y, x, w, bias, plus kernels.Tensor) {
	rows, width := matrixShape(op, "x", x)
	out, _ := matrixShape(op, "w", w)
	need(op, "y", y, typ, rows, out)
	need(op, "x", x, b.float, rows, width)
	needWeight(op, "w", w, out, width)
	if !bias.None() {
		needWeight(op, "bias", bias, out)
	}
	maybe(op, "plus", plus, b.float, rows, out)
}

// start fills y with plus + bias, or the one that there is, and returns the factor of y in the product that comes next.
func (b *Backend) start(y, bias, plus kernels.Tensor) (beta float32) {
	switch {
	case !bias.None():
		width := bias.Len()
		b.dev.Launch("bias"+suffix(y.Type, bias.Type), threads1(y.Shape[0]*ceil(width, 8), 1),
			at(y), at(bias), at(plus), int32(width), int64(y.Len()))
	case !plus.None():
		b.Copy(y, plus)
	default:
		return 0
	}
	return 1
}

// LinearGrad is dx = plus + dy·w. dx (T, D), dy (T, D_out), w (D_out, D), plus as dx or none.
func (b *Backend) LinearGrad(dx, dy, w, plus kernels.Tensor) {
	const op = "LinearGrad"
	b.checkLinearGrad(op, dx, dy, w, plus)
	b.times(dx, dy, w, b.start(dx, kernels.Tensor{}, plus), 0)
}

func (b *Backend) checkLinearGrad(op string, dx, dy, w, plus kernels.Tensor) {
	rows, out := matrixShape(op, "dy", dy)
	_, width := matrixShape(op, "w", w)
	need(op, "dx", dx, b.float, rows, width)
	need(op, "dy", dy, b.float, rows, out)
	needWeight(op, "w", w, out, width)
	maybe(op, "plus", plus, b.float, rows, width)
}

// timesTransposed is y = x·wᵀ + beta·y. The workspace is in use up to byte used.
func (b *Backend) timesTransposed(y, x, w kernels.Tensor, beta float32, used int) {
	rows, width := x.Shape[0], x.Shape[1]
	b.panels(w, used, func(from int, panel Matrix) {
		part := dense(y, rows, y.Shape[1])
		part.At, part.Cols = part.At+Address(from*y.Type.Size()), panel.Rows
		b.product(Product{C: part, A: dense(x, rows, width), B: panel.T(), Alpha: 1, Beta: beta})
	})
}

// times is y = x·w + beta·y. The workspace is in use up to byte used.
func (b *Backend) times(y, x, w kernels.Tensor, beta float32, used int) {
	rows, width := x.Shape[0], x.Shape[1]
	b.panels(w, used, func(from int, panel Matrix) {
		part := dense(x, rows, width)
		part.At, part.Cols = part.At+Address(from*x.Type.Size()), panel.Rows
		b.product(Product{C: dense(y, rows, y.Shape[1]), A: part, B: panel, Alpha: 1, Beta: beta})
		beta = 1
	})
}

// panels calls f with the rows of w from one on, in type Float: w itself or, where w has another type, pieces of it rounded into the
// workspace, which is in use up to byte used.
func (b *Backend) panels(w kernels.Tensor, used int, f func(from int, panel Matrix)) {
	rows, cols := w.Shape[0], w.Shape[1]
	if w.Type == b.float {
		f(0, dense(w, rows, cols))
		return
	}
	// Pieces of a multiple of 8 rows keep the columns of y where they start aligned.
	step := max(1, (workspaceBytes-used)/(8*cols*b.float.Size())) * 8
	for from := 0; from < rows; from += step {
		n := min(step, rows-from)
		piece := b.scratch(b.float, used, n, cols)
		b.Round(piece, w.View(from*cols, n, cols))
		f(from, dense(piece, n, cols))
	}
}
