package cuda

import "loratrain/kernels"

// sumTerms is how many tensors one launch of sum adds up.
const sumTerms = 16

// Sum is y = Σ xs, elementwise.
func (b *Backend) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	const op = "Sum"
	if len(xs) == 0 {
		fail(op, "no terms")
	}
	typ := y.Type
	if typ != b.Float() && typ != b.Param() {
		fail(op, "y is %s", describe(y))
	}
	for _, x := range append([]kernels.Tensor{y}, xs...) {
		need(op, "a term", x, typ, y.Shape...)
	}
	n := y.Len()
	// More terms than one launch takes are added to what the launches before it left in y.
	for first := true; len(xs) > 0; first = false {
		var terms struct{ at [sumTerms]Address }
		count := 0
		if !first {
			terms.at[0], count = at(y), 1
		}
		for ; count < sumTerms && len(xs) > 0; count, xs = count+1, xs[1:] {
			terms.at[count] = at(xs[0])
		}
		b.dev.Launch("sum"+suffix(typ), threads1(n, 8), at(y), terms, int32(count), int64(n))
	}
}
