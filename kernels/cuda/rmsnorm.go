package cuda

import "loratrain/kernels"

// RMSNorm normalises pieces of len(w) elements: y = x / √(mean(x²) + eps) · w. y, x of the same shape, w (D) or,
// for the heads' norms, (d).
func (b *Backend) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	n := b.norm("RMSNorm", x, w)
	need("RMSNorm", "y", y, b.Float(), x.Shape...)
	b.dev.Launch("rmsnorm"+n.kernel, n.launch, at(y), at(x), at(w), n.pieces, n.length, float32(eps), n.group)
}

// RMSNormGrad is dx = plus + r·(w ⊙ dy) - x·r³·mean(w ⊙ dy ⊙ x), r = 1/√(mean(x²) + eps). plus as dx or none.
func (b *Backend) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	n := b.norm("RMSNormGrad", x, w)
	need("RMSNormGrad", "dx", dx, b.Float(), x.Shape...)
	need("RMSNormGrad", "dy", dy, b.Float(), x.Shape...)
	maybe("RMSNormGrad", "plus", plus, b.Float(), x.Shape...)
	b.dev.Launch("rmsnorm_grad"+n.kernel, n.launch, at(dx), at(x), at(w), at(dy), at(plus), n.pieces, n.length,
		float32(eps), n.group)
}

// norm is how the pieces of a norm are spread over threads.
type norm struct {
	kernel string // the end of its name
	launch Launch
	pieces int64
	length int32 // of a piece
	group  int32 // the lanes that share a piece
}

// heldChunks is the chunks of 8 elements that a thread keeps in registers: held of rmsnorm.cu.
const heldChunks = 4

func (b *Backend) norm(op string, x, w kernels.Tensor) norm {
	if w.None() || len(w.Shape) != 1 || w.Len() == 0 || x.Len()%w.Len() != 0 {
		fail(op, "x is %s, w %s: expected whole pieces of the length of w", describe(x), describe(w))
	}
	need(op, "x", x, b.Float(), x.Shape...)
	needWeight(op, "w", w, w.Len())
	n := norm{pieces: int64(x.Len() / w.Len()), length: int32(w.Len()), group: 1}
	chunks := (w.Len() + 7) / 8
	if chunks > 32*heldChunks {
		warps := (chunks + 32*heldChunks - 1) / (32 * heldChunks)
		n.launch = Launch{Grid: [3]int{int(n.pieces)}, Block: [3]int{32 * min(warps, 16)}}
		n.kernel = "_rows" + suffix(x.Type, w.Type)
		return n
	}
	for int(n.group) < chunks && n.group < 32 {
		n.group *= 2
	}
	n.launch = threads1(int(n.pieces)*int(n.group), 1)
	n.kernel = "_heads" + suffix(x.Type, w.Type)
	return n
}
