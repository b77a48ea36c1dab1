package graph

import (
	"fmt"

	"loratrain/kernels"
)

// floats is a Spec of the backend's activations, params one of its trainable tensors and scalars.
func floats(x Exec, shape ...int) Spec { return Of(x.Backend().Float(), shape...) }
func params(x Exec, shape ...int) Spec { return Of(x.Backend().Param(), shape...) }

// Embed is rows of a table (V, D), by ids (T): (T, D).
func Embed(x Exec, table, ids V) V {
	return x.Apply(&Op{
		Name: "Embed", Out: []Spec{floats(x, ids.Shape[0], table.Shape[1])},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Embed(out[0], in[0], in[1]) },
	}, table, ids)[0]
}

// RMSNorm normalises h in pieces of len(w), see [kernels.Network].
func RMSNorm(x Exec, h, w V, eps float64) V {
	return x.Apply(&Op{
		Name: "RMSNorm", Out: []Spec{floats(x, h.Shape...)}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.RMSNorm(out[0], in[0], in[1], eps) },
		Grad: func(x Exec, in, _ []V, dy V, ask Ask) []V {
			return x.Apply(&Op{
				Name: "RMSNormGrad", Out: []Spec{in[0].Spec},
				Run: func(b kernels.Backend, out, in []kernels.Tensor) {
					b.RMSNormGrad(out[0], in[0], in[1], in[2], in[3], eps)
				},
			}, in[0], in[1], dy, ask.Take(0))
		},
	}, h, w)[0]
}

// Linear is plus + h·wᵀ + bias, for a frozen w (D_out, D), and a bias and a plus (T, D_out) or none.
func Linear(x Exec, h, w, bias, plus V) V {
	return x.Apply(&Op{
		Name: "Linear", Out: []Spec{floats(x, h.Shape[0], w.Shape[0])}, Diff: []int{0, 3},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Linear(out[0], in[0], in[1], in[2], in[3]) },
		Grad: func(x Exec, in, _ []V, dy V, ask Ask) []V {
			given := []V{3: dy}
			if ask.Needs(0) {
				given[0] = linearGrad(x, dy, in[1], ask.Take(0))
			}
			return given
		},
	}, h, w, bias, plus)[0]
}

func linearGrad(x Exec, dy, w, plus V) V {
	return x.Apply(&Op{
		Name: "LinearGrad", Out: []Spec{floats(x, dy.Shape[0], w.Shape[1])},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.LinearGrad(out[0], in[0], in[1], in[2]) },
	}, dy, w, plus)[0]
}

// Rotary turns the heads of h by their positions, see [kernels.Network].
func Rotary(x Exec, h, table, pos V) V { return rotary(x, h, table, pos, false) }

func rotary(x Exec, h, table, pos V, backwards bool) V {
	op := &Op{
		Name: "Rotary", Out: []Spec{floats(x, h.Shape...)}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Rotary(out[0], in[0], in[1], in[2], backwards) },
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return []V{rotary(x, dy, in[1], in[2], !backwards)}
		},
	}
	return x.Apply(op, h, table, pos)[0]
}

// Attention is each token's attention over the rows of k and v that its spans name, see [kernels.Network].
func Attention(x Exec, q, k, v, spans V, heads kernels.Heads) V {
	rows := q.Shape[0]
	op := &Op{
		Name: "Attention", Diff: []int{0, 1, 2},
		Out: []Spec{floats(x, q.Shape...), params(x, rows, heads.Query)},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) {
			b.Attention(out[0], out[1], in[0], in[1], in[2], in[3], heads)
		},
		Grad: func(x Exec, in, out []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "AttentionGrad", Out: []Spec{in[0].Spec, in[1].Spec, in[2].Spec},
				Run: func(b kernels.Backend, out, in []kernels.Tensor) {
					b.AttentionGrad(out[0], out[1], out[2], in[0], in[1], in[2], in[3], in[4], in[5], in[6], heads)
				},
			}, dy, out[0], out[1], in[0], in[1], in[2], in[3])
		},
	}
	res := x.Apply(op, q, k, v, spans)
	x.Done(res[1])
	return res[0]
}

// SwiGLU is g·σ(g)·u.
func SwiGLU(x Exec, g, u V) V {
	return x.Apply(&Op{
		Name: "SwiGLU", Out: []Spec{g.Spec}, Diff: []int{0, 1},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.SwiGLU(out[0], in[0], in[1]) },
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "SwiGLUGrad", Out: []Spec{in[0].Spec, in[1].Spec},
				Run: func(b kernels.Backend, out, in []kernels.Tensor) {
					b.SwiGLUGrad(out[0], out[1], in[0], in[1], in[2])
				},
			}, in[0], in[1], dy)
		},
	}, g, u)[0]
}

// Sum is the elementwise sum of values of one shape.
func Sum(x Exec, vs ...V) V {
	diff := make([]int, len(vs))
	for i := range diff {
		diff[i] = i
	}
	return x.Apply(&Op{
		Name: fmt.Sprintf("Sum of %d", len(vs)), Out: []Spec{vs[0].Spec}, Diff: diff, Linear: true,
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Sum(out[0], in...) },
		Grad: func(_ Exec, in, _ []V, dy V, _ Ask) []V {
			same := make([]V, len(in))
			for i := range same {
				same[i] = dy
			}
			return same
		},
	}, vs...)[0]
}

// Scale is factor[0]·h, elementwise.
func Scale(x Exec, h, factor V) V {
	return x.Apply(&Op{
		Name: "Scale", Out: []Spec{h.Spec}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Scale(out[0], in[0], in[1]) },
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return []V{Scale(x, dy, in[1])}
		},
	}, h, factor)[0]
}

// Dropout zeroes a share of the elements, see [kernels.Network]; key (2) holds the seed and the step, site tells the
// program's dropouts apart.
func Dropout(x Exec, h, key V, site int, rate float64) V {
	return x.Apply(&Op{
		Name: "Dropout", Out: []Spec{h.Spec}, Diff: []int{0}, Cheap: true,
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Dropout(out[0], in[0], in[1], site, rate) },
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return []V{Dropout(x, dy, in[1], site, rate)}
		},
	}, h, key)[0]
}

// CrossEntropy is the sum over tokens of the negative log-likelihood of their targets, see [kernels.Network].
func CrossEntropy(x Exec, h, w, targets V) V {
	op := &Op{
		Name: "CrossEntropy", Out: []Spec{params(x, 1), h.Spec}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) {
			b.CrossEntropy(out[0], out[1], in[0], in[1], in[2])
		},
		Grad: func(x Exec, _, out []V, dy V, _ Ask) []V {
			return []V{Scale(x, out[1], dy)}
		},
	}
	res := x.Apply(op, h, w, targets)
	x.Done(res[1])
	return res[0]
}

// LogProb is each token's log-probability of its target, zero where it has none: (T).
func LogProb(x Exec, h, w, targets V) V {
	return x.Apply(&Op{
		Name: "LogProb", Out: []Spec{params(x, h.Shape[0])},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.LogProb(out[0], in[0], in[1], in[2]) },
	}, h, w, targets)[0]
}
