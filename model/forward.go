package model

import (
	"fmt"

	"loratrain/internal/graph"
	"loratrain/kernels"
)

// Placed is a base model where a backend can read it.
type Placed struct {
	Arch    Arch
	Backend kernels.Backend
	weights Weights
	rope    kernels.Tensor // (positions, d)
}

// Place brings the weights of a model to a backend, ready for positions below the given number.
func Place(b kernels.Backend, a Arch, w Weights, positions int) (*Placed, error) {
	p := &Placed{Arch: a, Backend: b, weights: Weights{Layers: make([]LayerWeights, len(w.Layers))}}
	var failed error
	matrices := placer{b: b}
	put := func(dst *kernels.Tensor, src kernels.Tensor) {
		if failed == nil && !src.None() {
			*dst, failed = b.Place(widened(src))
		}
	}
	matrix := func(dst *kernels.Tensor, src kernels.Tensor) {
		if failed == nil && !src.None() {
			*dst, failed = matrices.matrix(src)
		}
	}
	matrix(&p.weights.Embed, w.Embed)
	put(&p.weights.Norm, w.Norm)
	if a.Tied {
		p.weights.Head = p.weights.Embed
	} else {
		matrix(&p.weights.Head, w.Head)
	}
	for l, from := range w.Layers {
		to := &p.weights.Layers[l]
		put(&to.InputNorm, from.InputNorm)
		put(&to.PostNorm, from.PostNorm)
		put(&to.QNorm, from.QNorm)
		put(&to.KNorm, from.KNorm)
		for t := range from.W {
			matrix(&to.W[t], from.W[t])
			put(&to.Bias[t], from.Bias[t])
		}
	}
	put(&p.rope, ropeTable(a, b.Param(), positions))
	if failed != nil {
		return nil, fmt.Errorf("weights: %w", failed)
	}
	return p, nil
}

// On is the same model for another backend that reads the same memory.
func (p *Placed) On(b kernels.Backend) *Placed {
	other := *p
	other.Backend = b
	return &other
}

// PlacedBytes is the memory that Place fills on a backend that copies weights.
func PlacedBytes(b kernels.Backend, a Arch, w Weights, positions int) int {
	n := positions * a.HeadDim * b.Param().Size()
	add := func(matrix bool, ts ...kernels.Tensor) {
		for _, t := range ts {
			switch {
			case t.None():
			case matrix && b.Float() == kernels.BF16:
				n += t.Len() * kernels.BF16.Size()
			default:
				n += t.Bytes()
			}
		}
	}
	add(true, w.Embed)
	if !a.Tied {
		add(true, w.Head)
	}
	add(false, w.Norm)
	for _, l := range w.Layers {
		add(false, l.InputNorm, l.PostNorm, l.QNorm, l.KNorm)
		add(true, l.W[:]...)
		add(false, l.Bias[:]...)
	}
	return n
}

// Positions is how many positions the model was placed for.
func (p *Placed) Positions() int { return p.rope.Shape[0] }

// layerValues is one block's tensors as values of a pass.
type layerValues struct {
	inputNorm, postNorm, qNorm, kNorm graph.V
	w, bias                           [targets]graph.V
}

// Values is a model's tensors as values of a pass.
type Values struct {
	arch                    Arch
	Embed, Norm, Head, rope graph.V
	layers                  []layerValues
}

// Bind makes a model's tensors values of a pass.
func (p *Placed) Bind(x graph.Exec) *Values {
	bind := func(name string, t kernels.Tensor) graph.V {
		if t.None() {
			return graph.V{}
		}
		return x.Bind(name, t)
	}
	v := &Values{arch: p.Arch, Embed: bind("embed", p.weights.Embed), Norm: bind("norm", p.weights.Norm), rope: bind("rope", p.rope)}
	v.Head = v.Embed
	if !p.Arch.Tied {
		v.Head = bind("head", p.weights.Head)
	}
	for l, w := range p.weights.Layers {
		lv := layerValues{
			inputNorm: bind("input norm", w.InputNorm), postNorm: bind("post norm", w.PostNorm),
			qNorm: bind("q norm", w.QNorm), kNorm: bind("k norm", w.KNorm),
		}
		for t := range w.W {
			lv.w[t] = bind(Module(l, Target(t)), w.W[t])
			lv.bias[t] = bind(Module(l, Target(t))+".bias", w.Bias[t])
		}
		v.layers = append(v.layers, lv)
	}
	return v
}

// Inputs is what a pass is about: T tokens of any number of sequences.
type Inputs struct {
	IDs   graph.V // (T) i32
	Pos   graph.V // (T) i32: position in its sequence
	Spans graph.V // (T, 4) i32: which rows of the keys each token sees, see kernels.Network
	Cache *Cache  // where keys and values are put and read; nil: they are those of the pass itself
	Rows  graph.V // (T) i32: the cache's row that each token's are put into, below 0 none; with a Cache only
}

// Adapter adds to the linear layers of a base.
type Adapter interface {
	// EnterBlock sees the normed input of a block's attention before the block's linear layers are applied.
	EnterBlock(x graph.Exec, layer int, h graph.V)
	// Linear is plus + h·wᵀ + bias and what the adapter adds to it; bias and plus may be none.
	Linear(x graph.Exec, layer int, t Target, h, w, bias, plus graph.V) graph.V
}

// Hidden is the forward pass up to the output projection: the normed state of each token (T, D). ad may be nil.
func Hidden(x graph.Exec, v *Values, ad Adapter, in Inputs) graph.V {
	h := graph.Embed(x, v.Embed, in.IDs)
	for l := range v.layers {
		h = graph.Block(x, func() graph.V { return v.block(x, l, h, ad, in) })
	}
	y := graph.RMSNorm(x, h, v.Norm, v.arch.Eps)
	x.Done(h)
	return y
}

// RouterInput is what a token-wise router reads: the first block's normed input, for any token ids.
func RouterInput(x graph.Exec, v *Values, ids graph.V) graph.V {
	h := graph.Embed(x, v.Embed, ids)
	y := graph.RMSNorm(x, h, v.layers[0].inputNorm, v.arch.Eps)
	x.Done(h)
	return y
}

// block is one transformer block; it takes x's memory.
func (v *Values) block(x graph.Exec, l int, h graph.V, ad Adapter, in Inputs) graph.V {
	w := &v.layers[l]
	linPlus := func(t Target, h, plus graph.V) graph.V {
		if ad == nil {
			return graph.Linear(x, h, w.w[t], w.bias[t], plus)
		}
		return ad.Linear(x, l, t, h, w.w[t], w.bias[t], plus)
	}
	lin := func(t Target, h graph.V) graph.V { return linPlus(t, h, graph.V{}) }
	n := graph.RMSNorm(x, h, w.inputNorm, v.arch.Eps)
	if ad != nil {
		ad.EnterBlock(x, l, n)
	}
	o := v.attention(x, l, n, lin, in)
	mid := linPlus(OProj, o, h)
	x.Done(n, o, h)

	n = graph.RMSNorm(x, mid, w.postNorm, v.arch.Eps)
	g, u := lin(GateProj, n), lin(UpProj, n)
	f := graph.SwiGLU(x, g, u)
	x.Done(n, g, u)
	out := linPlus(DownProj, f, mid)
	x.Done(f, mid)
	return out
}

func (v *Values) attention(x graph.Exec, l int, n graph.V, lin func(Target, graph.V) graph.V, in Inputs) graph.V {
	w := &v.layers[l]
	q, k, val := lin(QProj, n), lin(KProj, n), lin(VProj, n)
	turn := func(h, norm graph.V) graph.V {
		if !norm.None() {
			normed := graph.RMSNorm(x, h, norm, v.arch.Eps)
			x.Done(h)
			h = normed
		}
		y := graph.Rotary(x, h, v.rope, in.Pos)
		x.Done(h)
		return y
	}
	q, k = turn(q, w.qNorm), turn(k, w.kNorm)
	keys, vals := k, val
	if in.Cache != nil {
		keys, vals = in.Cache.append(x, l, k, val, in.Rows)
	}
	o := graph.Attention(x, q, keys, vals, in.Spans, v.arch.HeadsOf())
	x.Done(q, k, val)
	return o
}
