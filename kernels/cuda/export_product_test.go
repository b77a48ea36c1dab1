package cuda

// ProductTiles lets tests see how columns are divided.
func (b *Backend) ProductTiles(rows, cols, depth int) (first, firstWidth, restWidth int) {
	return b.productTiles(rows, cols, depth)
}
