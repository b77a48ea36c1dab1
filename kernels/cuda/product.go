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

// productTail is the tiles that take the columns which fill no whole wave: the narrowest ones.
const productTail = 128

// productCost is about how long so many columns take in tiles of one width: what lies around a tile takes the time of about 64 columns.
func (b *Backend) productCost(rows, cols, width int) int {
	return ceil(ceil(rows, 2*productRows)*ceil(cols, width), b.clusters()) * (width + 64)
}

// productLaunch is what another launch and a tail of narrow tiles cost, in columns' time at a depth of 1: some 8 µs.
const productLaunch = 200000

// productTiles divides the columns of a product: tiles of which width take how many of them, from the left. Where tiles fill a last wave badly,
// narrow ones take the columns of that wave.
func (b *Backend) productTiles(rows, cols, depth int) (first, firstWidth, restWidth int) {
	groups, least := ceil(rows, 2*productRows), 0
	for _, width := range productWidths {
		if cost := b.productCost(rows, cols, width); least == 0 || cost < least {
			first, firstWidth, restWidth, least = cols, width, 0, cost
		}
		whole := ceil(cols, width) * groups / b.clusters() * b.clusters() / groups * width // columns in whole waves
		if width == productTail || whole == 0 || whole >= cols {
			continue
		}
		cost := b.productCost(rows, whole, width) + b.productCost(rows, cols-whole, productTail) + productLaunch/depth
		if cost < least {
			first, firstWidth, restWidth, least = whole, width, productTail, cost
		}
	}
	return first, firstWidth, restWidth
}

// clusters is how many clusters of two blocks run at once.
func (b *Backend) clusters() int { return b.info.Multiprocessors / 2 }

// switchProductTakes says whether [Backend.switchProduct] takes these operands.
func (b *Backend) switchProductTakes(operands ...kernels.Tensor) bool {
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

// switchProduct is y = plus + x·wᵀ + h·v or, deep, y = plus + x·w + h·vᵀ; plus may be none. [Backend.switchProductTakes] must allow it.
func (b *Backend) switchProduct(y, x, w, h, v, plus kernels.Tensor, deep bool) {
	cols := y.Shape[1]
	first, width, rest := b.productTiles(y.Shape[0], cols, x.Shape[1])
	b.switchProductColumns(y, x, w, h, v, plus, deep, 0, first, width)
	if first < cols {
		b.switchProductColumns(y, x, w, h, v, plus, deep, first, cols-first, rest)
	}
}

// switchProductColumns is that for n columns from one on, in tiles of a width.
func (b *Backend) switchProductColumns(y, x, w, h, v, plus kernels.Tensor, deep bool, from, n, width int) {
	rows, cols := y.Shape[0], y.Shape[1]
	whole := func(t kernels.Tensor, boxRows int) Box {
		return Box{Of: dense(t, t.Shape[0], t.Shape[1]), Rows: boxRows}
	}
	// Those columns of y, as columns or rows of a matrix. Each block of a cluster brings half of a panel of w and v: of its columns, or of its
	// depth where the panel's rows are that.
	columns := func(t kernels.Tensor, boxRows int) Box {
		m := dense(t, t.Shape[0], n)
		m.At, m.Stride = m.At+Address(from*t.Type.Size()), cols
		return Box{Of: m, Rows: boxRows}
	}
	alongRows := func(t kernels.Tensor) Box {
		m := dense(t, n, t.Shape[1])
		m.At += Address(from * t.Shape[1] * t.Type.Size())
		return Box{Of: m, Rows: width / 2}
	}
	name, wBox, vBox := "product_along_", alongRows, func(t kernels.Tensor) Box { return columns(t, productDepth/2) }
	if deep {
		name, wBox, vBox = "product_deep_", vBox, wBox
	}
	more := at(plus)
	if !plus.None() {
		more += Address(from * plus.Type.Size())
	}
	tiles := ceil(rows, 2*productRows) * ceil(n, width)
	b.dev.Launch(name+strconv.Itoa(width),
		Launch{Grid: [3]int{2 * min(b.clusters(), tiles)}, Block: [3]int{productThreads}, Shared: productShared(width)},
		whole(x, productRows), wBox(w), whole(h, productRows), vBox(v), columns(y, 64), more,
		struct{ rows, cols, stride, depth, more int32 }{int32(rows), int32(n), int32(cols), int32(x.Shape[1]), int32(h.Shape[1])})
}
