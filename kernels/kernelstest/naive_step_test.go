package kernelstest

import "loratrain/kernels"

var _ kernels.Stepper = naive{}

// naiveStep is a [kernels.Step] made of a backend's other operations, on all sequences: those that stand still run along on what does no harm.
type naiveStep struct {
	kernels.Backend
	m kernels.StepModel
}

func (n naive) NewStep(m kernels.StepModel) (kernels.Step, error) { return naiveStep{n, m}, nil }

func (p naiveStep) Close() {}

func (p naiveStep) Run(logits, tokens, pos, ids, ws kernels.Tensor) {
	m, s, none := p.m, p.m.Sequences, kernels.Tensor{}
	at, token, row, span := make([]int32, s), make([]int32, s), make([]int32, s), make([]int32, 4*s)
	gates, chosen := none, none
	if m.Chosen > 0 {
		gates, chosen = changed(ws, finite), changed(ids, func(_ int, id float64) float64 { return max(0, id) })
	}
	for i, x := range ints(pos, s) {
		if row[i] = -1; x < 0 {
			continue
		}
		must(int(x) < m.Positions)
		begin := int32(i * m.Positions)
		at[i], token[i], row[i], span[4*i+2], span[4*i+3] = x, ints(tokens, s)[i], begin+x, begin, begin+x+1
		if m.Window > 0 {
			span[4*i+2] = begin + max(0, x+1-int32(m.Window))
		}
	}
	places, rows, spans := kernels.FromSlice(at, s), kernels.FromSlice(row, s), kernels.FromSlice(span, s, 4)
	array := func(cols int) kernels.Tensor { return kernels.NewHost(p.Float(), s, cols) }
	linear := func(l kernels.StepLayer, t int, x, plus kernels.Tensor) kernels.Tensor {
		y := array(l.W[t].Shape[0])
		p.Linear(y, x, l.W[t], l.Bias[t], plus)
		if !l.A[t].None() {
			p.Experts(y, x, l.A[t], l.B[t], chosen, gates, m.Scale)
		}
		return y
	}
	norm := func(x, w kernels.Tensor) kernels.Tensor {
		if w.None() {
			return x
		}
		y := array(x.Shape[1])
		p.RMSNorm(y, x, w, m.Eps)
		return y
	}
	turned := func(x kernels.Tensor) kernels.Tensor {
		y := array(x.Shape[1])
		p.Rotary(y, x, m.Rope, places, false)
		return y
	}
	h := array(m.Embed.Shape[1])
	p.Embed(h, m.Embed, kernels.FromSlice(token, s))
	for _, l := range m.Layers {
		x := norm(h, l.InputNorm)
		q := turned(norm(linear(l, 0, x, none), l.QNorm))
		p.Append(l.Keys, turned(norm(linear(l, 1, x, none), l.KNorm)), rows)
		p.Append(l.Values, linear(l, 2, x, none), rows)
		o := array(q.Shape[1])
		p.Attention(o, none, q, l.Keys, l.Values, spans, m.Heads)
		h = linear(l, 3, o, h)
		x = norm(h, l.PostNorm)
		f := array(l.W[4].Shape[0])
		p.SwiGLU(f, linear(l, 4, x, none), linear(l, 5, x, none))
		h = linear(l, 6, f, h)
	}
	y := kernels.NewHost(p.Param(), logits.Shape...)
	p.Linear(y, norm(h, m.Norm), m.Head, none, none)
	for i, x := range ints(pos, s) {
		if v := y.Shape[1]; x >= 0 {
			p.Copy(logits.View(i*v, v), y.View(i*v, v))
		}
	}
}
