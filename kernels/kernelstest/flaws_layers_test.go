package kernelstest

import (
	"math"

	"loratrain/kernels"
)

var layerFlaws = []flaw{
	{"RMSNorm without eps", "RMSNorm", `zeros.*(?s:.*)y\[.*\] is NaN, want 0`, func(n naive) kernels.Backend { return noEps{n} }},
	{"RMSNorm hides NaN", "RMSNorm", `want NaN`, func(n naive) kernels.Backend { return hidesNaN{n} }},
	{"RMSNormGrad forgets the mean", "RMSNormGrad", `dx\[`, func(n naive) kernels.Backend { return noMean{n} }},
	{"Linear writes behind its end", "Linear", `y: written 1 elements behind its end`, func(n naive) kernels.Backend { return writesBehind{n} }},
	{"Linear writes to its input", "Linear", `x\[0 0\]: an input was modified`, func(n naive) kernels.Backend { return writesInput{n} }},
	{"Linear is not deterministic", "Linear", `other bits`, func(n naive) kernels.Backend { return &noisy{naive: n} }},
	{"Linear skips the last row", "Linear", `y\[.*\] is NaN, want`, func(n naive) kernels.Backend { return skipsRow{n} }},
	{"Linear ignores the bias", "Linear", `y\[`, func(n naive) kernels.Backend { return noBias{n} }},
	{"Linear multiplies in float32", "Linear", `y\[`, func(n naive) kernels.Backend { return coarse{n, 24} }},
	{"Linear multiplies in tf32", "Linear", `y\[`, func(n naive) kernels.Backend { return coarse{n, 11} }},
	{"Linear rounds Param to Float", "Linear", `in_Param(?s:.*)y\[`, func(n naive) kernels.Backend { return roundsParam{n} }},
	{"Linear takes any shape", "Linear", `no panic though bias is`, func(n naive) kernels.Backend { return noBias{n} }},
	{"SwitchLinear takes x for z", "SwitchLinear", `dropout(?s:.*)u\[`, func(n naive) kernels.Backend { return xForZ{n} }},
	{"SwitchLinear wants A in Param", "SwitchLinear", `adapter_of_bf16(?s:.*)panic: operands`, func(n naive) kernels.Backend { return paramOnly{n} }},
	{"SwitchLinear mixes types", "SwitchLinear", `no panic though B is`, func(n naive) kernels.Backend { return mixes{n} }},
	{"SwitchGradInput reads A as Param", "SwitchGradInput", `adapter_of_bf16(?s:.*)dx\[`, func(n naive) kernels.Backend { return readsHalf{n} }},
	{"SwitchLinear ignores the gates", "SwitchLinear", `y\[`, func(n naive) kernels.Backend { return noGates{n} }},
	{"SwitchGradHidden ignores the scale", "SwitchGradHidden", `dg\[`, func(n naive) kernels.Backend { return noScale{n} }},
	{"SwitchGradA overwrites", "SwitchGradA", `da\[`, func(n naive) kernels.Backend { return overwritesA{n} }},
	{"SwitchGradB overwrites", "SwitchGradB", `db\[`, func(n naive) kernels.Backend { return overwritesB{n} }},
	{"Rotary turns neighbours", "Rotary", `a_quarter_turn`, func(n naive) kernels.Backend { return neighbours{n} }},
	{"Rotary turns forwards only", "Rotary", `there_and_back`, func(n naive) kernels.Backend { return forwards{n} }},
	{"Dropout does not rescale", "Dropout", `y\[`, func(n naive) kernels.Backend { return noRescale{n} }},
	{"Dropout has one mask for all sites", "Dropout", `the mask is not the contract's`, func(n naive) kernels.Backend { return oneSite{n} }},
	{"SwiGLU overflows", "SwiGLU", `y\[.*\] is NaN, want`, func(n naive) kernels.Backend { return overflows{n} }},
	{"Sum adds two at most", "Sum", `3_of`, func(n naive) kernels.Backend { return sumsTwo{n} }},
}

type noEps struct{ naive }

func (b noEps) RMSNorm(y, x, w kernels.Tensor, _ float64) { b.naive.RMSNorm(y, x, w, 0) }

type hidesNaN struct{ naive }

func (b hidesNaN) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	b.naive.RMSNorm(y, x, w, eps)
	edit(y, finite)
}

type noMean struct{ naive }

func (b noMean) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	b.naive.RMSNormGrad(dx, changed(x, func(int, float64) float64 { return 1 }), w, dy, plus, eps)
}

type writesBehind struct{ naive }

func (b writesBehind) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.naive.Linear(y, x, w, bias, plus)
	// The view's memory ends where it should; an unsafe backend goes on.
	beyond(y)[0]++
}

type writesInput struct{ naive }

func (b writesInput) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.naive.Linear(y, x, w, bias, plus)
	edit(x, func(int, float64) float64 { return 3 })
}

type noisy struct {
	naive
	calls int
}

func (b *noisy) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.naive.Linear(y, x, w, bias, plus)
	b.calls++
	edit(y, func(_ int, v float64) float64 {
		if v == 0 && b.calls%2 == 0 {
			return math.Copysign(0, -1)
		}
		return v
	})
}

type skipsRow struct{ naive }

func (b skipsRow) Linear(y, x, w, bias, plus kernels.Tensor) {
	rows, width := y.Shape[0]-1, x.Shape[1]
	if rows == 0 {
		b.naive.Linear(y, x, w, bias, plus)
		return
	}
	b.naive.Linear(y.View(0, rows, y.Shape[1]), x.View(0, rows, width), w, bias, firstRows(plus, rows))
}

// firstRows is so many rows of a matrix, or none of none.
func firstRows(t kernels.Tensor, rows int) kernels.Tensor {
	if t.None() {
		return t
	}
	return t.View(0, rows, t.Shape[1])
}

type roundsParam struct{ naive }

func (b roundsParam) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.naive.Linear(y, x, w, bias, plus)
	values := decode(y)
	for i, v := range decode(encode(values, b.float)) {
		values[i] = v
	}
	edit(y, func(i int, _ float64) float64 { return values[i] })
}

type noBias struct{ naive }

func (b noBias) Linear(y, x, w, _, plus kernels.Tensor) {
	b.naive.Linear(y, x, w, kernels.Tensor{}, plus)
}

// coarse rounds the factors of a product to so many digits.
type coarse struct {
	naive
	digits int
}

func (b coarse) round(t kernels.Tensor) kernels.Tensor {
	return changed(t, func(_ int, v float64) float64 {
		fraction, exponent := math.Frexp(v)
		return math.Ldexp(math.RoundToEven(math.Ldexp(fraction, b.digits)), exponent-b.digits)
	})
}

func (b coarse) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.naive.Linear(y, b.round(x), b.round(w), bias, plus)
}

func (b coarse) Route(logits, h, router kernels.Tensor) {
	b.naive.Route(logits, h, b.round(router))
}

type xForZ struct{ naive }

func (b xForZ) SwitchLinear(y, u, x, _, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	b.naive.SwitchLinear(y, u, x, x, w, bias, plus, sw)
}

type noGates struct{ naive }

func (b noGates) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	sw.Gates = kernels.Tensor{}
	b.naive.SwitchLinear(y, u, x, z, w, bias, plus, sw)
}

type paramOnly struct{ naive }

func (b paramOnly) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	b.pars(sw.A)
	b.naive.SwitchLinear(y, u, x, z, w, bias, plus, sw)
}

type mixes struct{ naive }

func (b mixes) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	if sw.A.Type == b.param && sw.B.Type == b.float {
		sw.B = encode(decode(sw.B), b.param).Reshape(sw.B.Shape...)
	}
	b.naive.SwitchLinear(y, u, x, z, w, bias, plus, sw)
}

type readsHalf struct{ naive }

func (b readsHalf) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	if a.Type != b.param {
		a = changed(a, func(i int, v float64) float64 { return v * float64(i%2) })
	}
	b.naive.SwitchGradInput(dx, dy, w, du, a, plus)
}

type noScale struct{ naive }

func (b noScale) SwitchGradHidden(du, dg, dy, u kernels.Tensor, sw kernels.Switch) {
	sw.Scale = 1
	b.naive.SwitchGradHidden(du, dg, dy, u, sw)
}

type overwritesA struct{ naive }

func (b overwritesA) SwitchGradA(da, z, du kernels.Tensor) {
	b.Zero(da)
	b.naive.SwitchGradA(da, z, du)
}

type overwritesB struct{ naive }

func (b overwritesB) SwitchGradB(db, u, dy kernels.Tensor, sw kernels.Switch) {
	b.Zero(db)
	b.naive.SwitchGradB(db, u, dy, sw)
}

type neighbours struct{ naive }

func (b neighbours) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	d, xs := table.Shape[1], decode(x)
	pair := func(j int) int { return j - j%d + j%d%(d/2)*2 + j%d/(d/2) } // where the halves' element j lies
	b.naive.Rotary(y, changed(x, func(j int, _ float64) float64 { return xs[pair(j)] }), table, pos, backwards)
	ys := decode(y)
	edit(y, func(j int, _ float64) float64 { return ys[j-j%d+j%d%2*(d/2)+j%d/2] })
}

type forwards struct{ naive }

func (b forwards) Rotary(y, x, table, pos kernels.Tensor, _ bool) {
	b.naive.Rotary(y, x, table, pos, false)
}

type noRescale struct{ naive }

func (b noRescale) Dropout(y, x, key kernels.Tensor, site int, rate float64) {
	b.naive.Dropout(y, x, key, site, rate)
	edit(y, func(_ int, v float64) float64 { return v * (1 - rate) })
}

type oneSite struct{ naive }

func (b oneSite) Dropout(y, x, key kernels.Tensor, _ int, rate float64) {
	b.naive.Dropout(y, x, key, 0, rate)
}

type overflows struct{ naive }

func (b overflows) SwiGLU(y, g, u kernels.Tensor) {
	b.naive.SwiGLU(y, g, u)
	gs := decode(g)
	edit(y, func(i int, v float64) float64 {
		return v * math.Exp(gs[i]) / math.Exp(gs[i])
	})
}

type sumsTwo struct{ naive }

func (b sumsTwo) Sum(y kernels.Tensor, xs ...kernels.Tensor) { b.naive.Sum(y, xs[:min(2, len(xs))]...) }
