package cpu

import (
	"errors"
	"fmt"

	"loratrain/kernels"
)

// step is a [kernels.Step] made of the other operations.
type step[E float] struct {
	e *engine[E]
	m kernels.StepModel
}

// NewStep implements [kernels.Stepper].
func (e *engine[E]) NewStep(m kernels.StepModel) (kernels.Step, error) {
	if len(m.Layers) == 0 {
		return nil, errors.New("decoding step: a model without layers")
	}
	for l, layer := range m.Layers {
		for t, w := range layer.W {
			if len(w.Shape) != 2 {
				return nil, fmt.Errorf("decoding step: weight %d of layer %d is %v, expected a matrix", t, l, w)
			}
		}
	}
	return &step[E]{e, m}, nil
}

// Run is logits[s] of the token that follows tokens[s], at position pos[s] of sequence s, and appends its keys and values to the cache: one
// decoding step of a whole model. Sequences with pos[s] < 0 are skipped, their logits are left as they are. In every linear layer that has
// experts, those of ids[s] are added with weights[s], as Experts does. logits (S, V) of type Param, tokens, pos (S) i32, ids (S, n) i32,
// weights (S, n); ids and weights none if the model has no experts.
func (p *step[E]) Run(logits, tokens, pos, ids, weights kernels.Tensor) {
	const op = "Step.Run"
	e, m, n := p.e, p.m, p.m.Sequences
	vocab, width := matrixShape(op, "Embed", m.Embed)
	out, all, at := in[E](op, "logits", logits, n, vocab), in[int32](op, "tokens", tokens, n), in[int32](op, "pos", pos, n)
	var live []int
	for s, x := range at {
		if x >= int32(m.Positions) {
			fail(op, "sequence %d is at position %d of %d", s, x, m.Positions)
		}
		if x >= 0 {
			live = append(live, s)
		}
	}
	if len(live) == 0 {
		return
	}
	ad := chosen[E]{step: p}
	if m.Chosen > 0 {
		ad.ids = gather(in[int32](op, "ids", ids, n, m.Chosen), live, m.Chosen)
		ad.weights = gather(in[E](op, "weights", weights, n, m.Chosen), live, m.Chosen)
	}
	token, where, rows, spans := gather(all, live, 1), gather(at, live, 1), kernels.NewHost(kernels.I32, len(live)), kernels.NewHost(kernels.I32, len(live), 4)
	for i, s := range live {
		first := 0
		if m.Window > 0 {
			first = max(0, int(at[s])-m.Window+1)
		}
		row := int32(s*m.Positions) + at[s]
		kernels.Slice[int32](rows)[i] = row
		copy(kernels.Slice[int32](spans)[4*i:], []int32{0, 0, int32(s*m.Positions + first), row + 1})
	}
	size := func(cols int) kernels.Tensor { return kernels.NewHost(e.Float(), len(live), cols) }
	h, normed := size(width), size(width)
	e.Embed(h, m.Embed, token.Reshape(len(live)))
	for l := range m.Layers {
		layer := &m.Layers[l]
		e.RMSNorm(normed, h, layer.InputNorm, m.Eps)
		turned := func(t int, norm kernels.Tensor) kernels.Tensor {
			x := ad.linear(layer, t, normed, kernels.Tensor{})
			if !norm.None() {
				y := size(x.Shape[1])
				e.RMSNorm(y, x, norm, m.Eps)
				x = y
			}
			y := size(x.Shape[1])
			e.Rotary(y, x, m.Rope, where.Reshape(len(live)), false)
			return y
		}
		q, k, v := turned(0, layer.QNorm), turned(1, layer.KNorm), ad.linear(layer, 2, normed, kernels.Tensor{})
		e.Append(layer.Keys, k, rows)
		e.Append(layer.Values, v, rows)
		o := size(q.Shape[1])
		e.Attention(o, kernels.Tensor{}, q, layer.Keys, layer.Values, spans, m.Heads)
		h = ad.linear(layer, 3, o, h)
		e.RMSNorm(normed, h, layer.PostNorm, m.Eps)
		gate, up := ad.linear(layer, 4, normed, kernels.Tensor{}), ad.linear(layer, 5, normed, kernels.Tensor{})
		f := size(gate.Shape[1])
		e.SwiGLU(f, gate, up)
		h = ad.linear(layer, 6, f, h)
	}
	e.RMSNorm(normed, h, m.Norm, m.Eps)
	y := size(vocab)
	e.Linear(y, normed, m.Head, kernels.Tensor{}, kernels.Tensor{})
	for i, s := range live {
		copy(out[s*vocab:(s+1)*vocab], kernels.Slice[E](y)[i*vocab:])
	}
}

// Close gives memory back.
func (p *step[E]) Close() {}

// chosen is a step with the experts of its live sequences.
type chosen[E float] struct {
	*step[E]
	ids, weights kernels.Tensor
}

// linear is plus + x·wᵀ + bias and what the experts add to it.
func (c chosen[E]) linear(l *kernels.StepLayer, target int, x, plus kernels.Tensor) kernels.Tensor {
	y := kernels.NewHost(c.e.Float(), x.Shape[0], l.W[target].Shape[0])
	c.e.Linear(y, x, l.W[target], l.Bias[target], plus)
	if !c.ids.None() && !l.A[target].None() {
		c.e.Experts(y, x, l.A[target], l.B[target], c.ids, c.weights, c.m.Scale)
	}
	return y
}

// gather is the rows of some sequences.
func gather[T kernels.Element](from []T, rows []int, cols int) kernels.Tensor {
	list := make([]T, 0, len(rows)*cols)
	for _, r := range rows {
		list = append(list, from[r*cols:(r+1)*cols]...)
	}
	return kernels.FromSlice(list, len(rows), cols)
}
