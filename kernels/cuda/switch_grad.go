package cuda

import "loratrain/kernels"

// SwitchGradHidden is, with v = s·dy·Bᵀ (T, C): du = v ⊙ Ĝ, and dg[t, e] = Σ v[t, c]·u[t, c] over the columns
// c of expert e; dg none if E = 0. du, u (T, C), dg (T, E), dy (T, D_out).
func (b *Backend) SwitchGradHidden(du, dg, dy, u kernels.Tensor, sw kernels.Switch) {
	const op = "SwitchGradHidden"
	rows, out := matrixShape(op, "dy", dy)
	columns, _ := matrixShape(op, "B", sw.B)
	s := b.bankOf(op, sw, rows, columns)
	b.needTrained(op, "B", sw.B, columns, out)
	need(op, "dy", dy, b.float, rows, out)
	need(op, "du", du, b.float, rows, columns)
	need(op, "u", u, b.float, rows, columns)
	if s.experts > 0 {
		need(op, "dg", dg, b.Param(), rows, s.experts)
	} else {
		dg = kernels.Tensor{}
	}

	var work layout
	up := b.inFloat(&work, sw.B)
	pieces(rows, columns, func(from, n int) {
		work := work
		b.gradHidden(&work, rowsOf(du, from, n), rowsOf(dg, from, n), rowsOf(dy, from, n), rowsOf(u, from, n), up, s.rowsOf(from, n))
	})
}

func (b *Backend) gradHidden(work *layout, du, dg, dy, u, up kernels.Tensor, s bank) {
	rows, out := dy.Shape[0], dy.Shape[1]
	if b.thin(s.columns, out, du, dy, u, up) {
		if b.tallTakes(s.columns) {
			t := b.tall(rows, out, thinTile, false)
			b.dev.Launch(t.name("switch_grad_hidden"), t.launch, at(du), at(dg), at(dy), at(up), at(u), s.kernel(),
				int32(rows), int32(out), int32(s.columns), int32(t.stages))
			return
		}
		t := b.tiles(work, rows, out, s.columns)
		b.dev.Launch(t.name("switch_grad_hidden"), t.launch, at(du), at(dg), at(dy), at(up), at(u), s.kernel(),
			int32(rows), int32(out), int32(s.columns), at(t.parts), at(b.counters))
		return
	}
	v := work.take(b, kernels.F32, rows, s.columns)
	b.product(Product{C: dense(v, rows, s.columns), A: dense(dy, rows, out), B: dense(up, s.columns, out).T(), Alpha: s.scale})
	n, m := du.Len(), rows*s.experts
	b.dev.Launch("switch_grad_gated"+suffix(b.float), threads1(n+m, 1), at(du), at(dg), at(v), at(u), s.kernel(),
		int32(s.columns), int64(n), int64(m))
}

// SwitchGradInput is dx = plus + dy·w + du·Aᵀ. dx (T, D), dy (T, D_out), w (D_out, D), du (T, C), a (D, C) of type
// Param or Float, plus as dx or none.
func (b *Backend) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	const op = "SwitchGradInput"
	b.checkLinearGrad(op, dx, dy, w, plus)
	rows, width := dx.Shape[0], dx.Shape[1]
	_, columns := matrixShape(op, "a", a)
	b.needTrained(op, "a", a, width, columns)
	need(op, "du", du, b.float, rows, columns)

	var work layout
	down := b.inFloat(&work, a)
	if b.switchProductTakes(dx, dy, w, du, down, plus) {
		b.switchProduct(dx, dy, w, du, down, plus, true)
		return
	}
	// As in SwitchLinear, the smaller part comes first.
	beta := b.start(dx, kernels.Tensor{}, plus)
	b.product(Product{
		C: dense(dx, rows, width), A: dense(du, rows, columns), B: dense(down, width, columns).T(), Alpha: 1, Beta: beta,
	})
	b.times(dx, dy, w, 1, 0) // the products run in the order of the calls: down is free when w is rounded
}

// SwitchGradA adds zᵀ·du to da. da (D, C), z (T, D), du (T, C).
func (b *Backend) SwitchGradA(da, z, du kernels.Tensor) {
	const op = "SwitchGradA"
	rows, width := matrixShape(op, "z", z)
	_, columns := matrixShape(op, "du", du)
	need(op, "da", da, b.Param(), width, columns)
	need(op, "z", z, b.float, rows, width)
	need(op, "du", du, b.float, rows, columns)

	if b.thin(columns, width, da, z, du) {
		if b.tallTakes(columns) {
			t := b.tall(width, rows, thinTile, false)
			b.dev.Launch(t.name("switch_grad_a"), t.launch, at(da), at(z), at(du),
				int32(width), int32(rows), int32(columns), int32(t.stages))
			return
		}
		t := b.tiles(new(layout), width, rows, columns)
		b.dev.Launch(t.name("switch_grad_a"), t.launch, at(da), at(z), at(du),
			int32(width), int32(rows), int32(columns), at(t.parts), at(b.counters))
		return
	}
	b.product(Product{C: dense(da, width, columns), A: dense(z, rows, width).T(), B: dense(du, rows, columns), Alpha: 1, Beta: 1})
}

// SwitchGradB adds s·(u ⊙ Ĝ)ᵀ·dy to db. db (C, D_out), u (T, C), dy (T, D_out).
func (b *Backend) SwitchGradB(db, u, dy kernels.Tensor, sw kernels.Switch) {
	const op = "SwitchGradB"
	rows, out := matrixShape(op, "dy", dy)
	_, columns := matrixShape(op, "u", u)
	s := b.bankOf(op, sw, rows, columns)
	need(op, "db", db, b.Param(), columns, out)
	need(op, "u", u, b.float, rows, columns)
	need(op, "dy", dy, b.float, rows, out)

	pieces(rows, columns, func(from, n int) {
		b.gradB(db, rowsOf(u, from, n), rowsOf(dy, from, n), s.rowsOf(from, n))
	})
}

func (b *Backend) gradB(db, u, dy kernels.Tensor, s bank) {
	rows, out := dy.Shape[0], dy.Shape[1]
	var work layout
	inside := s.gatedInside()
	if b.tallTakes(s.columns) {
		inside = s.experts <= tallExperts
	}
	if inside && b.thin(s.columns, out, db, dy, u) {
		b.thinGradB(&work, db, u, dy, s)
		return
	}
	p := work.take(b, b.float, rows, s.columns)
	b.gated(p, u, s)
	if b.thin(s.columns, out, db, dy, p) {
		b.thinGradB(&work, db, p, dy, bank{columns: s.columns, scale: 1})
		return
	}
	b.product(Product{C: dense(db, s.columns, out), A: dense(p, rows, s.columns).T(), B: dense(dy, rows, out), Alpha: 1, Beta: 1})
}

// thinGradB adds s·(u ⊙ Ĝ)ᵀ·dy to db, where kernels can apply the gates of s, or there are none and the scale is 1 (on Hopper any).
func (b *Backend) thinGradB(work *layout, db, u, dy kernels.Tensor, s bank) {
	rows, out := dy.Shape[0], dy.Shape[1]
	if b.tallTakes(s.columns) {
		t := b.tallGated(out, rows)
		b.dev.Launch(t.name("switch_grad_b"), t.launch, at(db), at(dy), at(u), s.kernel(),
			int32(out), int32(rows), int32(s.columns), int32(t.stages))
		return
	}
	t := b.tiles(work, out, rows, s.columns)
	if s.experts > 0 {
		t.launch.Shared += t.gateBytes()
		b.dev.Launch(t.name("switch_grad_b_gated"), t.launch, at(db), at(dy), at(u), s.kernel(),
			int32(out), int32(rows), int32(s.columns), at(t.parts), at(b.counters))
		return
	}
	b.dev.Launch(t.name("switch_grad_b"), t.launch, at(db), at(dy), at(u),
		int32(out), int32(rows), int32(s.columns), at(t.parts), at(b.counters))
}

// gatedInside says that switch_grad_b_gated can apply the gates itself.
func (s bank) gatedInside() bool {
	return s.experts > 0 && s.experts <= thinExperts && s.experts%4 == 0 && s.rank > 0 && s.rank%8 == 0 && at(s.gates)%16 == 0
}
