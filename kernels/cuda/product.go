package cuda

import (
	"strconv"

	"loratrain/kernels"
)

// The shape of product_sm90.cu's blocks.
const (
	productThreads = 384
	productRows    = 128 // of a block; a cluster of two blocks has twice as many
	productDepth   = 64
	productPanel   = 64 * 64 * 2 // bytes
)

// productWidths are the columns of a tile that the kernels are made for.
var productWidths = []int{256, 192, 128}

// productShared is the shared memory of a kernel with tiles of so many columns: stages with two barriers each, and two panels for each of two
// warpgroups.
func productShared(width int) int {
	stage := (productRows + width) * productDepth * 2
	stages := min(8, (226<<10-4*productPanel)/stage)
	return stages*(stage+16) + 4*productPanel
}

// productWidth is how wide the tiles of a product of so many rows and columns should be: what lies around a tile takes the time of about 64
// columns.
func (b *Backend) productWidth(rows, cols int) int {
	best, least := 0, 0
	for _, width := range productWidths {
		tiles := ceil(rows, 2*productRows) * ceil(cols, width)
		if cost := ceil(tiles, b.clusters()) * (width + 64); best == 0 || cost < least {
			best, least = width, cost
		}
	}
	return best
}

// clusters is how many clusters of two blocks run at once.
func (b *Backend) clusters() int { return b.info.Multiprocessors / 2 }

// together says whether [Backend.both] takes these operands.
func (b *Backend) together(operands ...kernels.Tensor) bool {
	if b.info.Major != 9 || b.info.Minor != 0 {
		return false
	}
	for _, t := range operands {
		// Copies want rows of whole 16 bytes.
		if !t.None() && (t.Type != kernels.BF16 || at(t)%16 != 0 || t.Shape[1]%8 != 0) {
			return false
		}
	}
	return true
}

// both is y = plus + x·wᵀ + h·v or, deep, y = plus + x·w + h·vᵀ, in one kernel; plus may be none. [Backend.together] must allow it.
func (b *Backend) both(y, x, w, h, v, plus kernels.Tensor, deep bool) {
	rows, cols, depth, more := y.Shape[0], y.Shape[1], x.Shape[1], h.Shape[1]
	width := b.productWidth(rows, cols)
	box := func(t kernels.Tensor, rows int) Box { return Box{dense(t, t.Shape[0], t.Shape[1]), rows} }
	// Each block of a cluster brings half of a panel: of its columns, or of its depth where the panel's rows are that.
	name, wRows, vRows := "product_along_", width/2, productDepth/2
	if deep {
		name, wRows, vRows = "product_deep_", productDepth/2, width/2
	}
	tiles := ceil(rows, 2*productRows) * ceil(cols, width)
	b.dev.Launch(name+strconv.Itoa(width),
		Launch{Grid: [3]int{2 * min(b.clusters(), tiles)}, Block: [3]int{productThreads}, Shared: productShared(width)},
		box(x, productRows), box(w, wRows), box(h, productRows), box(v, vRows), box(y, 64), at(plus),
		struct{ rows, cols, depth, more int32 }{int32(rows), int32(cols), int32(depth), int32(more)})
}
