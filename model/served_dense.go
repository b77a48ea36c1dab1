package model

import (
	"fmt"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

const (
	// denseTokens is up to how many tokens of a prompt each has its own experts read: for few that is less than all experts are.
	denseTokens = 16
	// denseColumns is up to how many columns E·R all experts are computed for every token. The experts' part of a layer (D, D) is then at
	// most a half of the layer's own: 2·E·R·2D of 2·D² flops for the D of a model of 7 billion weights.
	denseColumns = 1024
)

// denseLinear is a linear layer's experts as [kernels.Network]'s SwitchLinear takes them: A (D_in, E·R) and B (E·R, D_out), or none.
type denseLinear struct{ a, b kernels.Tensor }

// prefersDense says whether a backend applies experts to the tokens of a prompt in the dense form. The processor gains nothing by it (SmolLM2,
// eight experts of rank 8, 512 tokens on two cores: 1.01 s in the dense form, 1.05 s each token's own, 0.89 s the base), and would have to keep
// experts in another type.
func prefersDense(b kernels.Backend, spec AdapterSpec) bool {
	return b.Float() == kernels.BF16 && spec.Experts*spec.Rank <= denseColumns
}

// placeDense makes the dense form of every layer's experts, whose A is a copy of the export's, transposed where it lies; B is the export's where
// the backend's Float type is that of its experts.
func (s *Served) placeDense() error {
	for l := range s.layers {
		for t := range s.layers[l].linears {
			e := &s.layers[l].linears[t]
			if e.a.None() {
				continue
			}
			if err := s.placeDenseOf(e); err != nil {
				return fmt.Errorf("a copy of the experts for prompts: %w", err)
			}
		}
	}
	s.dense = true
	return nil
}

// placeDenseOf does so for one layer. On failure what it took is given back by Close.
func (s *Served) placeDenseOf(e *servedLinear) (err error) {
	b, columns := s.Base.Backend, e.a.Shape[0]*e.a.Shape[1]
	a := e.a.Reshape(columns, e.a.Shape[2])
	if a.Type != b.Float() {
		if a, err = rounded(b, a); err != nil {
			return err
		}
		defer b.Free(a)
	}
	if e.dense.a, err = b.Alloc(a.Type, a.Shape[1], columns); err != nil {
		return err
	}
	s.owns(e.dense.a)
	b.Transpose(e.dense.a, a)
	e.dense.b = e.b.Reshape(columns, e.b.Shape[2])
	if e.b.Type != b.Float() {
		if e.dense.b, err = rounded(b, e.dense.b); err == nil {
			s.owns(e.dense.b)
		}
	}
	return err
}

// rounded is a copy of t in the backend's Float type.
func rounded(b kernels.Backend, t kernels.Tensor) (kernels.Tensor, error) {
	y, err := b.Alloc(b.Float(), t.Shape...)
	if err == nil {
		b.Round(y, t)
	}
	return y, err
}

// denseLinear is plus + h·wᵀ + bias and what the chosen ones of all experts add to it.
func (p *servedPass) denseLinear(x graph.Exec, e *servedLinear, h, w, bias, plus graph.V) graph.V {
	if p.gates.None() && p.Spec.Granularity != router.None { // whose one expert has the gate 1
		p.gates = graph.Spread(x, p.ids, p.weights, p.Spec.Experts)
	}
	return graph.SwitchLinear(x, h, h, w, bias, plus, graph.Bank{
		A: x.Bind("A", e.dense.a), B: x.Bind("B", e.dense.b), Gates: p.gates, Rank: p.Spec.Rank, Scale: p.Spec.Scale(),
	})
}
