package model

import (
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// servedPass is an exported adapter in one pass, each token with its own experts.
type servedPass struct {
	*Served
	ids, weights graph.V // (T, n): the experts in force
	tokens       int     // T
	dense        bool    // all experts are computed for every token
	gates        graph.V // (T, E): ids and weights in dense form, if they were needed
	own          []graph.V
	// choices are those of every router in the pass, for reports: (T, 2) ids each.
	choices []graph.V
}

var _ PassAdapter = (*servedPass)(nil)

// Pass is the adapter for one pass over tokens, applied beside the base's weights. With tabled, a token-wise router is not
// computed but looked up.
func (s *Served) Pass(x *graph.Immediate, tokens []int32, tabled bool) PassAdapter {
	return s.pass(x, tokens, tabled)
}

func (s *Served) pass(x *graph.Immediate, tokens []int32, tabled bool) *servedPass {
	p := &servedPass{Served: s, tokens: len(tokens), dense: s.dense && len(tokens) > denseTokens}
	switch {
	case s.Spec.Granularity == router.None:
		ids, weights := make([]int32, len(tokens)), make([]float32, len(tokens))
		for t := range weights {
			weights[t] = 1
		}
		p.bind(x, ids, weights, 1)
	case s.Spec.Granularity == router.Token && tabled:
		var ids []int32
		var weights []float32
		for _, id := range tokens {
			i, w := s.Table(id)
			ids, weights = append(ids, i[:]...), append(weights, w[:]...)
		}
		p.bind(x, ids, weights, router.Top)
		p.choices = append(p.choices, p.ids)
	}
	return p
}

func (p *servedPass) bind(x *graph.Immediate, ids []int32, weights []float32, n int) {
	p.ids, p.weights = x.Ints(ids, len(ids)/n, n), x.Floats(weights, len(ids)/n, n)
	p.own = append(p.own, p.ids, p.weights)
}

// EnterBlock implements [Adapter].
func (p *servedPass) EnterBlock(x graph.Exec, layer int, h graph.V) {
	switch {
	case p.Spec.Granularity == router.Block:
		p.decide(x, h, p.layers[layer].router)
	case p.Spec.Granularity == router.Token && layer == 0 && p.ids.None():
		p.decide(x, h, p.router)
	}
}

func (p *servedPass) decide(x graph.Exec, h graph.V, r kernels.Tensor) {
	logits := graph.Route(x, h, x.Bind("router", r))
	p.ids, p.weights = graph.Top2(x, logits)
	x.Done(logits, p.gates)
	p.gates = graph.V{}
	p.choices = append(p.choices, p.ids)
	p.own = append(p.own, p.ids, p.weights)
}

// Linear implements [Adapter].
func (p *servedPass) Linear(x graph.Exec, layer int, t Target, h, w, bias, plus graph.V) graph.V {
	e := &p.layers[layer].linears[t]
	if e.a.None() {
		return graph.Linear(x, h, w, bias, plus)
	}
	if !e.router.None() {
		p.decide(x, h, e.router)
	}
	if p.dense {
		return p.denseLinear(x, e, h, w, bias, plus)
	}
	y := graph.Linear(x, h, w, bias, plus)
	return graph.Experts(x, y, h, x.Bind("A", e.a), x.Bind("B", e.b), p.ids, p.weights, p.Spec.Scale())
}

// Release implements [PassAdapter].
func (p *servedPass) Release(x graph.Exec) {
	x.Done(p.own...)
	x.Done(p.gates)
	p.own, p.choices, p.gates = nil, nil, graph.V{}
}

// choicesOf is the experts of one of the pass's tokens, for every router.
func (p *servedPass) choicesOf(b kernels.Backend, token int) [][]int32 {
	var list [][]int32
	for _, v := range p.choices {
		host := kernels.NewHost(kernels.I32, v.Shape[1])
		b.Read(host, v.Tensor().View(token*v.Shape[1], v.Shape[1]))
		list = append(list, kernels.Slice[int32](host))
	}
	return list
}
