package cuda

import "loratrain/kernels"

// SwiGLU is y = g·σ(g)·u, elementwise. y, g, u (T, F).
func (b *Backend) SwiGLU(y, g, u kernels.Tensor) {
	b.alike("SwiGLU", []string{"y", "g", "u"}, y, g, u)
	b.dev.Launch("swiglu"+suffix(y.Type), threads1(y.Len(), 8), at(y), at(g), at(u), int64(y.Len()))
}

// SwiGLUGrad is dg = dy·u·σ(g)·(1 + g·(1-σ(g))) and du = dy·g·σ(g).
func (b *Backend) SwiGLUGrad(dg, du, g, u, dy kernels.Tensor) {
	b.alike("SwiGLUGrad", []string{"dg", "du", "g", "u", "dy"}, dg, du, g, u, dy)
	b.dev.Launch("swiglu_grad"+suffix(dg.Type), threads1(dg.Len(), 8), at(dg), at(du), at(g), at(u), at(dy), int64(dg.Len()))
}

// alike fails unless all tensors are activations of the shape of the first.
func (b *Backend) alike(op string, names []string, ts ...kernels.Tensor) {
	for i, t := range ts {
		need(op, names[i], t, b.Float(), ts[0].Shape...)
	}
}
