package cuda

import (
	"strconv"

	"loratrain/kernels"
)

// The shape of thin.cuh's blocks.
const (
	thinTile    = 64 // rows, and depth of a stage
	thinThreads = 256
	thinColumns = 256
	thinShares  = 16 // blocks on a tile, at most
	thinStages  = 4  // of a share, at least
	thinExperts = 16 // that switch_grad_b_gated applies the gates of
)

// counterCount is the length of Backend.counters: tiles that several blocks may share at a time.
const counterCount = 1024

// ring is a block's stages in shared memory, of so many panels of [panelBytes].
type ring struct{ stages, panels int }

const panelBytes = thinTile * thinTile * 2

// rings is the ring by the columns that a kernel is made for.
var rings = map[int]ring{32: {5, 2}, 64: {5, 2}, 128: {4, 3}, 256: {3, 5}}

// thin says whether thin.cuh takes products of so many columns with these tensors, where rows of the long one have width elements.
func (b *Backend) thin(columns, width int, ts ...kernels.Tensor) bool {
	if b.float != kernels.BF16 || columns > thinColumns || columns%8 != 0 || width%8 != 0 {
		return false
	}
	for _, t := range ts {
		if at(t)%16 != 0 {
			return false
		}
	}
	return true
}

// tiles is a launch of a product of thin.cuh.
type tiles struct {
	columns int // that the kernel is made for
	launch  Launch
	parts   kernels.Tensor // none where no tile is shared
}

// name is the kernel's.
func (t tiles) name(op string) string { return op + "_" + strconv.Itoa(t.columns) }

// gateBytes is the shared memory for the gates of all stages.
func (t tiles) gateBytes() int { return rings[t.columns].stages * thinTile * thinExperts * 4 }

// tiles is the launch for a product (rows, depth)·(depth, columns). Where there are few tiles several blocks share one, so that
// every multiprocessor has work.
func (b *Backend) tiles(work *layout, rows, depth, columns int) tiles {
	t := tiles{columns: 32}
	for t.columns < columns {
		t.columns *= 2
	}
	count := ceil(rows, thinTile)
	shares := max(1, min(b.info.Multiprocessors/count, depth/(thinStages*thinTile), thinShares))
	if count > counterCount {
		shares = 1
	}
	if shares > 1 {
		t.parts = work.take(b, kernels.F32, count, shares, thinTile, t.columns)
	}
	r := rings[t.columns]
	t.launch = Launch{Grid: [3]int{count, shares}, Block: [3]int{thinThreads}, Shared: r.stages * r.panels * panelBytes}
	return t
}
