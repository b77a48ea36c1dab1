// Package router decides which experts a token uses.
//
// Start with [Decide]: top-2 gates from the hidden state that a router reads. [Granularity] says where decisions are
// made: once per token for the whole model, once per block, at each linear layer, or nowhere. Gates jump where second
// and third place swap; at ties the lower expert wins, on every backend.
package router

import (
	"fmt"

	"loratrain/internal/graph"
	"loratrain/kernels"
)

// Top is how many experts a token uses.
const Top = 2

// Granularity is where routers sit.
type Granularity string

// The granularities. With Token one router reads the first block's normed input, a function of the token id alone,
// and its decision holds for the whole model (LoRA-Switch); with Block each block has a router that reads its normed
// attention input; with Layer each adapted linear layer has one that reads its own input (MoLA, MixLoRA); None is
// plain LoRA, one expert with gate 1.
const (
	Token Granularity = "token"
	Block Granularity = "block"
	Layer Granularity = "layer"
	None  Granularity = "none"
)

// Granularities lists all of them.
func Granularities() []Granularity { return []Granularity{Token, Block, Layer, None} }

// Parse is the Granularity of that name.
func Parse(name string) (Granularity, error) {
	for _, g := range Granularities() {
		if string(g) == name {
			return g, nil
		}
	}
	return "", fmt.Errorf("unknown granularity %q\nuse one of %v", name, Granularities())
}

// Decision is what a router said of each token.
type Decision struct {
	Logits graph.V // (T, E)
	Gates  graph.V // (T, E)
}

// Decide reads h (T, D) with a router (E, D).
func Decide(x graph.Exec, h, router graph.V) Decision {
	logits := graph.Route(x, h, router)
	return Decision{Logits: logits, Gates: graph.Gate(x, logits)}
}

// Balance is the sum of the decisions' balance losses (1), over the tokens with seq ≥ 0, and each one's loads (E).
func Balance(x graph.Exec, decisions []Decision, seq graph.V) (sum graph.V, loads []graph.V) {
	losses := make([]graph.V, len(decisions))
	loads = make([]graph.V, len(decisions))
	for i, d := range decisions {
		losses[i], loads[i] = graph.Balance(x, d.Logits, d.Gates, seq)
	}
	if len(losses) == 1 {
		return losses[0], loads
	}
	return graph.Sum(x, losses...), loads
}

// Table is the routing table of a token-wise router: for every row of h (V, D), the router's input for that token id, the
// two experts (V, 2) and their weights (V, 2), in host memory; weights are of the backend's Param type.
func Table(x graph.Exec, h, router graph.V) (ids, weights kernels.Tensor) {
	logits := graph.Route(x, h, router)
	i, w := graph.Top2(x, logits)
	b := x.Backend()
	ids, weights = kernels.NewHost(i.Type, i.Shape...), kernels.NewHost(w.Type, w.Shape...)
	b.Read(ids, i.Tensor())
	b.Read(weights, w.Tensor())
	x.Done(logits, i, w)
	return ids, weights
}
