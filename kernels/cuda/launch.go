package cuda

import (
	"fmt"

	"loratrain/kernels"
)

// suffix is how kernels are named that exist for several types: rmsnorm_bf16_f32 has activations of bf16 and weights of f32.
func suffix(types ...kernels.Type) string {
	s := ""
	for _, t := range types {
		s += "_" + t.String()
	}
	return s
}

// threads1 is enough blocks of 256 threads for n of them, each with per elements of its own.
func threads1(n, per int) Launch {
	work := (n + per - 1) / per
	return Launch{Grid: [3]int{(work + 255) / 256}, Block: [3]int{256}}
}

// rowBlocks is a block for each of rows, with a thread for each 8 of its cols elements or, of long rows, for some of them.
func rowBlocks(rows, cols int) Launch {
	return Launch{Grid: [3]int{rows}, Block: [3]int{min(256, (cols+255)/256*32)}}
}

// at is the address of a tensor's first element; 0 of none.
func at(t kernels.Tensor) Address {
	if t.None() {
		return 0
	}
	return t.Mem.(Memory).At
}

// dense is a whole tensor as a matrix without gaps.
func dense(t kernels.Tensor, rows, cols int) Matrix {
	return Matrix{At: at(t), Type: t.Type, Rows: rows, Cols: cols, Stride: cols}
}

// scratch is the part of the workspace from an element on, for the operation that runs now. It panics if the workspace is too
// small: operations that need much must work in pieces of [workspaceBytes].
func (b *Backend) scratch(t kernels.Type, offsetBytes int, shape ...int) kernels.Tensor {
	n := kernels.Len(shape...) * t.Size()
	if offsetBytes%16 != 0 || offsetBytes+n > workspaceBytes {
		panic(fmt.Sprintf("kernels/cuda: %d bytes at %d of a workspace of %d", n, offsetBytes, workspaceBytes))
	}
	return kernels.Tensor{Type: t, Shape: shape, Mem: b.workspace.Mem.Slice(offsetBytes, offsetBytes+n)}
}

// rowWarps is a warp for each of n rows.
func rowWarps(n int) Launch { return threads1(32*n, 1) }

// ceil is n/d rounded up.
func ceil(n, d int) int { return (n + d - 1) / d }

// layout hands out parts of the workspace one behind the other.
type layout struct{ used int }

// take is the next part; it is aligned to 256 bytes.
func (l *layout) take(b *Backend, t kernels.Type, shape ...int) kernels.Tensor {
	x := b.scratch(t, l.used, shape...)
	l.used += ceil(x.Bytes(), 256) * 256
	return x
}
