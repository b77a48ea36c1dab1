package cuda

import (
	"math"

	"loratrain/kernels"
)

// normBlocks is the most parts that a norm is summed in, whatever the card, so that the sum is the same.
const normBlocks = 512

// stepBlocks is the blocks of a step that a multiprocessor holds at once: what a block does first is done by no more of them.
const stepBlocks = 4

// Norm is norm = √(Σ g²). norm (1), g (n).
func (b *Backend) Norm(norm, g kernels.Tensor) {
	const op = "Norm"
	n := g.Len()
	need(op, "norm", norm, b.Param(), 1)
	need(op, "g", g, b.Param(), n)
	l := threads1(n, 8)
	l.Grid[0] = min(l.Grid[0], normBlocks)
	parts := b.scratch(kernels.F64, 0, l.Grid[0])
	b.dev.Launch("norm_parts", l, at(parts), at(g), int64(n))
	b.dev.Launch("norm_total", threads1(1, 1), at(norm), at(parts), int32(l.Grid[0]))
}

// adamW is [kernels.AdamW] as the kernel takes it: the bits of float64s.
type adamW struct{ beta1, beta2, eps, decay, clip uint64 }

// Step is one AdamW step, n = hyper[1] counted from 1 and learning rate lr = hyper[0]:
//
//	g ← g·min(1, Clip/(norm + 1e-6))
//	m ← Beta1·m + (1-Beta1)·g,  v ← Beta2·v + (1-Beta2)·g²
//	p ← p·(1 - lr·Decay) - lr·(m/(1-Beta1ⁿ)) / (√(v/(1-Beta2ⁿ)) + Eps)
//
// g itself is left as it is. Nothing moves if norm is not finite. p, g, m, v (n), norm (1), hyper (2).
func (b *Backend) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	const op = "Step"
	n := p.Len()
	need(op, "p", p, b.Param(), n)
	need(op, "g", g, b.Param(), n)
	need(op, "m", m, b.Param(), n)
	need(op, "v", v, b.Param(), n)
	need(op, "norm", norm, b.Param(), 1)
	need(op, "hyper", hyper, b.Param(), 2)
	bits := math.Float64bits
	constants := adamW{bits(c.Beta1), bits(c.Beta2), bits(c.Eps), bits(c.Decay), bits(c.Clip)}
	l := threads1(n, 8)
	l.Grid[0] = min(l.Grid[0], stepBlocks*b.info.Multiprocessors)
	b.dev.Launch("adamw", l, at(p), at(g), at(m), at(v), at(norm), at(hyper), constants, int64(n))
}
