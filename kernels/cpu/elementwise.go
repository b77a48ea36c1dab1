package cpu

import (
	"math"

	"loratrain/kernels"
)

// grain is the elements of a flat operation that are computed at a time: their temporaries stay in the cache.
const grain = 1024

// flatly runs f on pieces of at most grain elements of [0, n), spread over the threads. cost is that of an element.
func (e *engine[E]) flatly(n, cost int, f func(w *worker[E], from, to int)) {
	e.split(n, grain, n*cost, func(w *worker[E], from, to int) {
		for ; from < to; from += grain {
			f(w, from, min(to, from+grain))
		}
	})
}

// Embed gathers rows: y[t] = table[ids[t]]. y (T, D), table (V, D), ids (T) i32.
func (e *engine[E]) Embed(y, table, ids kernels.Tensor) {
	const op = "Embed"
	rows, cols := matrixShape(op, "y", y)
	vocabulary, _ := matrixShape(op, "table", table)
	dst, src := in[E](op, "y", y, rows, cols), weightIn[E](op, "table", table, vocabulary, cols)
	id := indices(op, "ids", ids, vocabulary, rows)
	e.split(rows, 1, rows*cols, func(w *worker[E], from, to int) {
		for t := from; t < to; t++ {
			src.widen(w, dst[t*cols:(t+1)*cols], int(id[t])*cols)
		}
	})
}

// Rotary turns each head's pairs (x[i], x[i+d/2]) by the angle of its position p = pos[t]: with c and n the
// cosines and sines table[p, :d/2] and table[p, d/2:], y[i] = x[i]·c[i] - x[i+d/2]·n[i] and
// y[i+d/2] = x[i+d/2]·c[i] + x[i]·n[i]; backwards turns by the opposite angle, which is the gradient.
// y, x (T, H·d), table (P, d), pos (T) i32.
func (e *engine[E]) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	const op = "Rotary"
	rows, cols := matrixShape(op, "x", x)
	positions, d := matrixShape(op, "table", table)
	if d == 0 || d%2 != 0 || cols%d != 0 {
		fail(op, "x is %v, table %v: expected whole heads of an even size", x, table)
	}
	dst, src := in[E](op, "y", y, rows, cols), in[E](op, "x", x, rows, cols)
	angles, p := in[E](op, "table", table, positions, d), indices(op, "pos", pos, positions, rows)
	e.split(rows, 1, rows*cols*2, func(w *worker[E], from, to int) {
		defer w.release(w.mark())
		sines := w.take(d / 2)
		for t := from; t < to; t++ {
			row := angles[int(p[t])*d : (int(p[t])+1)*d]
			cosines := row[:d/2]
			copy(sines, row[d/2:])
			if backwards {
				w.vec.scale(sines, sines, -1)
			}
			for i := t * cols; i < (t+1)*cols; i += d {
				turn(dst[i:i+d], src[i:i+d], cosines, sines)
			}
		}
	})
}

// turn is Rotary for one head.
func turn[E float](y, x, cosines, sines []E) {
	half := len(cosines)
	sines, y1, y2, x1, x2 := sines[:half], y[:half], y[half:][:half], x[:half], x[half:][:half]
	for i, c := range cosines {
		n := sines[i]
		y1[i] = x1[i]*c - x2[i]*n
		y2[i] = x2[i]*c + x1[i]*n
	}
}

// SwiGLU is y = g·σ(g)·u, elementwise. y, g, u (T, F).
func (e *engine[E]) SwiGLU(y, g, u kernels.Tensor) {
	const op = "SwiGLU"
	dst := flat[E](op, "y", y)
	gs, us := in[E](op, "g", g, y.Shape...), in[E](op, "u", u, y.Shape...)
	e.flatly(len(dst), 8, func(w *worker[E], from, to int) {
		defer w.release(w.mark())
		y, g, u, denominator := dst[from:to], gs[from:to], us[from:to], w.take(to-from)
		w.onePlusExpMinus(denominator, g)
		w.vec.div(y, g, denominator)
		w.vec.mul(y, y, u)
	})
}

// onePlusExpMinus is dst = 1 + exp(-g) = 1/σ(g).
func (w *worker[E]) onePlusExpMinus(dst, g []E) {
	w.vec.scale(dst, g, -1)
	w.exp(dst, dst)
	w.vec.shift(dst, dst, 1)
}

// SwiGLUGrad is dg = dy·u·σ(g)·(1 + g·(1-σ(g))) and du = dy·g·σ(g).
func (e *engine[E]) SwiGLUGrad(dg, du, g, u, dy kernels.Tensor) {
	const op = "SwiGLUGrad"
	dgs := flat[E](op, "dg", dg)
	dus, gs := in[E](op, "du", du, dg.Shape...), in[E](op, "g", g, dg.Shape...)
	us, dys := in[E](op, "u", u, dg.Shape...), in[E](op, "dy", dy, dg.Shape...)
	e.flatly(len(dgs), 12, func(w *worker[E], from, to int) {
		defer w.release(w.mark())
		dg, du, g, u, dy := dgs[from:to], dus[from:to], gs[from:to], us[from:to], dys[from:to]
		v, denominator, swish := w.vec, w.take(to-from), w.take(to-from)
		w.onePlusExpMinus(denominator, g)
		v.div(swish, g, denominator)
		v.mul(du, dy, swish)
		// σ·(1 + g·(1-σ)) = (1 + g - g·σ)/(1 + exp(-g))
		v.sub(dg, g, swish)
		v.shift(dg, dg, 1)
		v.div(dg, dg, denominator)
		v.mul(dg, dg, dy)
		v.mul(dg, dg, u)
	})
}

// Sum is y = Σ xs, elementwise.
func (e *engine[E]) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	const op = "Sum"
	dst := flat[E](op, "y", y)
	var terms [][]E
	for _, x := range xs {
		terms = append(terms, in[E](op, "a term", x, y.Shape...))
	}
	e.flatly(len(dst), 1+len(xs), func(w *worker[E], from, to int) {
		y := dst[from:to]
		switch len(terms) {
		case 0:
			clear(y)
			return
		case 1:
			copy(y, terms[0][from:to])
			return
		}
		w.vec.add(y, terms[0][from:to], terms[1][from:to])
		for _, x := range terms[2:] {
			w.vec.add(y, y, x[from:to])
		}
	})
}

// Scale is y = factor[0]·x, elementwise; factor (1) of type Param. y may be x.
func (e *engine[E]) Scale(y, x, factor kernels.Tensor) {
	const op = "Scale"
	dst := flat[E](op, "y", y)
	src, by := in[E](op, "x", x, y.Shape...), in[E](op, "factor", factor, 1)[0]
	e.flatly(len(dst), 1, func(w *worker[E], from, to int) { w.vec.scale(dst[from:to], src[from:to], by) })
}

// Dropout zeroes elements with probability rate and divides the others by 1 - rate. Element i is zeroed if
// the upper 24 bits of [Random](key[0], key[1], site).At(i) are below rate·2²⁴, so that the same call on a
// gradient is its gradient. y, x of the same shape, key (2) i32: a seed and the step.
func (e *engine[E]) Dropout(y, x, key kernels.Tensor, site int, rate float64) {
	const op = "Dropout"
	dst := flat[E](op, "y", y)
	src, k := in[E](op, "x", x, y.Shape...), in[int32](op, "key", key, 2)
	limit, keep := uint64(math.Ceil(rate*(1<<24))), E(1/(1-rate))
	stream := kernels.Random(k[0], k[1], site)
	e.flatly(len(dst), 4, func(_ *worker[E], from, to int) {
		y := dst[from:to]
		for i, x := range src[from:to] {
			x *= keep
			if stream.At(from+i)>>40 < limit {
				x = 0
			}
			y[i] = x
		}
	})
}
