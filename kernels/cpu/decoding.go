package cpu

import "loratrain/kernels"

// Top2 is Gate in short form: ids of the two largest logits, the larger first, and their softmax. Ties go to the
// lower expert. ids (T, 2) i32, weights (T, 2), logits (T, E).
func (e *engine[E]) Top2(ids, weights, logits kernels.Tensor) {
	const op = "Top2"
	rows, experts := matrixShape(op, "logits", logits)
	if experts < 2 && rows > 0 {
		fail(op, "logits are %v, expected at least two experts", logits)
	}
	id, ws := in[int32](op, "ids", ids, rows, 2), in[E](op, "weights", weights, rows, 2)
	ls := in[E](op, "logits", logits, rows, experts)
	for t := range rows {
		top := topTwo(ls[t*experts : (t+1)*experts])
		for i, place := range top.places() {
			id[2*t+i], ws[2*t+i] = int32(place.expert), place.weight
		}
	}
}

// experts is one layer's experts as an export holds them.
type experts[E float] struct {
	a, b                    weight[E] // (E·R, D) and (E·R, D_out)
	count, rank, width, out int
}

func expertsIn[E float](op string, a, b kernels.Tensor) experts[E] {
	count, rank, width := cubeShape(op, "a", a)
	_, _, out := cubeShape(op, "b", b)
	in := experts[E]{count: count, rank: rank, width: width, out: out}
	if b.Shape[0] != count || b.Shape[1] != rank {
		fail(op, "a is %v, b %v: expected the same experts and rank", a, b)
	}
	in.a = weightIn[E](op, "a", a.Reshape(count*rank, width), count*rank, width)
	in.b = weightIn[E](op, "b", b.Reshape(count*rank, out), count*rank, out)
	return in
}

// Experts adds s·Σ_k weights[t, k]·B[i]ᵀ·(A[i]·x[t]), i = ids[t, k], to y[t]. y (T, D_out), x (T, D), a (E, R, D),
// b (E, R, D_out), ids (T, n) i32, weights (T, n).
func (e *engine[E]) Experts(y, x, a, b, ids, weights kernels.Tensor, scale float64) {
	const op = "Experts"
	m := expertsIn[E](op, a, b)
	rows, n := matrixShape(op, "ids", ids)
	ys, xs := in[E](op, "y", y, rows, m.out), in[E](op, "x", x, rows, m.width)
	id, ws := indices(op, "ids", ids, m.count, rows, n), in[E](op, "weights", weights, rows, n)
	e.split(rows, 1, rows*n*m.rank*(m.width+m.out)/4, func(w *worker[E], from, to int) {
		defer w.release(w.mark())
		tmp, hidden := w.take(m.rank*max(m.width, m.out)), w.take(m.rank)
		for t := from; t < to; t++ {
			for k := range n {
				at := int(id[t*n+k]) * m.rank
				down := m.a.block(w, tmp, at, at+m.rank)
				w.vec.dots(hidden, down.data, xs[t*m.width:(t+1)*m.width], m.width)
				up := m.b.block(w, tmp, at, at+m.rank)
				for r := range m.rank {
					w.vec.addScaled(ys[t*m.out:(t+1)*m.out], E(scale)*ws[t*n+k]*hidden[r], up.row(r))
				}
			}
		}
	})
}

// Spread is gates[t, e] = Σ_k weights[t, k] over the k with ids[t, k] = e: a token's experts as SwitchLinear takes them. gates (T, E),
// ids (T, n) i32, weights (T, n).
func (e *engine[E]) Spread(gates, ids, weights kernels.Tensor) {
	const op = "Spread"
	rows, experts := matrixShape(op, "gates", gates)
	_, n := matrixShape(op, "ids", ids)
	gs, id, ws := in[E](op, "gates", gates, rows, experts), indices(op, "ids", ids, experts, rows, n), in[E](op, "weights", weights, rows, n)
	clear(gs)
	for i, expert := range id {
		gs[i/n*experts+int(expert)] += ws[i]
	}
}

// Transpose is y[d, c] = x[c, d], bit for bit. y (D, C), x (C, D) of one type: F32, BF16 or F64.
func (e *engine[E]) Transpose(y, x kernels.Tensor) {
	const op = "Transpose"
	rows, cols := matrixShape(op, "x", x)
	switch x.Type {
	case kernels.F32:
		transpose(e, in[float32](op, "y", y, cols, rows), in[float32](op, "x", x, rows, cols), rows, cols)
	case kernels.BF16:
		transpose(e, in[kernels.BFloat16](op, "y", y, cols, rows), in[kernels.BFloat16](op, "x", x, rows, cols), rows, cols)
	default:
		transpose(e, in[float64](op, "y", y, cols, rows), in[float64](op, "x", x, rows, cols), rows, cols)
	}
}

// transposeTile is the rows and columns that are transposed at a time: the cache lines of both matrices stay until they are used up.
const transposeTile = 32

func transpose[E float, D any](e *engine[E], y, x []D, rows, cols int) {
	e.split(cols, transposeTile, len(x), func(_ *worker[E], from, to int) {
		for ; from < to; from += transposeTile {
			for first := 0; first < rows; first += transposeTile {
				last := min(first+transposeTile, rows)
				for c := from; c < min(from+transposeTile, to); c++ {
					for r := first; r < last; r++ {
						y[c*rows+r] = x[r*cols+c]
					}
				}
			}
		}
	})
}

// Append is cache[at[t]] = x[t], where at[t] ≥ 0. cache (P, K·d), x (T, K·d), at (T) i32.
func (e *engine[E]) Append(cache, x, at kernels.Tensor) {
	const op = "Append"
	rows, cols := matrixShape(op, "x", x)
	places, _ := matrixShape(op, "cache", cache)
	dst, src := in[E](op, "cache", cache, places, cols), in[E](op, "x", x, rows, cols)
	for t, p := range in[int32](op, "at", at, rows) {
		if int(p) >= places {
			fail(op, "at[%d] is %d, expected less than %d", t, p, places)
		}
		if p >= 0 {
			copy(dst[int(p)*cols:(int(p)+1)*cols], src[t*cols:])
		}
	}
}
