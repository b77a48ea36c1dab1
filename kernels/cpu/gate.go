package cpu

import (
	"math"

	"loratrain/kernels"
)

// Route is logits = h·routerᵀ. logits (T, E), h (T, D), router (E, D).
func (e *engine[E]) Route(logits, h, router kernels.Tensor) {
	const op = "Route"
	rows, width := matrixShape(op, "h", h)
	experts, _ := matrixShape(op, "router", router)
	ls, hs := in[E](op, "logits", logits, rows, experts), in[E](op, "h", h, rows, width)
	rs := in[E](op, "router", router, experts, width)
	e.split(rows, 1, rows*experts*width/4, func(w *worker[E], from, to int) {
		for t := from; t < to; t++ {
			w.vec.dots(ls[t*experts:(t+1)*experts], rs, hs[t*width:(t+1)*width], width)
		}
	})
}

// RouteGradInput is dh = dlogits·router. dh (T, D), dlogits (T, E), router (E, D).
func (e *engine[E]) RouteGradInput(dh, dlogits, router kernels.Tensor) {
	const op = "RouteGradInput"
	rows, experts := matrixShape(op, "dlogits", dlogits)
	_, width := matrixShape(op, "router", router)
	e.multiply(dense(in[E](op, "dh", dh, rows, width), rows, width),
		dense(in[E](op, "dlogits", dlogits, rows, experts), rows, experts),
		dense(in[E](op, "router", router, experts, width), experts, width), 1, 0)
}

// RouteGradWeight adds dlogitsᵀ·h to dr. dr (E, D), dlogits (T, E), h (T, D).
func (e *engine[E]) RouteGradWeight(dr, dlogits, h kernels.Tensor) {
	const op = "RouteGradWeight"
	rows, experts := matrixShape(op, "dlogits", dlogits)
	_, width := matrixShape(op, "h", h)
	e.multiply(dense(in[E](op, "dr", dr, experts, width), experts, width),
		dense(in[E](op, "dlogits", dlogits, rows, experts), rows, experts).t(),
		dense(in[E](op, "h", h, rows, width), rows, width), 1, 1)
}

// Gate is, in each row, softmax over the two largest logits, zero elsewhere; ties go to the lower expert.
// gates, logits (T, E).
func (e *engine[E]) Gate(gates, logits kernels.Tensor) {
	const op = "Gate"
	rows, experts := matrixShape(op, "logits", logits)
	gs, ls := in[E](op, "gates", gates, rows, experts), in[E](op, "logits", logits, rows, experts)
	clear(gs)
	for t := range rows {
		top := topTwo(ls[t*experts : (t+1)*experts])
		for _, place := range top.places() {
			gs[t*experts+place.expert] = place.weight
		}
	}
}

// place is an expert that serves a token.
type place[E float] struct {
	expert int
	weight E
}

// topPlaces is up to two of them, the larger first.
type topPlaces[E float] struct {
	n     int
	place [2]place[E]
}

func (p *topPlaces[E]) places() []place[E] { return p.place[:p.n] }

// topTwo is the two largest of a row with the softmax over them. NaN counts as smaller than all numbers, but if a
// row has one, both weights are NaN.
func topTwo[E float](logits []E) topPlaces[E] {
	first, second, spoilt := -1, -1, false
	for i, x := range logits {
		switch {
		case x != x:
			spoilt = true
			continue
		case first < 0 || x > logits[first]:
			first, second = i, first
		case second < 0 || x > logits[second]:
			second = i
		}
	}
	for i := 0; i < len(logits) && second < 0; i++ { // a single expert, or NaNs
		if first < 0 {
			first = i
		} else if i != first {
			second = i
		}
	}
	var top topPlaces[E]
	switch {
	case first < 0:
		return top
	case second < 0:
		top.n, top.place[0] = 1, place[E]{first, 1}
	default:
		// exp of the difference, which is never positive, cannot overflow.
		ratio := math.Exp(float64(logits[second]) - float64(logits[first]))
		top.n = 2
		top.place = [2]place[E]{{first, E(1 / (1 + ratio))}, {second, E(ratio / (1 + ratio))}}
	}
	if spoilt {
		for i := range top.n {
			top.place[i].weight = E(math.NaN())
		}
	}
	return top
}

// GateGrad is dlogits = g ⊙ (dg - Σ_e g_e·dg_e), row by row.
func (e *engine[E]) GateGrad(dlogits, gates, dg kernels.Tensor) {
	const op = "GateGrad"
	rows, experts := matrixShape(op, "gates", gates)
	dls, gs := in[E](op, "dlogits", dlogits, rows, experts), in[E](op, "gates", gates, rows, experts)
	dgs := in[E](op, "dg", dg, rows, experts)
	for t := range rows {
		from, to := t*experts, (t+1)*experts
		var mean E
		for i, g := range gs[from:to] {
			mean += g * dgs[from+i]
		}
		for i, g := range gs[from:to] {
			dls[from+i] = g * (dgs[from+i] - mean)
		}
	}
}

// Balance is loss = E·Σ_e f_e·p_e over the tokens with seq ≥ 0, where f_e is the share of the top-2 places
// that e holds (a place counts if its gate is above 0) and p_e its mean softmax probability: 1 if all experts
// are used alike. It also writes f to loads. loss (1), loads (E), logits, gates (T, E), seq (T) i32.
func (e *engine[E]) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	const op = "Balance"
	rows, experts := matrixShape(op, "logits", logits)
	ls, gs := in[E](op, "logits", logits, rows, experts), in[E](op, "gates", gates, rows, experts)
	seqs, out := in[int32](op, "seq", seq, rows), in[E](op, "loss", loss, 1)
	f := in[E](op, "loads", loads, experts)
	held, mean, p := make([]float64, experts), make([]float64, experts), make([]float64, experts)
	tokens := 0
	for t := range rows {
		if seqs[t] < 0 {
			continue
		}
		tokens++
		softmax(p, ls[t*experts:(t+1)*experts])
		for i, g := range gs[t*experts : (t+1)*experts] {
			if g > 0 {
				held[i]++
			}
			mean[i] += p[i]
		}
	}
	var sum float64
	n := float64(max(1, tokens))
	for i := range experts {
		share := held[i] / (2 * n)
		f[i] = E(share)
		sum += share * mean[i] / n
	}
	out[0] = E(sum * float64(experts))
}

// BalanceGrad is dlogits[t] = dloss·E/N·p[t] ⊙ (f - Σ_e f_e·p[t, e]) for the N tokens with seq ≥ 0, where p[t] is
// the softmax of a row and f = loads; zero for the others. dloss (1).
func (e *engine[E]) BalanceGrad(dlogits, dloss, logits, loads, seq kernels.Tensor) {
	const op = "BalanceGrad"
	rows, experts := matrixShape(op, "logits", logits)
	dls, ls := in[E](op, "dlogits", dlogits, rows, experts), in[E](op, "logits", logits, rows, experts)
	f, seqs := in[E](op, "loads", loads, experts), in[int32](op, "seq", seq, rows)
	tokens := 0
	for _, s := range seqs {
		if s >= 0 {
			tokens++
		}
	}
	factor := float64(in[E](op, "dloss", dloss, 1)[0]) * float64(experts) / float64(max(1, tokens))
	p := make([]float64, experts)
	for t := range rows {
		row := dls[t*experts : (t+1)*experts]
		if seqs[t] < 0 {
			clear(row)
			continue
		}
		softmax(p, ls[t*experts:(t+1)*experts])
		var mean float64
		for i, pi := range p {
			mean += float64(f[i]) * pi
		}
		for i, pi := range p {
			row[i] = E(factor * pi * (float64(f[i]) - mean))
		}
	}
}

// softmax is p = softmax(logits) for a short row.
func softmax[E float](p []float64, logits []E) {
	most := math.Inf(-1)
	for _, x := range logits {
		most = max(most, float64(x)) // the built-in max keeps a NaN
	}
	var sum float64
	for i, x := range logits {
		p[i] = math.Exp(float64(x) - most)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
}
