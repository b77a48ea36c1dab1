package kernelstest

import (
	"slices"

	"loratrain/kernels"
)

var routingFlaws = []flaw{
	{"Gate gives ties to the higher expert", "Gate", `tie_goes_low`, func(n naive) kernels.Backend { return tieGoesHigh{n} }},
	{"Gate leaves the others", "Gate", `gates\[.*\] is NaN, want 0`, func(n naive) kernels.Backend { return leavesOthers{n} }},
	{"Gate is small elsewhere", "Gate", `want zero exactly`, func(n naive) kernels.Backend { return smallElsewhere{n} }},
	{"Gate starts from a sentinel", "Gate", `far_below_any_sentinel`, func(n naive) kernels.Backend { return sentinel{n} }},
	{"Top2 puts the smaller first", "Top2", `ids\[0 0\]`, func(n naive) kernels.Backend { return smallerFirst{n} }},
	{"Top2 gives ties to the higher expert", "Top2", `Top2 gives ids`, func(n naive) kernels.Backend { return topTieGoesHigh{n} }},
	{"GateGrad without the mean", "GateGrad", `dlogits\[`, func(n naive) kernels.Backend { return gateNoMean{n} }},
	{"Balance counts padding", "Balance", `padding_does_not_count`, func(n naive) kernels.Backend { return balancesPadding{n} }},
	{"Balance counts places without a gate", "Balance", `gate_underflows(?s:.*)loads\[`, func(n naive) kernels.Backend { return countsPlaces{n} }},
	{"Balance of nobody is NaN", "Balance", `nobody`, func(n naive) kernels.Backend { return nobodyIsNaN{n} }},
	{"BalanceGrad ignores dloss", "BalanceGrad", `dlogits\[`, func(n naive) kernels.Backend { return ignoresLoss{n} }},
	{"Route rounds its weight", "Route", `logits\[`, func(n naive) kernels.Backend { return coarse{n, 8} }},
	{"RouteGradWeight overwrites", "RouteGradWeight", `dr\[`, func(n naive) kernels.Backend { return overwritesRouter{n} }},
}

// reversed is t with each row back to front.
func reversed(t kernels.Tensor) kernels.Tensor {
	n := t.Shape[1]
	values := decode(t)
	return changed(t, func(i int, _ float64) float64 { return values[i-i%n+n-1-i%n] })
}

type tieGoesHigh struct{ naive }

func (b tieGoesHigh) Gate(gates, logits kernels.Tensor) {
	b.naive.Gate(gates, reversed(logits))
	b.Copy(gates, reversed(gates))
}

type leavesOthers struct{ naive }

func (b leavesOthers) Gate(gates, logits kernels.Tensor) {
	before := decode(gates)
	b.naive.Gate(gates, logits)
	edit(gates, func(i int, v float64) float64 {
		if v == 0 {
			return before[i]
		}
		return v
	})
}

type smallElsewhere struct{ naive }

func (b smallElsewhere) Gate(gates, logits kernels.Tensor) {
	b.naive.Gate(gates, logits)
	edit(gates, func(_ int, v float64) float64 { return max(v, 1e-44) })
}

type sentinel struct{ naive }

func (b sentinel) Gate(gates, logits kernels.Tensor) {
	b.naive.Gate(gates, changed(logits, func(_ int, v float64) float64 { return max(v, -1e30) }))
}

type smallerFirst struct{ naive }

func (b smallerFirst) Top2(ids, weights, logits kernels.Tensor) {
	b.naive.Top2(ids, weights, logits)
	b.Copy(ids, reversed(ids))
	b.Copy(weights, reversed(weights))
}

type topTieGoesHigh struct{ naive }

func (b topTieGoesHigh) Top2(ids, weights, logits kernels.Tensor) {
	b.naive.Top2(ids, weights, reversed(logits))
	edit(ids, func(_ int, v float64) float64 { return float64(logits.Shape[1]-1) - v })
}

type gateNoMean struct{ naive }

func (b gateNoMean) GateGrad(dlogits, gates, dg kernels.Tensor) {
	b.naive.GateGrad(dlogits, gates, dg)
	g, d := decode(gates), decode(dg)
	edit(dlogits, func(i int, _ float64) float64 { return g[i] * d[i] })
}

func everybody(seq kernels.Tensor) kernels.Tensor {
	return changed(seq, func(_ int, v float64) float64 { return max(v, 0) })
}

type balancesPadding struct{ naive }

func (b balancesPadding) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	b.naive.Balance(loss, loads, logits, gates, everybody(seq))
}

type countsPlaces struct{ naive }

func (b countsPlaces) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	n := gates.Shape[1]
	ids, _ := top2(load(logits, b.param))
	places := changed(gates, func(i int, _ float64) float64 {
		if t := i / n; slices.Contains(ids[2*t:2*t+2], int32(i%n)) {
			return 0.5
		}
		return 0
	})
	b.naive.Balance(loss, loads, logits, places, seq)
}

type nobodyIsNaN struct{ naive }

func (b nobodyIsNaN) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	b.naive.Balance(loss, loads, logits, gates, seq)
	tokens := float64(len(counted(kernels.Slice[int32](seq))))
	edit(loss, func(_ int, v float64) float64 { return v * tokens / tokens })
}

type ignoresLoss struct{ naive }

func (b ignoresLoss) BalanceGrad(dlogits, dloss, logits, loads, seq kernels.Tensor) {
	one := changed(dloss, func(int, float64) float64 { return 1 })
	b.naive.BalanceGrad(dlogits, one, logits, loads, seq)
}

type overwritesRouter struct{ naive }

func (b overwritesRouter) RouteGradWeight(dr, dlogits, h kernels.Tensor) {
	b.Zero(dr)
	b.naive.RouteGradWeight(dr, dlogits, h)
}
