package cpu

import (
	"math"

	"loratrain/kernels"
)

// RMSNorm normalises pieces of len(w) elements: y = x / √(mean(x²) + eps) · w. y, x of the same shape, w (D) or,
// for the heads' norms, (d).
func (e *engine[E]) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	const op = "RMSNorm"
	dst, src := in[E](op, "y", y, x.Shape...), flat[E](op, "x", x)
	defer e.main().release(e.main().mark())
	weight, pieces := e.normWeight(op, x, w)
	d := len(weight)
	e.split(pieces, 1, 3*len(src), func(wk *worker[E], from, to int) {
		for i := from * d; i < to*d; i += d {
			x, y := src[i:i+d], dst[i:i+d]
			wk.vec.scale(y, x, E(1/wk.rms(x, eps)))
			wk.vec.mul(y, y, weight)
		}
	})
}

// normWeight is the elements of w, maybe in scratch memory, and how many pieces of that length x has.
func (e *engine[E]) normWeight(op string, x, w kernels.Tensor) (weight []E, pieces int) {
	if w.None() || len(w.Shape) != 1 || w.Len() == 0 || x.Len()%w.Len() != 0 {
		fail(op, "x is %s, w %s: expected whole pieces of the length of w", describe(x), describe(w))
	}
	return e.row(op, "w", w), x.Len() / w.Len()
}

// rms is √(mean(x²) + eps).
func (w *worker[E]) rms(x []E, eps float64) float64 {
	return math.Sqrt(total(x, w.vec.squares)/float64(len(x)) + eps)
}

// RMSNormGrad is dx = plus + r·(w ⊙ dy) - x·r³·mean(w ⊙ dy ⊙ x), r = 1/√(mean(x²) + eps). plus as dx or none.
func (e *engine[E]) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	const op = "RMSNormGrad"
	dst, src := in[E](op, "dx", dx, x.Shape...), flat[E](op, "x", x)
	above, addend := in[E](op, "dy", dy, x.Shape...), maybe[E](op, "plus", plus, x.Shape...)
	defer e.main().release(e.main().mark())
	weight, pieces := e.normWeight(op, x, w)
	d := len(weight)
	e.split(pieces, 1, 6*len(src), func(wk *worker[E], from, to int) {
		defer wk.release(wk.mark())
		wdy := wk.take(d)
		for i := from * d; i < to*d; i += d {
			x := src[i : i+d]
			wk.vec.mul(wdy, weight, above[i:i+d])
			r := 1 / wk.rms(x, eps)
			mean := float64(wk.vec.dot(wdy, x)) / float64(d)
			wk.vec.scale(dst[i:i+d], wdy, E(r))
			wk.vec.addScaled(dst[i:i+d], E(-r*r*r*mean), x)
			if addend != nil {
				wk.vec.add(dst[i:i+d], dst[i:i+d], addend[i:i+d])
			}
		}
	})
}
