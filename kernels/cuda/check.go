package cuda

import (
	"fmt"
	"slices"

	"loratrain/kernels"
)

// fail reports a mistake in the program that called op.
func fail(op, format string, args ...any) {
	panic(fmt.Sprintf("kernels/cuda: %s: %s", op, fmt.Sprintf(format, args...)))
}

// need fails unless t, called name in the comment of op, has this type and shape and lies on the device.
func need(op, name string, t kernels.Tensor, typ kernels.Type, shape ...int) {
	if t.None() || t.Type != typ || !slices.Equal(t.Shape, shape) {
		fail(op, "%s is %s, expected %v%v", name, describe(t), typ, shape)
	}
	onDevice(op, name, t)
}

// maybe is need for an operand that may be none.
func maybe(op, name string, t kernels.Tensor, typ kernels.Type, shape ...int) {
	if !t.None() {
		need(op, name, t, typ, shape...)
	}
}

// needWeight is need for a frozen weight, which is F32, BF16 or F64.
func needWeight(op, name string, t kernels.Tensor, shape ...int) {
	if t.None() || t.Type == kernels.I32 || !slices.Equal(t.Shape, shape) {
		fail(op, "%s is %s, expected a weight of shape %v", name, describe(t), shape)
	}
	onDevice(op, name, t)
}

func onDevice(op, name string, t kernels.Tensor) {
	if m, ok := t.Mem.(Memory); !ok || m.Bytes != t.Bytes() {
		fail(op, "%s is %s in %T, expected %d bytes of the device's memory", name, describe(t), t.Mem, t.Bytes())
	}
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

func describe(t kernels.Tensor) string {
	if t.None() {
		return "none"
	}
	return t.String()
}
