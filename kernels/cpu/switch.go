package cpu

import "loratrain/kernels"

// bank is a kernels.Switch whose shapes are checked.
type bank[E float] struct {
	a, b    matrix[E]
	gates   []E // (T, experts)
	columns int
	experts int
	rank    int
	scale   E
}

// bankIn checks sw for rows tokens; width 0 says that A is not needed.
func bankIn[E float](op string, sw kernels.Switch, rows, width, out int) bank[E] {
	columns, _ := matrixShape(op, "B", sw.B)
	s := bank[E]{b: dense(in[E](op, "B", sw.B, columns, out), columns, out), columns: columns, scale: E(sw.Scale)}
	if width > 0 {
		s.a = dense(in[E](op, "A", sw.A, width, columns), width, columns)
	}
	if sw.Gates.None() {
		return s
	}
	_, s.experts = matrixShape(op, "gates", sw.Gates)
	s.gates, s.rank = in[E](op, "gates", sw.Gates, rows, s.experts), sw.Rank
	if s.rank < 0 || s.experts*s.rank > columns {
		fail(op, "%d experts of rank %d, expected at most %d columns", s.experts, s.rank, columns)
	}
	return s
}

// gated is dst = s·(u ⊙ Ĝ), spread over the threads.
func (e *engine[E]) gated(dst, u []E, sw bank[E], rows int) {
	e.split(rows, 1, 2*len(u), func(w *worker[E], from, to int) {
		for t := from; t < to; t++ {
			w.applyGates(dst[t*sw.columns:(t+1)*sw.columns], u[t*sw.columns:(t+1)*sw.columns], t, sw, sw.scale)
		}
	})
}

// applyGates is dst = scale·(u ⊙ Ĝ) for the row of token t.
func (w *worker[E]) applyGates(dst, u []E, t int, sw bank[E], scale E) {
	for x := range sw.experts {
		from, to := x*sw.rank, (x+1)*sw.rank
		w.vec.scale(dst[from:to], u[from:to], scale*sw.gates[t*sw.experts+x])
	}
	shared := sw.experts * sw.rank
	w.vec.scale(dst[shared:], u[shared:], scale)
}

// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y
// or none.
func (e *engine[E]) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	const op = "SwitchLinear"
	rows, width := matrixShape(op, "x", x)
	out, _ := matrixShape(op, "w", w)
	s := bankIn[E](op, sw, rows, width, out)
	us, zs := in[E](op, "u", u, rows, s.columns), in[E](op, "z", z, rows, width)
	ys, xs := in[E](op, "y", y, rows, out), in[E](op, "x", x, rows, width)
	addend := maybe[E](op, "plus", plus, rows, out)
	e.linear(op, ys, xs, weightIn[E](op, "w", w, out, width), rows, bias)

	e.multiply(dense(us, rows, s.columns), dense(zs, rows, width), s.a, 1, 0)
	defer e.main().release(e.main().mark())
	gated := e.main().take(rows * s.columns)
	e.gated(gated, us, s, rows)
	e.multiply(dense(ys, rows, out), dense(gated, rows, s.columns), s.b, 1, 1)
	e.add(ys, addend)
}

// SwitchGradHidden is, with v = s·dy·Bᵀ (T, C): du = v ⊙ Ĝ, and dg[t, e] = Σ v[t, c]·u[t, c] over the columns
// c of expert e; dg none if E = 0. du, u (T, C), dg (T, E), dy (T, D_out).
func (e *engine[E]) SwitchGradHidden(du, dg, dy, u kernels.Tensor, sw kernels.Switch) {
	const op = "SwitchGradHidden"
	rows, out := matrixShape(op, "dy", dy)
	s := bankIn[E](op, sw, rows, 0, out)
	dus, us := in[E](op, "du", du, rows, s.columns), in[E](op, "u", u, rows, s.columns)
	dys := in[E](op, "dy", dy, rows, out)
	var dgs []E
	if s.experts > 0 {
		dgs = in[E](op, "dg", dg, rows, s.experts)
	}
	e.multiply(dense(dus, rows, s.columns), dense(dys, rows, out), s.b.t(), s.scale, 0)
	e.split(rows, 1, 4*len(us), func(w *worker[E], from, to int) {
		for t := from; t < to; t++ {
			v, row := dus[t*s.columns:(t+1)*s.columns], us[t*s.columns:(t+1)*s.columns]
			for x := range s.experts {
				dgs[t*s.experts+x] = w.vec.dot(v[x*s.rank:(x+1)*s.rank], row[x*s.rank:(x+1)*s.rank])
			}
			w.applyGates(v, v, t, s, 1)
		}
	})
}

// SwitchGradInput is dx = plus + dy·w + du·Aᵀ. dx (T, D), dy (T, D_out), w (D_out, D), du (T, C), a (D, C) of type
// Param or Float, plus as dx or none.
func (e *engine[E]) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	const op = "SwitchGradInput"
	rows, out := matrixShape(op, "dy", dy)
	width, columns := matrixShape(op, "a", a)
	dxs, addend := in[E](op, "dx", dx, rows, width), maybe[E](op, "plus", plus, rows, width)
	dst := dense(dxs, rows, width)
	dus := dense(in[E](op, "du", du, rows, columns), rows, columns)
	as := dense(in[E](op, "a", a, width, columns), width, columns)
	e.times(dst, dense(in[E](op, "dy", dy, rows, out), rows, out), weightIn[E](op, "w", w, out, width), 0)
	e.multiply(dst, dus, as.t(), 1, 1)
	e.add(dxs, addend)
}

// SwitchGradA adds zᵀ·du to da. da (D, C), z (T, D), du (T, C).
func (e *engine[E]) SwitchGradA(da, z, du kernels.Tensor) {
	const op = "SwitchGradA"
	rows, width := matrixShape(op, "z", z)
	_, columns := matrixShape(op, "du", du)
	e.multiply(dense(in[E](op, "da", da, width, columns), width, columns),
		dense(in[E](op, "z", z, rows, width), rows, width).t(),
		dense(in[E](op, "du", du, rows, columns), rows, columns), 1, 1)
}

// SwitchGradB adds s·(u ⊙ Ĝ)ᵀ·dy to db. db (C, D_out), u (T, C), dy (T, D_out).
func (e *engine[E]) SwitchGradB(db, u, dy kernels.Tensor, sw kernels.Switch) {
	const op = "SwitchGradB"
	rows, out := matrixShape(op, "dy", dy)
	s := bankIn[E](op, sw, rows, 0, out)
	us := in[E](op, "u", u, rows, s.columns)
	dys := dense(in[E](op, "dy", dy, rows, out), rows, out)
	defer e.main().release(e.main().mark())
	gated := e.main().take(len(us))
	e.gated(gated, us, s, rows)
	e.multiply(dense(in[E](op, "db", db, s.columns, out), s.columns, out), dense(gated, rows, s.columns).t(), dys, 1, 1)
}
