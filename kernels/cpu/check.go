package cpu

import (
	"fmt"
	"slices"

	"loratrain/kernels"
)

// fail reports a mistake in the program that called op.
func fail(op, format string, args ...any) {
	panic(fmt.Sprintf("kernels/cpu: %s: %s", op, fmt.Sprintf(format, args...)))
}

// in is the elements of t, called name in the comment of op, which must have this shape.
func in[E kernels.Element](op, name string, t kernels.Tensor, shape ...int) []E {
	if t.None() || t.Type != kernels.TypeOf[E]() || !slices.Equal(t.Shape, shape) {
		fail(op, "%s is %s, expected %v%v", name, describe(t), kernels.TypeOf[E](), shape)
	}
	return kernels.Slice[E](t)
}

// maybe is in, or nil if t is none.
func maybe[E kernels.Element](op, name string, t kernels.Tensor, shape ...int) []E {
	if t.None() {
		return nil
	}
	return in[E](op, name, t, shape...)
}

// flat is the elements of t whatever its shape.
func flat[E kernels.Element](op, name string, t kernels.Tensor) []E {
	return in[E](op, name, t, t.Shape...)
}

// indices is the elements of t, all of which must be in [0, limit).
func indices(op, name string, t kernels.Tensor, limit int, shape ...int) []int32 {
	ids := in[int32](op, name, t, shape...)
	for i, id := range ids {
		if id < 0 || int(id) >= limit {
			fail(op, "%s[%d] is %d, expected 0 to %d", name, i, id, limit-1)
		}
	}
	return ids
}

// matrixShape is the two dimensions of t.
func matrixShape(op, name string, t kernels.Tensor) (rows, cols int) {
	if t.None() || len(t.Shape) != 2 {
		fail(op, "%s is %s, expected two dimensions", name, describe(t))
	}
	return t.Shape[0], t.Shape[1]
}

// cubeShape is the three dimensions of t.
func cubeShape(op, name string, t kernels.Tensor) (n, rows, cols int) {
	if t.None() || len(t.Shape) != 3 {
		fail(op, "%s is %s, expected three dimensions", name, describe(t))
	}
	return t.Shape[0], t.Shape[1], t.Shape[2]
}

// bytesIn is the memory of t.
func bytesIn(op, name string, t kernels.Tensor) []byte {
	mem, ok := t.Mem.(kernels.Host)
	if !ok || len(mem) != t.Bytes() {
		fail(op, "%s is %s in %T, expected %d bytes of host memory", name, describe(t), t.Mem, t.Bytes())
	}
	return mem
}

func describe(t kernels.Tensor) string {
	if t.None() {
		return "none"
	}
	return t.String()
}
