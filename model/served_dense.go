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

// placeDense makes the dense form of every layer's experts, whose A is a copy of the export's, turned; B is the export's where the backend's
// Float type is that of its experts.
func (s *Served) placeDense() error {
	for l := range s.layers {
		for t := range s.layers[l].linears {
			e := &s.layers[l].linears[t]
			if e.a.None() {
				continue
			}
			var err error
			columns := e.a.Shape[0] * e.a.Shape[1]
			if e.dense.a, err = s.take(transposed(s.hostCopy(e.a), columns)); err != nil {
				return fmt.Errorf("a copy of the experts for prompts: %w", err)
			}
			e.dense.b = e.b.Reshape(columns, e.b.Shape[2])
			if e.b.Type == s.Base.Backend.Float() {
				continue
			}
			if e.dense.b, err = s.take(s.hostCopy(e.dense.b)); err != nil {
				return fmt.Errorf("a copy of the experts for prompts: %w", err)
			}
		}
	}
	s.dense = true
	return nil
}

// hostCopy brings a tensor to the host, in the backend's Float type.
func (s *Served) hostCopy(t kernels.Tensor) kernels.Tensor {
	host := kernels.NewHost(t.Type, t.Shape...)
	s.Base.Backend.Read(host, t)
	return inType(host, s.Base.Backend.Float())
}

// transposed is a matrix of so many rows in host memory, turned.
func transposed(t kernels.Tensor, rows int) kernels.Tensor {
	cols := t.Len() / rows
	y := kernels.NewHost(t.Type, cols, rows)
	switch t.Type {
	case kernels.BF16:
		transpose(kernels.Slice[kernels.BFloat16](y), kernels.Slice[kernels.BFloat16](t), rows)
	case kernels.F32:
		transpose(kernels.Slice[float32](y), kernels.Slice[float32](t), rows)
	default:
		transpose(kernels.Slice[float64](y), kernels.Slice[float64](t), rows)
	}
	return y
}

func transpose[E any](dst, src []E, rows int) {
	cols := len(src) / rows
	for c := range cols {
		for r := range rows {
			dst[c*rows+r] = src[r*cols+c]
		}
	}
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
