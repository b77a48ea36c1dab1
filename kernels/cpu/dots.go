package cpu

// dots multiplies by inner products of rows, the fastest form that plain Go with SIMD has: operands that lie
// otherwise are turned into scratch memory first.
type dots[E float] struct{}

const (
	dotsDepth  = 512     // longest inner product when operands must be turned
	dotsPanel  = 1 << 18 // elements of b that are turned at a time
	dotsSecond = 1 << 16 // elements of a that stay in the second-level cache
	dotsFirst  = 1 << 12 // elements of b that stay in the first-level cache
	dotsTile   = 16      // side of the squares in which an operand is turned
)

func (dots[E]) multiply(w *worker[E], c, a, b matrix[E], alpha, beta E) {
	defer w.release(w.mark())
	depth, width := a.cols, c.cols
	if a.turned || !b.turned {
		depth = min(depth, dotsDepth)
	}
	var turnedA, turnedB []E
	if a.turned {
		turnedA = w.take(a.rows * depth)
	}
	if !b.turned {
		width = min(width, max(1, dotsPanel/depth))
		turnedB = w.take(width * depth)
	}
	for from := 0; from < a.cols; from += depth {
		to := min(a.cols, from+depth)
		rows := straight(a.colPart(from, to), turnedA)
		for left := 0; left < c.cols; left += width {
			right := min(c.cols, left+width)
			columns := straight(b.part(from, to, left, right).t(), turnedB)
			products(w, c.colPart(left, right), rows, columns, alpha, beta)
		}
		beta = 1
	}
}

// products is c = alpha·a·btᵀ + beta·c: all pairs of rows of a and bt, in an order that reads them from the caches.
func products[E float](w *worker[E], c, a, bt matrix[E], alpha, beta E) {
	defer w.release(w.mark())
	high := max(1, dotsSecond/a.cols)
	wide := max(4, dotsFirst/a.cols/4*4)
	tmp := w.take(wide)
	for top := 0; top < a.rows; top += high {
		bottom := min(a.rows, top+high)
		for left := 0; left < bt.rows; left += wide {
			right := min(bt.rows, left+wide)
			block := bt.rowPart(left, right)
			for i := top; i < bottom; i++ {
				dst := c.row(i)[left:right]
				if alpha == 1 && beta == 0 {
					w.vec.dots(dst, block.data, a.row(i), block.stride)
					continue
				}
				w.vec.dots(tmp[:len(dst)], block.data, a.row(i), block.stride)
				for j, x := range tmp[:len(dst)] {
					if beta == 0 {
						dst[j] = alpha * x
					} else {
						dst[j] = alpha*x + beta*dst[j]
					}
				}
			}
		}
	}
}

// straight is m, copied to dst row by row if it is turned.
func straight[E float](m matrix[E], dst []E) matrix[E] {
	if !m.turned {
		return m
	}
	for i0 := 0; i0 < m.rows; i0 += dotsTile {
		i1 := min(m.rows, i0+dotsTile)
		for j0 := 0; j0 < m.cols; j0 += dotsTile {
			j1 := min(m.cols, j0+dotsTile)
			for j := j0; j < j1; j++ {
				column := m.data[j*m.stride+i0 : j*m.stride+i1]
				for i, x := range column {
					dst[(i0+i)*m.cols+j] = x
				}
			}
		}
	}
	return dense(dst[:m.rows*m.cols], m.rows, m.cols)
}
