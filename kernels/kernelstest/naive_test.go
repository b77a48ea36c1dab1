package kernelstest

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"loratrain/kernels"
)

// naive is a backend made of the reference, so that the suite itself can be tested.
type naive struct {
	float, param kernels.Type
}

var _ kernels.Backend = naive{}

func (n naive) Name() string        { return "naive" }
func (n naive) String() string      { return "the reference, rounded" }
func (n naive) Float() kernels.Type { return n.float }
func (n naive) Param() kernels.Type { return n.param }

func (n naive) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	if size := kernels.Len(shape...); size > 1<<30 {
		return kernels.Tensor{}, fmt.Errorf("%d elements asked for, at most %d are possible", size, 1<<30)
	}
	return kernels.NewHost(t, shape...), nil
}

func (n naive) Free(kernels.Tensor)                               {}
func (n naive) Place(host kernels.Tensor) (kernels.Tensor, error) { return host, nil }
func (n naive) Write(t, host kernels.Tensor)                      { copy(hostBytes(t), hostBytes(host)) }

func (n naive) Read(host, t kernels.Tensor) { copy(hostBytes(host), hostBytes(t)) }

func (n naive) Fetch(host, t kernels.Tensor) func() {
	n.Read(host, t)
	return func() {}
}

func (n naive) Copy(dst, src kernels.Tensor) { copy(hostBytes(dst), hostBytes(src)) }
func (n naive) Zero(t kernels.Tensor)        { clear(hostBytes(t)) }
func (n naive) Sync() error                  { return nil }
func (n naive) Close() error                 { return nil }

var errContradiction = errors.New("operands contradict each other")

// load is a tensor of one of these types as the reference sees it.
func load(t kernels.Tensor, types ...kernels.Type) matrix {
	if t.None() {
		return matrix{}
	}
	if !slices.Contains(types, t.Type) {
		panic(errContradiction)
	}
	m := matrix{cols: t.Shape[len(t.Shape)-1]}
	m.elems = numbers(decode(t))
	if m.cols > 0 {
		m.rows = len(m.elems) / m.cols
	}
	return m
}

func (n naive) acts(t kernels.Tensor) matrix { return load(t, n.float) }
func (n naive) pars(t kernels.Tensor) matrix { return load(t, n.param) }
func weights(t kernels.Tensor) matrix        { return load(t, frozen...) }

func ints(t kernels.Tensor, want int) []int32 {
	if t.Type != kernels.I32 || t.Len() != want {
		panic(errContradiction)
	}
	return kernels.Slice[int32](t)
}

// store rounds m into t, which must be of the type and as large.
func store(t kernels.Tensor, typ kernels.Type, m matrix) {
	if t.Type != typ || t.Len() != len(m.elems) || len(t.Shape) > 1 && t.Shape[len(t.Shape)-1] != m.cols {
		panic(errContradiction)
	}
	values := m.values()
	for i := range values {
		if m.elems[i] == anything {
			values[i] = 0
		}
	}
	copy(hostBytes(t), hostBytes(encode(values, typ)))
}

func must(ok bool) {
	if !ok {
		panic(errContradiction)
	}
}

func same(shape matrix, others ...matrix) {
	for _, m := range others {
		must(m.rows == shape.rows && m.cols == shape.cols)
	}
}

func (n naive) Embed(y, table, ids kernels.Tensor) {
	store(y, n.float, embed(weights(table), ints(ids, y.Shape[0])))
}

// pieces is x with rows of n elements.
func pieces(x matrix, n int) matrix {
	must(n > 0 && x.cols%n == 0)
	return matrix{len(x.elems) / n, n, x.elems}
}

func (n naive) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	must(slices.Equal(y.Shape, x.Shape))
	m := rmsNorm(pieces(n.acts(x), w.Len()), weights(w), eps)
	m.cols = x.Shape[len(x.Shape)-1]
	store(y, n.float, m)
}

func (n naive) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	must(slices.Equal(dx.Shape, x.Shape) && slices.Equal(dx.Shape, dy.Shape))
	addend := n.addend(plus, dx)
	addend.rows, addend.cols = x.Len()/w.Len(), w.Len()
	m := rmsNormGrad(pieces(n.acts(x), w.Len()), weights(w), pieces(n.acts(dy), w.Len()), addend, eps)
	m.cols = x.Shape[len(x.Shape)-1]
	store(dx, n.float, m)
}

// addend is plus, of the shape of the result, or none.
func (n naive) addend(plus, result kernels.Tensor) matrix {
	must(plus.None() || slices.Equal(plus.Shape, result.Shape))
	return n.acts(plus)
}

func (n naive) Linear(y, x, w, bias, plus kernels.Tensor) {
	xs, ws, bs := n.acts(x), weights(w), weights(bias)
	must(xs.cols == ws.cols && (bs.none() || bs.cols == ws.rows))
	typ := n.float
	if y.Type == n.param && bias.None() && plus.None() {
		typ = n.param
	}
	store(y, typ, linear(xs, ws, bs, n.addend(plus, y)))
}

func (n naive) LinearGrad(dx, dy, w, plus kernels.Tensor) {
	must(dy.Shape[1] == w.Shape[0])
	store(dx, n.float, linearGrad(n.acts(dy), weights(w), n.addend(plus, dx)))
}

// adapted is a tensor that the optimizer keeps, or its rounded copy.
func (n naive) adapted(t kernels.Tensor) matrix { return load(t, n.param, n.float) }

func (n naive) bank(sw kernels.Switch, tokens int) bank {
	k := bank{n.adapted(sw.A), n.adapted(sw.B), n.pars(sw.Gates), sw.Rank, sw.Scale}
	must(sw.A.Type == sw.B.Type)
	must(k.a.cols == k.b.rows && (k.gates.none() || k.gates.rows == tokens))
	return k
}

func (n naive) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	xs, zs, ws, bs := n.acts(x), n.acts(z), weights(w), weights(bias)
	k := n.bank(sw, xs.rows)
	same(xs, zs)
	must(xs.cols == ws.cols && (bs.none() || bs.cols == ws.rows) && k.a.rows == xs.cols && k.b.cols == ws.rows)
	ys, us := switchLinear(xs, zs, ws, bs, n.addend(plus, y), k)
	store(y, n.float, ys)
	store(u, n.float, us)
}

func (n naive) SwitchGradHidden(du, dg, dy, u kernels.Tensor, sw kernels.Switch) {
	sw.A = kernels.NewHost(sw.B.Type, 1, sw.B.Shape[0])
	k := n.bank(sw, dy.Shape[0])
	must(u.Shape[1] == k.b.rows && dy.Shape[1] == k.b.cols)
	us, gs := switchGradHidden(n.acts(dy), n.acts(u), k)
	store(du, n.float, us)
	if !gs.none() {
		store(dg, n.param, gs)
	}
}

func (n naive) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	must(dy.Shape[1] == w.Shape[0] && du.Shape[1] == a.Shape[1] && w.Shape[1] == a.Shape[0])
	store(dx, n.float, switchGradInput(n.acts(dy), weights(w), n.acts(du), n.addend(plus, dx), bank{a: n.adapted(a)}))
}

func (n naive) SwitchGradA(da, z, du kernels.Tensor) {
	must(da.Shape[1] == du.Shape[1] && da.Shape[0] == z.Shape[1])
	store(da, n.param, switchGradA(n.pars(da), n.acts(z), n.acts(du)))
}

func (n naive) SwitchGradB(db, u, dy kernels.Tensor, sw kernels.Switch) {
	must(db.Shape[0] == u.Shape[1] && db.Shape[1] == dy.Shape[1])
	sw.A, sw.B = kernels.NewHost(n.param, 1, db.Shape[0]), kernels.NewHost(n.param, db.Shape...)
	k := n.bank(sw, dy.Shape[0])
	store(db, n.param, switchGradB(n.pars(db), n.acts(u), n.acts(dy), k))
}

func (n naive) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	must(table.Shape[1]%2 == 0 && x.Shape[1]%table.Shape[1] == 0)
	store(y, n.float, rotary(n.acts(x), n.pars(table), ints(pos, x.Shape[0]), backwards))
}

func (n naive) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	qs, ks, vs := n.acts(q), n.acts(k), n.acts(v)
	same(ks, vs)
	must(qs.cols == heads.Query*heads.Dim && ks.cols == heads.KV*heads.Dim && spans.Shape[1] == 4)
	os, ls := attention(qs, ks, vs, ints(spans, 4*qs.rows), heads)
	store(o, n.float, os)
	if !lse.None() {
		store(lse, n.param, ls)
	}
}

func (n naive) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	qs, ks, vs := n.acts(q), n.acts(k), n.acts(v)
	same(ks, vs)
	same(qs, n.acts(do), n.acts(o))
	must(qs.cols == heads.Query*heads.Dim && ks.cols == heads.KV*heads.Dim && lse.Shape[1] == heads.Query)
	dqs, dks, dvs := attentionGrad(n.acts(do), n.acts(o), n.pars(lse), qs, ks, vs, ints(spans, 4*qs.rows), heads)
	store(dq, n.float, dqs)
	store(dk, n.float, dks)
	store(dv, n.float, dvs)
}

func (n naive) SwiGLU(y, g, u kernels.Tensor) {
	same(n.acts(g), n.acts(u))
	store(y, n.float, swiGLU(n.acts(g), n.acts(u)))
}

func (n naive) SwiGLUGrad(dg, du, g, u, dy kernels.Tensor) {
	same(n.acts(g), n.acts(u), n.acts(dy))
	gs, us := swiGLUGrad(n.acts(g), n.acts(u), n.acts(dy))
	store(dg, n.float, gs)
	store(du, n.float, us)
}

func (n naive) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	var all []matrix
	for _, x := range xs {
		all = append(all, n.acts(x))
	}
	same(all[0], all...)
	store(y, n.float, total(all))
}

func (n naive) Scale(y, x, factor kernels.Tensor) {
	must(factor.Len() == 1)
	store(y, n.float, scale(n.acts(x), n.pars(factor).at(0, 0)))
}

func (n naive) Dropout(y, x, key kernels.Tensor, site int, rate float64) {
	store(y, n.float, dropout(n.acts(x), ints(key, 2), site, rate))
}

func (n naive) Route(logits, h, router kernels.Tensor) {
	must(h.Shape[1] == router.Shape[1])
	store(logits, n.param, route(n.acts(h), n.pars(router)))
}

func (n naive) RouteGradInput(dh, dlogits, router kernels.Tensor) {
	must(dlogits.Shape[1] == router.Shape[0])
	store(dh, n.float, routeGradInput(n.pars(dlogits), n.pars(router)))
}

func (n naive) RouteGradWeight(dr, dlogits, h kernels.Tensor) {
	must(dr.Shape[0] == dlogits.Shape[1] && dr.Shape[1] == h.Shape[1])
	store(dr, n.param, routeGradWeight(n.pars(dr), n.pars(dlogits), n.acts(h)))
}

func (n naive) Gate(gates, logits kernels.Tensor) { store(gates, n.param, gate(n.pars(logits))) }

func (n naive) GateGrad(dlogits, gates, dg kernels.Tensor) {
	same(n.pars(gates), n.pars(dg))
	store(dlogits, n.param, gateGrad(n.pars(gates), n.pars(dg)))
}

func (n naive) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	same(n.pars(logits), n.pars(gates))
	l, f := balance(n.pars(logits), n.pars(gates), ints(seq, logits.Shape[0]))
	store(loss, n.param, l)
	store(loads, n.param, f)
}

func (n naive) BalanceGrad(dlogits, dloss, logits, loads, seq kernels.Tensor) {
	must(loads.Len() == logits.Shape[1] && dloss.Len() == 1)
	store(dlogits, n.param, balanceGrad(n.pars(dloss).at(0, 0), n.pars(logits), n.pars(loads), ints(seq, logits.Shape[0])))
}

func (n naive) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	must(h.Shape[1] == w.Shape[1])
	l, d, _ := crossEntropy(n.acts(h), weights(w), ints(targets, h.Shape[0]))
	store(loss, n.param, l)
	if !dh.None() {
		store(dh, n.float, d)
	}
}

func (n naive) LogProb(lp, h, w, targets kernels.Tensor) {
	must(h.Shape[1] == w.Shape[1])
	_, _, p := crossEntropy(n.acts(h), weights(w), ints(targets, h.Shape[0]))
	store(lp, n.param, p)
}

func (n naive) Norm(y, g kernels.Tensor) {
	store(y, n.param, matrix{1, 1, []number{norm(n.pars(g))}})
}

func (n naive) Step(p, g, m, v, y, hyper kernels.Tensor, c kernels.AdamW) {
	ps, gs, ms, vs, hs := n.pars(p), n.pars(g), n.pars(m), n.pars(v), n.pars(hyper)
	same(ps, gs, ms, vs)
	must(y.Len() == 1 && hyper.Len() == 2)
	if length := n.pars(y).at(0, 0).v; length-length != 0 {
		return
	}
	ps, ms, vs = adamW(ps, gs, ms, vs, n.pars(y).at(0, 0), hs.at(0, 0), hs.at(0, 1).v, c)
	store(p, n.param, ps)
	store(m, n.param, ms)
	store(v, n.param, vs)
}

func (n naive) Round(dst, src kernels.Tensor) {
	must(dst.Len() == src.Len())
	store(dst.Reshape(dst.Len()), dst.Type, nearest(weights(src.Reshape(src.Len())), dst.Type))
	weights(dst)
}

func (n naive) Top2(ids, ws, logits kernels.Tensor) {
	is, shares := top2(n.pars(logits))
	copy(ints(ids, 2*logits.Shape[0]), is)
	store(ws, n.param, shares)
}

func (n naive) Experts(y, x, a, b, ids, ws kernels.Tensor, scale float64) {
	must(slices.Equal(ids.Shape, ws.Shape) && a.Shape[2] == x.Shape[1] && b.Shape[2] == y.Shape[1])
	store(y, n.float, experts(n.acts(y), n.acts(x), weights(a), weights(b), a.Shape[1], ints(ids, ids.Len()), n.pars(ws), scale))
}

// naiveMerging is the layers and nothing else.
type naiveMerging []kernels.Merge

func (m naiveMerging) Layers() []kernels.Merge { return m }
func (m naiveMerging) Close()                  {}

func (n naive) PrepareMerge(layers []kernels.Merge) (kernels.Merging, error) {
	for _, l := range layers {
		dst, src, a, b := n.acts(l.Dst), weights(l.Src), weights(l.A), weights(l.B)
		must(dst.rows == src.rows && dst.cols == src.cols && a.cols == src.cols && b.cols == src.rows && a.rows == b.rows)
	}
	return naiveMerging(layers), nil
}

func (n naive) Merge(m kernels.Merging, ids, ws, force kernels.Tensor, scale float64) {
	is, shares := ints(ids, ws.Len()), n.pars(ws).row(0)
	if !force.None() {
		last, asked, whole := ints(force, 2*len(is)), slices.Clone(is), true
		for _, w := range shares {
			asked = append(asked, int32(math.Float32bits(float32(w.v))))
			whole = whole && float64(float32(w.v)) == w.v
		}
		if whole && slices.Min(is) >= 0 && slices.Equal(last, asked) {
			return
		}
		copy(last, asked)
	}
	for _, l := range m.Layers() {
		store(l.Dst, n.float, merge(weights(l.Src), weights(l.A), weights(l.B), l.A.Shape[1], is, shares, scale))
	}
}

func (n naive) Spread(gates, ids, ws kernels.Tensor) {
	weights := n.pars(ws)
	must(len(gates.Shape) == 2 && gates.Shape[0] == weights.rows)
	chosen := ints(ids, len(weights.elems))
	must(ids.Shape[1] == weights.cols)
	store(gates, n.param, spreadGates(gates.Shape[1], chosen, weights))
}

func (n naive) Transpose(y, x kernels.Tensor) {
	must(slices.Contains(frozen, x.Type) && y.Type == x.Type && len(x.Shape) == 2 && slices.Equal(y.Shape, []int{x.Shape[1], x.Shape[0]}))
	copy(hostBytes(y), transposed(hostBytes(x), x.Type.Size(), x.Shape[0]))
}

func (n naive) Append(cache, x, at kernels.Tensor) {
	must(cache.Shape[1] == x.Shape[1])
	store(cache, n.float, appendRows(n.acts(cache), n.acts(x), ints(at, x.Shape[0])))
}

func (n naive) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	count := q.Length.Len()
	a := advancing{room: q.Room, window: q.Window}
	a.tokens, a.length, a.keys = ints(q.Tokens, count), ints(q.Length, count), ints(q.Keys, 2*count)
	if !ids.None() {
		a.chosen, a.ids, a.gates = ids.Shape[1], ints(ids, ids.Len()), n.pars(gates)
		must(a.gates.rows == ids.Shape[0] && a.gates.cols == a.chosen)
	}
	w := a.advance()
	copy(ints(q.Pos, count), w.pos)
	copy(ints(q.Live, count), w.live)
	copy(ints(q.Rows, count), w.rows)
	copy(ints(q.Spans, 4*count), w.spans)
	store(q.U, n.param, w.u)
	if !ids.None() {
		copy(ints(q.Experts, a.chosen*count), w.experts)
		store(q.Weights, n.param, w.weights)
	}
	copy(ints(q.Length, count), w.length)
}

func (n naive) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	rows, us := load(logits, n.float, n.param), n.pars(u)
	must(us.cols == rows.rows)
	for t := range ints(ids, rows.rows) {
		row := matrix{1, rows.cols, rows.row(t)}.values()
		kernels.Slice[int32](ids)[t], _ = draw(choices(row, rule), us.at(0, t).v)
	}
}
