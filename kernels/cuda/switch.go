package cuda

import "loratrain/kernels"

// bank is a kernels.Switch whose shapes are checked.
type bank struct {
	columns, experts int
	rank             int
	gates            kernels.Tensor
	scale            float32
}

// gates is a bank's gates as the kernels take them.
type gates struct {
	at            Address
	experts, rank int32
	scale         float32
}

func (s bank) kernel() gates {
	return gates{at(s.gates), int32(s.experts), int32(s.rank), s.scale}
}

// bankOf checks the gates of sw for rows tokens and so many columns.
func (b *Backend) bankOf(op string, sw kernels.Switch, rows, columns int) bank {
	s := bank{columns: columns, scale: float32(sw.Scale)}
	if sw.Gates.None() {
		return s
	}
	_, s.experts = matrixShape(op, "gates", sw.Gates)
	need(op, "gates", sw.Gates, b.Param(), rows, s.experts)
	s.gates, s.rank = sw.Gates, sw.Rank
	if s.rank < 0 || s.experts*s.rank > columns {
		fail(op, "%d experts of rank %d, expected at most %d columns", s.experts, s.rank, columns)
	}
	return s
}

// needTrained is need for A or B, which are of type Param or Float.
func (b *Backend) needTrained(op, name string, t kernels.Tensor, shape ...int) {
	typ := b.Param()
	if t.Type == b.float {
		typ = b.float
	}
	need(op, name, t, typ, shape...)
}

// inFloat is t, rounded into the workspace if it has another type than Float.
func (b *Backend) inFloat(work *layout, t kernels.Tensor) kernels.Tensor {
	if t.Type == b.float {
		return t
	}
	x := work.take(b, b.float, t.Shape...)
	b.Round(x, t)
	return x
}

// hiddenBytes is the most of the workspace that (T, C) numbers take; more tokens are done in pieces.
const hiddenBytes = workspaceBytes / 4

// pieces calls f for ranges of the tokens whose (T, C) numbers fit into the workspace.
func pieces(tokens, columns int, f func(from, n int)) {
	step := max(1, hiddenBytes/(4*columns))
	for from := 0; from < tokens; from += step {
		f(from, min(step, tokens-from))
	}
}

// rowsOf is n rows of t from one on; none of none.
func rowsOf(t kernels.Tensor, from, n int) kernels.Tensor {
	if t.None() {
		return t
	}
	return t.View(from*t.Shape[1], n, t.Shape[1])
}

// rowsOf is the bank for n tokens from one on.
func (s bank) rowsOf(from, n int) bank {
	s.gates = rowsOf(s.gates, from, n)
	return s
}

// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y
// or none.
func (b *Backend) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	const op = "SwitchLinear"
	b.checkLinear(op, b.float, y, x, w, bias, plus)
	rows, width, out := x.Shape[0], x.Shape[1], w.Shape[0]
	columns, _ := matrixShape(op, "B", sw.B)
	s := b.bankOf(op, sw, rows, columns)
	b.needTrained(op, "A", sw.A, width, columns)
	need(op, "B", sw.B, sw.A.Type, columns, out)
	need(op, "u", u, b.float, rows, columns)
	need(op, "z", z, b.float, rows, width)

	var work layout
	down, up := b.inFloat(&work, sw.A), b.inFloat(&work, sw.B)
	if bias.None() && b.switchProductTakes(y, x, w, u, up, plus) {
		pieces(rows, columns, func(from, n int) {
			work := work
			p := work.take(b, b.float, n, columns)
			b.hidden(&work, p, rowsOf(u, from, n), rowsOf(z, from, n), down, s.rowsOf(from, n))
			b.switchProduct(rowsOf(y, from, n), rowsOf(x, from, n), w, p, up, rowsOf(plus, from, n), false)
		})
		return
	}

	// The experts' part comes first: it is the smaller one, and what is in y is rounded before the rest is added.
	beta := b.start(y, bias, plus)
	pieces(rows, columns, func(from, n int) {
		work := work
		p := work.take(b, b.float, n, columns)
		b.hidden(&work, p, rowsOf(u, from, n), rowsOf(z, from, n), down, s.rowsOf(from, n))
		b.product(Product{
			C: dense(rowsOf(y, from, n), n, out), A: dense(p, n, columns), B: dense(up, columns, out), Alpha: 1, Beta: beta,
		})
	})
	b.timesTransposed(y, x, w, 1, work.used)
}

// hidden is u = z·a and p = s·(u ⊙ Ĝ).
func (b *Backend) hidden(work *layout, p, u, z, a kernels.Tensor, s bank) {
	rows, width := z.Shape[0], z.Shape[1]
	if b.thin(s.columns, width, u, z, a) {
		if b.tallTakes(s.columns) {
			t := b.tall(rows, width, thinTile, false)
			b.dev.Launch(t.name("switch_hidden"), t.launch, at(u), at(p), at(z), at(a), s.kernel(),
				int32(rows), int32(width), int32(s.columns), int32(t.stages))
			return
		}
		t := b.tiles(work, rows, width, s.columns)
		b.dev.Launch(t.name("switch_hidden"), t.launch, at(u), at(p), at(z), at(a), s.kernel(),
			int32(rows), int32(width), int32(s.columns), at(t.parts), at(b.counters))
		return
	}
	b.product(Product{C: dense(u, rows, s.columns), A: dense(z, rows, width), B: dense(a, width, s.columns), Alpha: 1})
	b.gated(p, u, s)
}

// gated is p = s·(u ⊙ Ĝ).
func (b *Backend) gated(p, u kernels.Tensor, s bank) {
	n := u.Len()
	b.dev.Launch("switch_gated"+suffix(b.float), threads1(n, 1), at(p), at(u), s.kernel(), int32(s.columns), int64(n))
}
