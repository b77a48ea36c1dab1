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
// g itself is left as it is. Nothing moves if norm is not finite. p, g, m, v (n), norm (1), hyper (2).
func (e *engine[E]) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	const op = "Step"
	n := p.Len()
	ps, gs := in[E](op, "p", p, n), in[E](op, "g", g, n)
	ms, vs := in[E](op, "m", m, n), in[E](op, "v", v, n)
	rate, step := float64(in[E](op, "hyper", hyper, 2)[0]), float64(in[E](op, "hyper", hyper, 2)[1])
	length := float64(in[E](op, "norm", norm, 1)[0])
	if length-length != 0 {
		return
	}
	clip := 1.0
	if c.Clip > 0 {
		clip = min(1, c.Clip/(length+1e-6))
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

// Round is dst = src, each element the nearest that dst's type has. dst, src of one length, each F32, BF16 or F64.
func (e *engine[E]) Round(dst, src kernels.Tensor) {
	const op = "Round"
	if dst.Len() != src.Len() {
		fail(op, "dst is %s, src %s: expected one length", describe(dst), describe(src))
	}
	var from func(i int) float64
	switch src.Type {
	case kernels.F32:
		s := flat[float32](op, "src", src)
		from = func(i int) float64 { return float64(s[i]) }
	case kernels.BF16:
		s := flat[kernels.BFloat16](op, "src", src)
		from = func(i int) float64 { return float64(s[i].Float32()) }
	default:
		s := flat[float64](op, "src", src)
		from = func(i int) float64 { return s[i] }
	}
	switch dst.Type {
	case kernels.F32:
		round(e, flat[float32](op, "dst", dst), from, func(x float64) float32 { return float32(x) })
	case kernels.BF16:
		round(e, flat[kernels.BFloat16](op, "dst", dst), from, toBFloat16)
	default:
		round(e, flat[float64](op, "dst", dst), from, func(x float64) float64 { return x })
	}
}

// round is dst[i] = to(from(i)).
func round[E float, D any](e *engine[E], dst []D, from func(i int) float64, to func(x float64) D) {
	e.split(len(dst), grain, len(dst), func(_ *worker[E], first, last int) {
		for i := first; i < last; i++ {
			dst[i] = to(from(i))
		}
	})
}

// toBFloat16 is the nearest to x, ties to even; a NaN stays a NaN. On the way, a float32 that is not x is made the odd one of
// its two neighbours, so that x is not rounded twice (Boldo and Melquiond, IEEE Transactions on Computers 57, 2008).
func toBFloat16(x float64) kernels.BFloat16 {
	f := float32(x)
	if wide := float64(f); wide != x && x == x {
		bits := math.Float32bits(f)
		if math.Abs(wide) > math.Abs(x) {
			bits--
		}
		f = math.Float32frombits(bits | 1)
	}
	return kernels.ToBFloat16(f)
}
