package cuda

import "loratrain/kernels"

var (
	_ kernels.Profiler   = (*Backend)(nil)
	_ kernels.Accountant = (*Backend)(nil)
	_ kernels.Limited    = (*Backend)(nil)
)

// Profile implements [kernels.Profiler].
func (b *Backend) Profile(f func()) ([]kernels.Took, error) { return b.dev.Profile(f) }

// PeakBytes implements [kernels.Accountant]. What the driver and cuBLAS keep for themselves is not counted.
func (b *Backend) PeakBytes() int { return b.memory.PeakBytes() }
