package model

import (
	"iter"

	"loratrain/checkpoints"
)

// Digest identifies the base: [checkpoints.Digest] over its tensors under transformers' names, as Weights holds them
// (quantised ones widened, an output projection that is the embedding only once). How a folder divides them into
// files, where it lies and what else is in it do not matter. The first call reads all weights; it must come before
// Close.
func (b *Base) Digest() string { return b.digest() }

func digestOf(all []slot) string {
	tensors := make([]checkpoints.Tensor, len(all))
	for i, s := range all {
		tensors[i] = checkpoints.Tensor{Name: s.name, Type: fileTypes[s.dst.Type], Shape: s.dst.Shape}
	}
	return checkpoints.DigestOf(tensors, func(i int) iter.Seq[[]byte] { return pieces(*all[i].dst) })
}
