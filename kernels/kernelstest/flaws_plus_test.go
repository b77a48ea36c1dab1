package kernelstest

import "loratrain/kernels"

var plusFlaws = []flaw{
	{"RMSNormGrad ignores plus", "RMSNormGrad", `plus(?s:.*)dx\[`, func(n naive) kernels.Backend { return noPlus{n} }},
	{"RMSNormGrad adds plus twice", "RMSNormGrad", `plus(?s:.*)dx\[`, func(n naive) kernels.Backend { return twicePlus{n} }},
	{"Linear ignores plus", "Linear", `plus(?s:.*)y\[`, func(n naive) kernels.Backend { return noPlus{n} }},
	{"Linear adds plus twice", "Linear", `plus(?s:.*)y\[`, func(n naive) kernels.Backend { return twicePlus{n} }},
	{"LinearGrad ignores plus", "LinearGrad", `plus(?s:.*)dx\[`, func(n naive) kernels.Backend { return noPlus{n} }},
	{"LinearGrad adds plus twice", "LinearGrad", `plus(?s:.*)dx\[`, func(n naive) kernels.Backend { return twicePlus{n} }},
	{"LinearGrad takes a plus of any shape", "LinearGrad", `no panic though plus is`, func(n naive) kernels.Backend { return noPlus{n} }},
	{"SwitchLinear ignores plus", "SwitchLinear", `plus(?s:.*)y\[`, func(n naive) kernels.Backend { return noPlus{n} }},
	{"SwitchLinear adds plus twice", "SwitchLinear", `plus(?s:.*)y\[`, func(n naive) kernels.Backend { return twicePlus{n} }},
	{"SwitchGradInput ignores plus", "SwitchGradInput", `plus(?s:.*)dx\[`, func(n naive) kernels.Backend { return noPlus{n} }},
	{"SwitchGradInput adds plus twice", "SwitchGradInput", `plus(?s:.*)dx\[`, func(n naive) kernels.Backend { return twicePlus{n} }},
	{"SwitchGradInput writes to plus", "SwitchGradInput", `plus\[.*\]: an input was modified`, func(n naive) kernels.Backend { return writesPlus{n} }},
}

// noPlus leaves every addend out.
type noPlus struct{ naive }

func (b noPlus) Linear(y, x, w, bias, _ kernels.Tensor) {
	b.naive.Linear(y, x, w, bias, kernels.Tensor{})
}

func (b noPlus) SwitchLinear(y, u, x, z, w, bias, _ kernels.Tensor, sw kernels.Switch) {
	b.naive.SwitchLinear(y, u, x, z, w, bias, kernels.Tensor{}, sw)
}

func (b noPlus) RMSNormGrad(dx, x, w, dy, _ kernels.Tensor, eps float64) {
	b.naive.RMSNormGrad(dx, x, w, dy, kernels.Tensor{}, eps)
}

func (b noPlus) LinearGrad(dx, dy, w, _ kernels.Tensor) {
	b.naive.LinearGrad(dx, dy, w, kernels.Tensor{})
}

func (b noPlus) SwitchGradInput(dx, dy, w, du, a, _ kernels.Tensor) {
	b.naive.SwitchGradInput(dx, dy, w, du, a, kernels.Tensor{})
}

// twicePlus adds every addend twice.
type twicePlus struct{ naive }

func double(plus kernels.Tensor) kernels.Tensor {
	if plus.None() {
		return plus
	}
	return changed(plus, func(_ int, v float64) float64 { return 2 * v })
}

func (b twicePlus) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.naive.Linear(y, x, w, bias, double(plus))
}

func (b twicePlus) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	b.naive.SwitchLinear(y, u, x, z, w, bias, double(plus), sw)
}

func (b twicePlus) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	b.naive.RMSNormGrad(dx, x, w, dy, double(plus), eps)
}

func (b twicePlus) LinearGrad(dx, dy, w, plus kernels.Tensor) {
	b.naive.LinearGrad(dx, dy, w, double(plus))
}

func (b twicePlus) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	b.naive.SwitchGradInput(dx, dy, w, du, a, double(plus))
}

// writesPlus computes in the addend's memory.
type writesPlus struct{ naive }

func (b writesPlus) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	b.naive.SwitchGradInput(dx, dy, w, du, a, plus)
	if !plus.None() {
		b.Copy(plus, dx)
	}
}
