package cuda

import (
	"encoding/binary"
	"fmt"

	"loratrain/kernels"
)

// Merge is dst = src + s·Σ_k weights[k]·B[i]ᵀ·A[i], i = ids[k], for every layer in one call. ids (n) i32,
// weights (n).
func (b *Backend) Merge(layers []kernels.Merge, ids, weights kernels.Tensor, scale float64) {
	const op = "Merge"
	n := ids.Len()
	need(op, "ids", ids, kernels.I32, n)
	need(op, "weights", weights, b.Param(), n)
	if len(layers) == 0 {
		return
	}
	var table []byte
	blocks := 0
	for i, l := range layers {
		e := expertsOf(fmt.Sprintf("%s: layers[%d]", op, i), l.A, l.B)
		need(op, "Dst", l.Dst, b.Float(), e.out, e.width)
		needWeight(op, "Src", l.Src, e.out, e.width)
		blocks = max(blocks, ceil(e.out, 64)*ceil(e.width, 128))
		var err error
		if table, err = binary.Append(table, binary.LittleEndian, mergeLayer{
			Dst: at(l.Dst), Src: at(l.Src), A: at(l.A), B: at(l.B),
			Experts: int32(e.count), Rank: int32(e.rank), Width: int32(e.width), Out: int32(e.out),
			Types: [4]int32{int32(l.Src.Type), int32(l.A.Type), int32(l.B.Type)},
		}); err != nil {
			fail(op, "%v", err)
		}
	}
	to := b.scratch(kernels.I32, 0, len(table)/4)
	b.dev.Upload(at(to), table)
	b.dev.Launch("merge"+suffix(b.Float()), Launch{Grid: [3]int{blocks, len(layers)}, Block: [3]int{256}},
		at(to), at(ids), at(weights), int32(n), float32(scale))
}

// mergeLayer is a line of the table that merge.cu reads.
type mergeLayer struct {
	Dst, Src, A, B            Address
	Experts, Rank, Width, Out int32
	Types                     [4]int32 // of Src, A and B
}
