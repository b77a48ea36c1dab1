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

// The shape of thin_sm90.cuh's blocks, which are for Hopper.
const (
	tallColumns = 64 // at most
	tallExperts = 16 // that switch_grad_b applies the gates of
	tallThreads = 256
	tallStages  = 7 // at most
	// What a stage needs for the gates, and the shared memory that the end of a tile needs.
	tallGatesBytes  = tallExperts * (thinTile + 4) * 4
	tallFinishBytes = 2 * thinTile * (thinTile + 4) * 4
	// The shared memory of a multiprocessor, and what each block takes besides its own.
	tallSharedBytes, tallBlockBytes = 228 << 10, 1<<10 + 256
)

// tallClusters is how many blocks may share a tile.
var tallClusters = []int{8, 4, 3, 2, 1}

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

// tall is a launch of a product of thin_sm90.cuh.
type tall struct {
	tile    int // rows of the long operand that a cluster has
	cluster int // blocks
	stages  int
	launch  Launch
}

// name is the kernel's.
func (t tall) name(op string) string {
	return op + "_tile" + strconv.Itoa(t.tile) + "_cluster" + strconv.Itoa(t.cluster)
}

func (t tall) blocks() int { return t.launch.Grid[0] * t.launch.Grid[1] }

// tallTakes says whether thin_sm90.cuh takes a product that thin.cuh takes.
func (b *Backend) tallTakes(columns int) bool {
	return b.info.Major == 9 && b.info.Minor == 0 && columns <= tallColumns
}

// tall is the launch for a product (rows, depth)·(depth, columns) with tiles of so many rows. What is best was measured on an H100:
// about as many blocks as there are multiprocessors, with much shared memory each; if there are more tiles, many blocks with little.
func (b *Backend) tall(rows, depth, tile int, gated bool) tall {
	count, deep, processors := ceil(rows, tile), ceil(depth, thinTile), b.info.Multiprocessors
	t := tall{tile: tile, cluster: 1}
	for _, n := range tallClusters {
		room := processors
		if n > 2 {
			room = processors * 4 / 5 // larger clusters leave some multiprocessors of a group without work
		}
		if count*n <= room && 2*n <= deep {
			t.cluster = n
			break
		}
	}
	// Registers leave room for three blocks on a multiprocessor, but where there are gates for two.
	most := 3
	if gated {
		most = 2
	}
	const fills = 2.7 // of three blocks on each multiprocessor, what two to a tile may come to
	if most == 3 && count > processors && float64(count*2) <= fills*float64(processors) {
		t.cluster = 2
	}
	together := min(most, ceil(count*t.cluster, processors))
	if tile == thinTile {
		together = max(2, together)
	}
	stage := panelBytes * (1 + tile/thinTile)
	if gated {
		stage += tallGatesBytes
	}
	t.stages = min(tallStages, (tallSharedBytes/together-tallBlockBytes)/stage, max(2, ceil(deep, t.cluster)))
	t.launch = Launch{
		Grid: [3]int{count, t.cluster}, Block: [3]int{tallThreads}, Shared: max(t.stages*stage, tallFinishBytes),
	}
	return t
}

// tallGated is tall with the tiles that suit a product of thin_sm90.cuh that applies gates. Large ones apply them less often.
func (b *Backend) tallGated(rows, depth int) tall {
	small, large := b.tall(rows, depth, thinTile, true), b.tall(rows, depth, 2*thinTile, true)
	if small.blocks() > b.info.Multiprocessors || large.blocks() >= small.blocks() {
		return large
	}
	return small
}
