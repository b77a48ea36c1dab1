package model

import (
	"errors"

	"loratrain/kernels"
)

// The linear layers of a step are those of a block, in the same order.
var _ [targets]struct{} = [kernels.Targets]struct{}{}

// stepperOf is a backend's steps as one operation, or nil. One that records nothing has no use for them: its operations cost what they
// compute, however few there are.
func stepperOf(b kernels.Backend) kernels.Stepper {
	if _, records := b.(kernels.Capturer); !records {
		return nil
	}
	s, _ := b.(kernels.Stepper)
	return s
}

// InParts is nil if a step's pass through the model is one operation of the backend, and otherwise says why it is an operation for each
// part of the model.
func (d *Decoder) InParts() error { return d.inParts }

// prepareWhole makes a step one operation, if the backend can.
func (d *Decoder) prepareWhole(s kernels.Stepper) {
	switch {
	case s == nil:
		d.inParts = errors.New("the backend runs no step as one operation, or none faster than its parts")
	case d.adapter != nil && d.mode == Layerwise:
		d.inParts = errors.New("mode layerwise has operations of their own for each layer's experts")
	default:
		d.whole, d.inParts = s.NewStep(d.stepModel())
	}
}

// stepModel is what a step runs.
func (d *Decoder) stepModel() kernels.StepModel {
	p := d.base
	if d.copied != nil {
		p = d.copied
	}
	w, a := &p.weights, p.Arch
	m := kernels.StepModel{
		Embed: w.Embed, Head: w.Head, Norm: w.Norm, Rope: p.rope, Heads: a.HeadsOf(), Eps: a.Eps, Window: a.Window,
		Sequences: len(d.lengths), Positions: d.room,
	}
	if d.beside() {
		m.Chosen, m.Scale = d.adapter.chosen(), d.adapter.Spec.Scale()
	}
	for l := range w.Layers {
		from := &w.Layers[l]
		to := kernels.StepLayer{
			InputNorm: from.InputNorm, PostNorm: from.PostNorm, QNorm: from.QNorm, KNorm: from.KNorm, W: from.W, Bias: from.Bias,
			Keys: d.cache.k[l].Tensor(), Values: d.cache.v[l].Tensor(),
		}
		if d.beside() {
			for t, e := range d.adapter.layers[l].linears {
				to.A[t], to.B[t] = e.a, e.b
			}
		}
		m.Layers = append(m.Layers, to)
	}
	return m
}

// runWhole computes the logits of every sequence from its token as one operation.
func (d *Decoder) runWhole() {
	s := &d.state
	var ids, weights kernels.Tensor
	if d.beside() {
		ids, weights = s.Experts, s.Weights
	}
	d.whole.Run(s.logits, s.Tokens, s.Live, ids, weights)
	d.step = d.stepPass()
}
