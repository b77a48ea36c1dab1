package cuda

import (
	"math"

	"loratrain/kernels"
)

// Dropout zeroes elements with probability rate and divides the others by 1 - rate. Element i is zeroed if
// the upper 24 bits of [kernels.Random](key[0], key[1], site).At(i) are below rate·2²⁴, so that the same call on a
// gradient is its gradient. y, x of the same shape, key (2) i32: a seed and the step.
func (b *Backend) Dropout(y, x, key kernels.Tensor, site int, rate float64) {
	const op = "Dropout"
	b.alike(op, []string{"y", "x"}, y, x)
	need(op, "key", key, kernels.I32, 2)
	b.dev.Launch("dropout"+suffix(y.Type), threads1(y.Len(), 8), at(y), at(x), at(key),
		uint64(site), uint32(math.Ceil(rate*(1<<24))), float32(1/(1-rate)), int64(y.Len()))
}
