package cpu

import "loratrain/kernels"

// matrix is a view of a row-major array or, if turned, of its transpose.
type matrix[E float] struct {
	data       []E
	rows, cols int
	stride     int // from one row of the array to the next
	turned     bool
}

func dense[E float](data []E, rows, cols int) matrix[E] {
	return matrix[E]{data: data, rows: rows, cols: cols, stride: cols}
}

// t is the transpose, sharing memory.
func (m matrix[E]) t() matrix[E] {
	m.rows, m.cols, m.turned = m.cols, m.rows, !m.turned
	return m
}

// part is the rows [r0, r1) and columns [c0, c1), sharing memory.
func (m matrix[E]) part(r0, r1, c0, c1 int) matrix[E] {
	m.rows, m.cols = r1-r0, c1-c0
	if m.turned {
		r0, c0 = c0, r0
	}
	if m.rows == 0 || m.cols == 0 {
		m.data = nil
	} else {
		m.data = m.data[r0*m.stride+c0:]
	}
	return m
}

func (m matrix[E]) rowPart(r0, r1 int) matrix[E] { return m.part(r0, r1, 0, m.cols) }
func (m matrix[E]) colPart(c0, c1 int) matrix[E] { return m.part(0, m.rows, c0, c1) }

// row is one row of a matrix that is not turned.
func (m matrix[E]) row(i int) []E { return m.data[i*m.stride : i*m.stride+m.cols] }

// multiplier multiplies matrices on one thread.
type multiplier[E float] interface {
	// multiply is c = alpha·a·b + beta·c, where c is not read if beta is 0, and not turned.
	multiply(w *worker[E], c, a, b matrix[E], alpha, beta E)
}

// multiply is c = alpha·a·b + beta·c on this worker's thread.
func (w *worker[E]) multiply(c, a, b matrix[E], alpha, beta E) {
	if c.rows == 0 || c.cols == 0 {
		return
	}
	if a.cols == 0 {
		for i := range c.rows {
			if beta == 0 {
				clear(c.row(i))
			} else {
				w.vec.scale(c.row(i), c.row(i), beta)
			}
		}
		return
	}
	w.engine.matrix.multiply(w, c, a, b, alpha, beta)
}

// multiply is c = alpha·a·b + beta·c, the longer side of c cut between the threads.
func (e *engine[E]) multiply(c, a, b matrix[E], alpha, beta E) {
	work := c.rows * c.cols * (a.cols + 1) / 8
	if c.rows >= c.cols {
		e.split(c.rows, 8, work, func(w *worker[E], from, to int) {
			w.multiply(c.rowPart(from, to), a.rowPart(from, to), b, alpha, beta)
		})
		return
	}
	e.split(c.cols, 16, work, func(w *worker[E], from, to int) {
		w.multiply(c.colPart(from, to), a, b.colPart(from, to), alpha, beta)
	})
}

// weight is a frozen matrix of any type, row by row.
type weight[E float] struct {
	same       []E // the elements, if they are of type E
	bf16       []kernels.BFloat16
	f32        []float32
	f64        []float64
	rows, cols int
}

// weightIn is t, called name in the comment of op, which must have this shape.
func weightIn[E float](op, name string, t kernels.Tensor, rows, cols int) weight[E] {
	w := weight[E]{rows: rows, cols: cols}
	switch t.Type {
	case kernels.TypeOf[E]():
		w.same = in[E](op, name, t, rows, cols)
	case kernels.BF16:
		w.bf16 = in[kernels.BFloat16](op, name, t, rows, cols)
	case kernels.F64:
		w.f64 = in[float64](op, name, t, rows, cols)
	default:
		w.f32 = in[float32](op, name, t, rows, cols)
	}
	return w
}

// widen is the elements from, from+1, … in the type E.
func (m weight[E]) widen(w *worker[E], dst []E, from int) {
	to := from + len(dst)
	switch {
	case m.same != nil:
		copy(dst, m.same[from:to])
	case m.bf16 != nil:
		w.vec.widen(dst, m.bf16[from:to])
	case m.f32 != nil:
		convert(dst, m.f32[from:to])
	case m.f64 != nil:
		convert(dst, m.f64[from:to])
	}
}

func convert[E, F float](dst []E, src []F) {
	for i, x := range src {
		dst[i] = E(x)
	}
}

// block is the rows [from, to) in the type E: the weight's own memory, or tmp.
func (m weight[E]) block(w *worker[E], tmp []E, from, to int) matrix[E] {
	if m.same != nil {
		return dense(m.same[from*m.cols:to*m.cols], to-from, m.cols)
	}
	tmp = tmp[:(to-from)*m.cols]
	m.widen(w, tmp, from*m.cols)
	return dense(tmp, to-from, m.cols)
}

// panelSize is the elements of a weight that are widened at a time, for products with many rows.
const panelSize = 1 << 20

// panels calls f with all rows of m, or with so many at a time that the widened ones stay in the cache.
func (e *engine[E]) panels(m weight[E], f func(from, to int, panel matrix[E])) {
	if m.same != nil || m.rows*m.cols == 0 {
		f(0, m.rows, dense(m.same, m.rows, m.cols))
		return
	}
	w := e.main()
	defer w.release(w.mark())
	step := min(m.rows, max(1, panelSize/m.cols))
	tmp := w.take(step * m.cols)
	for from := 0; from < m.rows; from += step {
		to := min(m.rows, from+step)
		e.split((to-from)*m.cols, 64, (to-from)*m.cols, func(w *worker[E], a, b int) {
			m.widen(w, tmp[a:b], from*m.cols+a)
		})
		f(from, to, dense(tmp[:(to-from)*m.cols], to-from, m.cols))
	}
}

// row is the elements of a frozen vector in the type E: its own memory, or scratch of the main worker.
func (e *engine[E]) row(op, name string, t kernels.Tensor) []E {
	m := weightIn[E](op, name, kernels.Tensor{Shape: []int{1, t.Len()}, Type: t.Type, Mem: t.Mem}, 1, t.Len())
	if m.same != nil {
		return m.same
	}
	row := e.main().take(t.Len())
	m.widen(e.main(), row, 0)
	return row
}
