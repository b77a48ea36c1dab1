package cpu

import (
	"math"

	"loratrain/kernels"
)

// mergeRows is the rows of a weight that are merged at a time.
const mergeRows = 64

// merging implements [kernels.Merging].
type merging[E float] struct {
	layers  []kernels.Merge
	units   []mergeUnit[E]
	experts int // the fewest that a layer has
	work    int // elements of all layers
}

// mergeUnit is some rows of a layer.
type mergeUnit[E float] struct {
	layer    *mergeLayer[E]
	from, to int
}

type mergeLayer[E float] struct {
	experts[E]
	dst []E
	src weight[E]
}

// Layers implements [kernels.Merging].
func (m *merging[E]) Layers() []kernels.Merge { return m.layers }

// Close implements [kernels.Merging].
func (m *merging[E]) Close() {}

// PrepareMerge is the layers, of any shapes, as Merge takes them. Their tensors must stay where they are until it is
// closed, and no Dst may overlap another. The error says how much memory was asked for and how much there is.
func (e *engine[E]) PrepareMerge(layers []kernels.Merge) (kernels.Merging, error) {
	const op = "PrepareMerge"
	m := &merging[E]{layers: layers, experts: math.MaxInt}
	for _, l := range layers {
		x := expertsIn[E](op, l.A, l.B)
		layer := &mergeLayer[E]{experts: x, dst: in[E](op, "Dst", l.Dst, x.out, x.width), src: weightIn[E](op, "Src", l.Src, x.out, x.width)}
		for from := 0; from < x.out; from += mergeRows {
			m.units = append(m.units, mergeUnit[E]{layer, from, min(x.out, from+mergeRows)})
		}
		m.experts = min(m.experts, x.count)
		m.work += x.out * x.width
	}
	return m, nil
}

// Merge is dst = src + s·Σ_k weights[k]·B[i]ᵀ·A[i], i = ids[k], for every layer of m in one call, unless force says
// that this is what they hold. ids (n) i32, weights (n), force (2n) i32 or none: the ids that were merged last with
// this m and scale and, behind them, the bits of their weights as float32. The call compares it with ids and weights,
// and leaves it as they are. An id below 0 and a weight that float32 does not hold are never in force; so a force of
// -1 throughout says that nothing was merged yet.
func (e *engine[E]) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	const op = "Merge"
	p, ok := m.(*merging[E])
	if !ok {
		fail(op, "m is %T, expected what PrepareMerge of this backend gave", m)
	}
	id := indices(op, "ids", ids, p.experts, ids.Len())
	ws := in[E](op, "weights", weights, len(id))
	last := maybe[int32](op, "force", force, 2*len(id))
	if last != nil && !enforce(last, id, ws) {
		return
	}
	e.each(len(p.units), p.work, func(w *worker[E], i int) { p.units[i].merge(w, id, ws, E(scale)) })
}

// enforce makes force say what is asked for, and reports whether it said something else.
func enforce[E float](force, ids []int32, weights []E) bool {
	changed := false
	for k, id := range ids {
		short := float32(weights[k])
		bits := int32(math.Float32bits(short))
		if force[k] != id || force[len(ids)+k] != bits || E(short) != weights[k] {
			changed = true
		}
		force[k], force[len(ids)+k] = id, bits
	}
	return changed
}

// merge computes the unit's rows of dst.
func (u mergeUnit[E]) merge(w *worker[E], ids []int32, weights []E, scale E) {
	defer w.release(w.mark())
	m := u.layer
	dst := dense(m.dst[u.from*m.width:u.to*m.width], u.to-u.from, m.width)
	m.src.widen(w, dst.data, u.from*m.width)
	depth := len(ids) * m.rank
	down, up := dense(w.take(depth*m.width), depth, m.width), dense(w.take(depth*dst.rows), depth, dst.rows)
	for k, id := range ids {
		for r := range m.rank {
			row, at := k*m.rank+r, int(id)*m.rank+r
			m.a.widen(w, down.row(row), at*m.width)
			m.b.widen(w, up.row(row), at*m.out+u.from)
			w.vec.scale(up.row(row), up.row(row), scale*weights[k])
		}
	}
	w.multiply(dst, up.t(), down, 1, 1)
}
