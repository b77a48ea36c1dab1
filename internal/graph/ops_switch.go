package graph

import "loratrain/kernels"

// Bank is the adapter of one linear layer in dense form, as values, see [kernels.Switch].
type Bank struct {
	A, B  V // of the backend's Param or Float type; their gradients are Param
	Gates V // (T, E), or none
	Rank  int
	Scale float64
}

func (s Bank) kernel(a, b, gates kernels.Tensor) kernels.Switch {
	return kernels.Switch{A: a, B: b, Gates: gates, Rank: s.Rank, Scale: s.Scale}
}

// SwitchLinear is plus + h·wᵀ + bias + s·((z·A) ⊙ Ĝ)·B, see [kernels.Network]; z is h or h after dropout.
func SwitchLinear(x Exec, h, z, w, bias, plus V, bank Bank) V {
	rows, columns := h.Shape[0], bank.A.Shape[1]
	same := sameValue(z, h)
	op := &Op{
		Name: "SwitchLinear", Diff: []int{0, 1, 4, 5, 6, 7},
		Out: []Spec{floats(x, rows, w.Shape[0]), floats(x, rows, columns)},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) {
			b.SwitchLinear(out[0], out[1], in[0], in[1], in[2], in[3], in[7], bank.kernel(in[4], in[5], in[6]))
		},
		Grad: func(x Exec, in, out []V, dy V, ask Ask) []V {
			return switchGrad(x, in, out[1], dy, ask, bank, same)
		},
	}
	if same {
		// One gradient then holds both parts, and z's is none of its own.
		op.Diff = []int{0, 4, 5, 6, 7}
	}
	res := x.Apply(op, h, z, w, bias, bank.A, bank.B, bank.Gates, plus)
	x.Done(res[1])
	return res[0]
}

func sameValue(a, b V) bool { return a.node == b.node && a.buf == b.buf }

// switchGrad is the gradients of SwitchLinear towards its inputs h, z, w, bias, A, B, Gates, plus.
func switchGrad(x Exec, in []V, u, dy V, ask Ask, bank Bank, same bool) []V {
	h, z, w, a, b, gates := in[0], in[1], in[2], in[4], in[5], in[6]
	given := []V{7: dy}
	if ask.Needs(5) {
		given[5] = x.Apply(&Op{
			Name: "SwitchGradB", Out: []Spec{params(x, b.Shape...)}, Adds: true,
			Run: func(k kernels.Backend, out, in []kernels.Tensor) {
				k.SwitchGradB(out[0], in[0], in[1], bank.kernel(in[2], in[3], in[4]))
			},
		}, u, dy, a, b, gates)[0]
	}
	du, dg := switchGradHidden(x, u, dy, a, b, gates, bank)
	given[6] = dg
	if ask.Needs(4) {
		given[4] = ask.Later(4, 1, func() V { // with those of the other layers that read z
			return x.Apply(&Op{
				Name: "SwitchGradA", Out: []Spec{params(x, a.Shape...)}, Adds: true,
				Run: func(k kernels.Backend, out, in []kernels.Tensor) { k.SwitchGradA(out[0], in[0], in[1]) },
			}, z, du)[0]
		})
	}
	switch {
	case ask.Needs(0) && same:
		given[0] = x.Apply(&Op{
			Name: "SwitchGradInput", Out: []Spec{h.Spec},
			Run: func(k kernels.Backend, out, in []kernels.Tensor) {
				k.SwitchGradInput(out[0], in[0], in[1], in[2], in[3], in[4])
			},
		}, dy, w, du, a, ask.Take(0))[0]
	case ask.Needs(0):
		given[0] = linearGrad(x, dy, w, ask.Take(0))
	}
	if ask.Needs(1) && !same {
		given[1] = Linear(x, du, a, V{}, ask.Take(1)) // du·Aᵀ
	}
	return given
}

func switchGradHidden(x Exec, u, dy, a, b, gates V, bank Bank) (du, dg V) {
	out := []Spec{u.Spec}
	if !gates.None() {
		out = append(out, gates.Spec)
	}
	res := x.Apply(&Op{
		Name: "SwitchGradHidden", Out: out,
		Run: func(k kernels.Backend, out, in []kernels.Tensor) {
			var dg kernels.Tensor
			if len(out) > 1 {
				dg = out[1]
			}
			k.SwitchGradHidden(out[0], dg, in[0], in[1], bank.kernel(in[2], in[3], in[4]))
		},
	}, dy, u, a, b, gates)
	if len(res) > 1 {
		return res[0], res[1]
	}
	return res[0], V{}
}

// Experts is y + s·Σ_k weights[t, k]·B[i]ᵀ·(A[i]·h[t]), i = ids[t, k], for experts as an export holds them; it takes y's
// memory.
func Experts(x Exec, y, h, a, b, ids, weights V, scale float64) V {
	res := x.Apply(&Op{
		Name: "Experts", Out: []Spec{y.Spec},
		Run: func(k kernels.Backend, out, in []kernels.Tensor) {
			k.Copy(out[0], in[0])
			k.Experts(out[0], in[1], in[2], in[3], in[4], in[5], scale)
		},
	}, y, h, a, b, ids, weights)[0]
	x.Done(y)
	return res
}

// Spread is the gates (T, experts) of tokens whose experts are ids, with weights.
func Spread(x Exec, ids, weights V, experts int) V {
	return x.Apply(&Op{
		Name: "Spread", Out: []Spec{params(x, ids.Shape[0], experts)},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Spread(out[0], in[0], in[1]) },
	}, ids, weights)[0]
}

// Route is h·routerᵀ: (T, E).
func Route(x Exec, h, router V) V {
	return x.Apply(&Op{
		Name: "Route", Out: []Spec{params(x, h.Shape[0], router.Shape[0])}, Diff: []int{0, 1},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Route(out[0], in[0], in[1]) },
		Grad: func(x Exec, in, _ []V, dy V, ask Ask) []V {
			given := make([]V, 2)
			if ask.Needs(0) {
				given[0] = x.Apply(&Op{
					Name: "RouteGradInput", Out: []Spec{in[0].Spec},
					Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.RouteGradInput(out[0], in[0], in[1]) },
				}, dy, in[1])[0]
			}
			if ask.Needs(1) {
				given[1] = x.Apply(&Op{
					Name: "RouteGradWeight", Out: []Spec{in[1].Spec}, Adds: true,
					Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.RouteGradWeight(out[0], in[0], in[1]) },
				}, dy, in[0])[0]
			}
			return given
		},
	}, h, router)[0]
}

// Gate is the softmax over each row's two largest logits, zero elsewhere.
func Gate(x Exec, logits V) V {
	return x.Apply(&Op{
		Name: "Gate", Out: []Spec{logits.Spec}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Gate(out[0], in[0]) },
		Grad: func(x Exec, _, out []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "GateGrad", Out: []Spec{out[0].Spec},
				Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.GateGrad(out[0], in[0], in[1]) },
			}, out[0], dy)
		},
	}, logits)[0]
}

// Top2 is the gate in short form: expert ids (T, 2) and weights (T, 2).
func Top2(x Exec, logits V) (ids, weights V) {
	res := x.Apply(&Op{
		Name: "Top2", Out: []Spec{Of(kernels.I32, logits.Shape[0], 2), params(x, logits.Shape[0], 2)},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Top2(out[0], out[1], in[0]) },
	}, logits)
	return res[0], res[1]
}

// Balance is the loss that is 1 when all experts are used alike, and the share of the places that each holds (E).
func Balance(x Exec, logits, gates, seq V) (loss, loads V) {
	res := x.Apply(&Op{
		Name: "Balance", Out: []Spec{params(x, 1), params(x, logits.Shape[1])}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Balance(out[0], out[1], in[0], in[1], in[2]) },
		Grad: func(x Exec, in, out []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "BalanceGrad", Out: []Spec{in[0].Spec},
				Run: func(b kernels.Backend, out, in []kernels.Tensor) {
					b.BalanceGrad(out[0], in[0], in[1], in[2], in[3])
				},
			}, dy, in[0], out[1], in[2])
		},
	}, logits, gates, seq)
	return res[0], res[1]
}
