package model

import (
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// Dropout is what dropout of the adapters' inputs needs in a pass; the zero Dropout is none.
type Dropout struct {
	Rate float64
	Key  graph.V // (2) i32: seed and step
}

// PassAdapter is an Adapter of one pass that is run at once.
type PassAdapter interface {
	Adapter
	// Release gives back the memory of the pass's decisions.
	Release(x graph.Exec)
}

// Trained is a bank as the Adapter of one pass, in dense form.
type Trained struct {
	// Decisions are those of the pass, in the order in which they were made.
	Decisions []router.Decision

	bank    *Bank
	values  []graph.V // as bank.Params
	drop    Dropout
	current router.Decision
}

var _ PassAdapter = (*Trained)(nil)

// Bind makes the tensors of a buffer, laid out as k says, an Adapter of a pass. The values it returns are those of k.Params.
func (k *Bank) Bind(x graph.Exec, buffer kernels.Tensor, drop Dropout) (*Trained, []graph.V) {
	return k.BindRounded(x, buffer, kernels.Tensor{}, drop)
}

// BindRounded is Bind with the experts' tensors taken from rounded, a copy of the buffer in the backend's Float type, unless
// it is none. Routers are those of the buffer.
func (k *Bank) BindRounded(x graph.Exec, buffer, rounded kernels.Tensor, drop Dropout) (*Trained, []graph.V) {
	ad := &Trained{bank: k, drop: drop}
	for _, p := range k.Params {
		from := buffer
		if !rounded.None() && !p.router() {
			from = rounded
		}
		ad.values = append(ad.values, x.Bind(p.Name, k.View(from, p)))
	}
	return ad, ad.values
}

// param is a tensor by name; ok is false if the adapter has none of that name.
func (ad *Trained) param(name string) (v graph.V, ok bool) {
	i, ok := ad.bank.index[name]
	if ok {
		v = ad.values[i]
	}
	return v, ok
}

// EnterBlock implements [Adapter].
func (ad *Trained) EnterBlock(x graph.Exec, layer int, h graph.V) {
	name := tokenRouter
	if ad.bank.Spec.Granularity == router.Block {
		name = blockRouter(layer)
	} else if layer > 0 {
		return
	}
	if r, ok := ad.param(name); ok {
		ad.decide(x, h, r)
	}
}

func (ad *Trained) decide(x graph.Exec, h, r graph.V) {
	ad.current = router.Decide(x, h, r)
	ad.Decisions = append(ad.Decisions, ad.current)
}

// Linear implements [Adapter].
func (ad *Trained) Linear(x graph.Exec, layer int, t Target, h, w, bias, plus graph.V) graph.V {
	m := Module(layer, t)
	a, ok := ad.param(m + ".A")
	if !ok {
		return graph.Linear(x, h, w, bias, plus)
	}
	b, _ := ad.param(m + ".B")
	if r, ok := ad.param(m + ".router"); ok {
		ad.decide(x, h, r)
	}
	z := h
	if ad.drop.Rate > 0 {
		z = graph.Dropout(x, h, ad.drop.Key, layer*int(targets)+int(t), ad.drop.Rate)
	}
	bank := graph.Bank{A: a, B: b, Gates: ad.current.Gates, Rank: ad.bank.Spec.Rank, Scale: ad.bank.Spec.Scale()}
	y := graph.SwitchLinear(x, h, z, w, bias, plus, bank)
	if ad.drop.Rate > 0 {
		x.Done(z)
	}
	return y
}

// Release implements [PassAdapter].
func (ad *Trained) Release(x graph.Exec) {
	for _, d := range ad.Decisions {
		x.Done(d.Logits, d.Gates)
	}
	ad.Decisions = nil
}
