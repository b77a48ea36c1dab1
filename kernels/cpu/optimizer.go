package cpu

import (
	"math"

	"loratrain/kernels"
)

// normPart is the elements whose squares are summed by one thread: parts do not depend on how many there are.
const normPart = 1 << 16

// Norm is norm = √(Σ g²). norm (1), g (n).
func (e *engine[E]) Norm(norm, g kernels.Tensor) {
	const op = "Norm"
	out, gs := in[E](op, "norm", norm, 1), in[E](op, "g", g, g.Len())
	sums := make([]float64, (len(gs)+normPart-1)/normPart)
	e.split(len(sums), 1, len(gs), func(w *worker[E], from, to int) {
		for i := from; i < to; i++ {
			sums[i] = total(gs[i*normPart:min(len(gs), (i+1)*normPart)], w.vec.squares)
		}
	})
	var sum accumulator
	for _, s := range sums {
		sum.add(s)
	}
	out[0] = E(math.Sqrt(sum.value()))
}

// Step is one AdamW step, n = hyper[1] counted from 1 and learning rate lr = hyper[0]:
//
//	g ← g·min(1, Clip/(norm + 1e-6))
//	m ← Beta1·m + (1-Beta1)·g,  v ← Beta2·v + (1-Beta2)·g²
//	p ← p·(1 - lr·Decay) - lr·(m/(1-Beta1ⁿ)) / (√(v/(1-Beta2ⁿ)) + Eps)
//
// g itself is left as it is. p, g, m, v (n), norm (1), hyper (2).
func (e *engine[E]) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	const op = "Step"
	n := p.Len()
	ps, gs := in[E](op, "p", p, n), in[E](op, "g", g, n)
	ms, vs := in[E](op, "m", m, n), in[E](op, "v", v, n)
	rate, step := float64(in[E](op, "hyper", hyper, 2)[0]), float64(in[E](op, "hyper", hyper, 2)[1])
	clip := 1.0
	if length := in[E](op, "norm", norm, 1)[0]; c.Clip > 0 {
		clip = min(1, c.Clip/(float64(length)+1e-6)) // a NaN stays one
	}
	size := rate / (1 - math.Pow(c.Beta1, step))
	correct := 1 / (1 - math.Pow(c.Beta2, step))
	e.flatly(n, 8, func(w *worker[E], from, to int) {
		defer w.release(w.mark())
		p, m, v := ps[from:to], ms[from:to], vs[from:to]
		g, tmp := w.take(to-from), w.take(to-from)
		w.vec.scale(g, gs[from:to], E(clip))
		w.vec.scale(m, m, E(c.Beta1))
		w.vec.addScaled(m, E(1-c.Beta1), g)
		w.vec.mul(tmp, g, g)
		w.vec.scale(v, v, E(c.Beta2))
		w.vec.addScaled(v, E(1-c.Beta2), tmp)

		w.vec.scale(tmp, v, E(correct))
		w.vec.sqrt(tmp, tmp)
		w.vec.shift(tmp, tmp, E(c.Eps))
		w.vec.div(tmp, m, tmp)
		if c.Decay != 0 {
			w.vec.scale(p, p, E(1-rate*c.Decay))
		}
		w.vec.addScaled(p, E(-size), tmp)
	})
}
