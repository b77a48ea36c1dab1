package cpu

// dots multiplies by inner products of rows, the fastest form that plain Go with SIMD has: operands that lie
// otherwise are turned into scratch memory first.
type dots[E float] struct{}

const (
	dotsBlock = 1 << 15 // elements of b that stay in the second-level cache while all rows of a pass
	dotsDepth = 512     // longest inner product when operands must be turned
	dotsTile  = 16      // side of the squares in which an operand is turned
)

func (dots[E]) multiply(w *worker[E], c, a, b matrix[E], alpha, beta E) {
	depth := a.cols
	if a.turned || !b.turned {
		depth = min(depth, dotsDepth)
	}
	for from := 0; from < a.cols; from += depth {
		to := min(a.cols, from+depth)
		if from > 0 {
			beta = 1
		}
		dotsPanel(w, c, a.colPart(from, to), b.rowPart(from, to), alpha, beta)
	}
}

// dotsPanel is multiply for a depth at which turned operands fit scratch memory.
func dotsPanel[E float](w *worker[E], c, a, b matrix[E], alpha, beta E) {
	defer w.release(w.mark())
	if a.turned {
		a = straight(a, w.take(a.rows*a.cols))
	}
	step := min(c.cols, max(4, dotsBlock/a.cols/4*4))
	row := w.take(step)
	var tmp []E
	if !b.turned {
		tmp = w.take(step * b.rows)
	}
	for from := 0; from < c.cols; from += step {
		to := min(c.cols, from+step)
		bt := b.colPart(from, to).t() // (to-from, depth)
		if bt.turned {
			bt = straight(bt, tmp[:bt.rows*bt.cols])
		}
		for i := range c.rows {
			dst := c.row(i)[from:to]
			if alpha == 1 && beta == 0 {
				w.vec.dots(dst, bt.data, a.row(i), bt.stride)
				continue
			}
			products := row[:len(dst)]
			w.vec.dots(products, bt.data, a.row(i), bt.stride)
			switch beta {
			case 0:
				w.vec.scale(dst, products, alpha)
			default:
				if beta != 1 {
					w.vec.scale(dst, dst, beta)
				}
				w.vec.addScaled(dst, alpha, products)
			}
		}
	}
}

// straight copies a turned matrix to dst, row by row.
func straight[E float](m matrix[E], dst []E) matrix[E] {
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
	return dense(dst, m.rows, m.cols)
}
