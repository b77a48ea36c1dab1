package cuda

import "loratrain/kernels"

// Scale is y = factor[0]·x, elementwise; factor (1) of type Param. y may be x.
func (b *Backend) Scale(y, x, factor kernels.Tensor) {
	const op = "Scale"
	if y.Type != b.Float() && y.Type != b.Param() {
		fail(op, "y is %s, expected %v or %v", describe(y), b.Float(), b.Param())
	}
	need(op, "y", y, y.Type, y.Shape...)
	need(op, "x", x, y.Type, y.Shape...)
	need(op, "factor", factor, b.Param(), 1)
	b.dev.Launch("scale"+suffix(y.Type), threads1(y.Len(), 8), at(y), at(x), at(factor), int64(y.Len()))
}
