package cpu

import "loratrain/kernels"

// fewRows is the rows of activations up to which a product with a weight is bound by reading the weight.
const fewRows = 8

// Linear is y = plus + x·wᵀ + bias. y (T, D_out), of type Float or, with neither bias nor plus, Param, x (T, D), w (D_out, D), bias (D_out)
// or none, plus as y or none.
func (e *engine[E]) Linear(y, x, w, bias, plus kernels.Tensor) {
	const op = "Linear"
	rows, width := matrixShape(op, "x", x)
	out, _ := matrixShape(op, "w", w)
	ys, addend := in[E](op, "y", y, rows, out), maybe[E](op, "plus", plus, rows, out)
	e.linear(op, ys, in[E](op, "x", x, rows, width), weightIn[E](op, "w", w, out, width), rows, bias)
	e.add(ys, addend)
}

// add is y += plus, which may be nil.
func (e *engine[E]) add(y, plus []E) {
	if plus == nil {
		return
	}
	e.split(len(y), 64, len(y), func(w *worker[E], from, to int) { w.vec.add(y[from:to], y[from:to], plus[from:to]) })
}

// linear is y = x·wᵀ + bias for rows rows.
func (e *engine[E]) linear(op string, y, x []E, w weight[E], rows int, bias kernels.Tensor) {
	e.timesTransposed(dense(y, rows, w.rows), dense(x, rows, w.cols), w)
	if bias.None() {
		return
	}
	if len(bias.Shape) != 1 || bias.Len() != w.rows {
		fail(op, "bias is %v, expected [%d]", bias, w.rows)
	}
	defer e.main().release(e.main().mark())
	b := e.row(op, "bias", bias)
	e.split(rows, 1, len(y), func(wk *worker[E], from, to int) {
		for t := from; t < to; t++ {
			row := y[t*w.rows : (t+1)*w.rows]
			wk.vec.add(row, row, b)
		}
	})
}

// timesTransposed is y = x·wᵀ.
func (e *engine[E]) timesTransposed(y, x matrix[E], w weight[E]) {
	if x.rows <= fewRows && w.cols > 0 {
		e.timesTransposedFew(y, x, w)
		return
	}
	e.panels(w, func(from, to int, panel matrix[E]) {
		e.multiply(y.colPart(from, to), x, panel.t(), 1, 0)
	})
}

// fewBlock is the elements of a weight that all rows of x pass while they are in the first cache.
const fewBlock = 1 << 12

// timesTransposedFew is timesTransposed for few rows: the weight is read once, and widened in the cache.
func (e *engine[E]) timesTransposedFew(y, x matrix[E], w weight[E]) {
	step := max(4, fewBlock/w.cols/4*4)
	e.split(w.rows, 4, w.rows*w.cols*max(1, x.rows/2)/2, func(wk *worker[E], from, to int) {
		defer wk.release(wk.mark())
		tmp := wk.take(step * w.cols)
		for ; from < to; from += step {
			end := min(to, from+step)
			block := w.block(wk, tmp, from, end)
			for t := range x.rows {
				wk.vec.dots(y.row(t)[from:end], block.data, x.row(t), block.stride)
			}
		}
	})
}

// times is y = x·w + beta·y.
func (e *engine[E]) times(y, x matrix[E], w weight[E], beta E) {
	e.panels(w, func(from, to int, panel matrix[E]) {
		if from > 0 {
			beta = 1
		}
		e.multiply(y, x.colPart(from, to), panel, 1, beta)
	})
}

// LinearGrad is dx = plus + dy·w. dx (T, D), dy (T, D_out), w (D_out, D), plus as dx or none.
func (e *engine[E]) LinearGrad(dx, dy, w, plus kernels.Tensor) {
	const op = "LinearGrad"
	rows, out := matrixShape(op, "dy", dy)
	_, width := matrixShape(op, "w", w)
	dst, addend := in[E](op, "dx", dx, rows, width), maybe[E](op, "plus", plus, rows, width)
	e.times(dense(dst, rows, width), dense(in[E](op, "dy", dy, rows, out), rows, out), weightIn[E](op, "w", w, out, width), 0)
	e.add(dst, addend)
}
