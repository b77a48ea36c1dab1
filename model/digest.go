package model

import (
	"loratrain/checkpoints"
	"loratrain/kernels"
)

// Digest identifies the base: [checkpoints.Digest] over its tensors under transformers' names, as Weights holds them
// (quantised ones widened, an output projection that is the embedding only once). How a folder divides them into
// files, where it lies and what else is in it do not matter. The first call reads all weights; it must come before
// Close.
func (b *Base) Digest() string { return b.digest() }

var digestTypes = map[kernels.Type]checkpoints.Type{
	kernels.F64: checkpoints.F64, kernels.F32: checkpoints.F32, kernels.BF16: checkpoints.BF16,
}

func digestOf(all []slot) string {
	tensors := make([]checkpoints.Tensor, len(all))
	for i, s := range all {
		t := *s.dst
		tensors[i] = checkpoints.Tensor{Name: s.name, Type: digestTypes[t.Type], Shape: t.Shape, Data: t.Mem.(kernels.Host)}
	}
	return checkpoints.Digest(tensors)
}
