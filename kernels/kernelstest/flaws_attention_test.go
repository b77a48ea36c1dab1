package kernelstest

import (
	"math"

	"loratrain/kernels"
)

var attentionFlaws = []flaw{
	{"Attention sees a key too many", "Attention", `o\[`, func(n naive) kernels.Backend { return oneMore{n} }},
	{"Attention sees one range", "Attention", `shared_prompt`, func(n naive) kernels.Backend { return oneRange{n} }},
	{"Attention without the root", "Attention", `worked(?s:.*)o\[`, func(n naive) kernels.Backend { return noRoot{n} }},
	{"Attention deals out heads in turns", "Attention", `ratio_2|packed`, func(n naive) kernels.Backend { return turns{n} }},
	{"Attention of nothing is NaN", "Attention", `padding(?s:.*)o\[.*\] is NaN, want 0`, func(n naive) kernels.Backend { return nothingIsNaN{n} }},
	{"Attention gives lse in base 2", "Attention", `lse\[`, func(n naive) kernels.Backend { return baseTwo{n} }},
	{"AttentionGrad without the root", "AttentionGrad", `dk\[`, func(n naive) kernels.Backend { return gradNoRoot{n} }},
	{"AttentionGrad forgets unseen keys", "AttentionGrad", `cache(?s:.*)dv\[.*\] is NaN, want 0`, func(n naive) kernels.Backend { return skipsUnseen{n} }},
	{"CrossEntropy counts padding", "CrossEntropy", `loss\[0\]`, func(n naive) kernels.Backend { return countsPadding{n} }},
	{"CrossEntropy is a mean", "CrossEntropy", `loss\[0\]`, func(n naive) kernels.Backend { return meanLoss{n} }},
	{"CrossEntropy leaves rows of padding", "CrossEntropy", `dh\[.*\] is NaN, want 0`, func(n naive) kernels.Backend { return leavesRows{n} }},
	{"CrossEntropy overflows", "CrossEntropy", `huge_logits`, func(n naive) kernels.Backend { return expOfLogits{n} }},
	{"CrossEntropy hides NaN", "CrossEntropy", `NaN_in_h(?s:.*)loss\[0\] is 0, want NaN`, func(n naive) kernels.Backend { return lossHidesNaN{n} }},
	{"LogProb of the wrong sign", "LogProb", `lp\[`, func(n naive) kernels.Backend { return wrongSign{n} }},
}

type oneMore struct{ naive }

func (b oneMore) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	wider := changed(spans, func(i int, v float64) float64 {
		if i%4 == 1 && int(v) < k.Shape[0] {
			return v + 1
		}
		return v
	})
	b.naive.Attention(o, lse, q, k, v, wider, heads)
}

type oneRange struct{ naive }

func (b oneRange) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	first := changed(spans, func(i int, v float64) float64 {
		if i%4 > 1 {
			return 0
		}
		return v
	})
	b.naive.Attention(o, lse, q, k, v, first, heads)
}

type noRoot struct{ naive }

func (b noRoot) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	root := math.Sqrt(float64(heads.Dim))
	b.naive.Attention(o, lse, changed(q, func(_ int, v float64) float64 { return v * root }), k, v, spans, heads)
}

type turns struct{ naive }

// Attention gives query head h key-value head h mod K.
func (b turns) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	row, group := heads.Query*heads.Dim, heads.Query/heads.KV
	// The slot of a head in the right order is the head whose turn it is.
	turn := func(j int) int {
		slot := j % row / heads.Dim
		return j - j%row + (slot%group*heads.KV+slot/group)*heads.Dim + j%heads.Dim
	}
	qs := decode(q)
	b.naive.Attention(o, lse, changed(q, func(j int, _ float64) float64 { return qs[turn(j)] }), k, v, spans, heads)
	ys := decode(o)
	back := make([]float64, len(ys))
	for j := range ys {
		back[turn(j)] = ys[j]
	}
	edit(o, func(j int, _ float64) float64 { return back[j] })
}

type nothingIsNaN struct{ naive }

func (b nothingIsNaN) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	b.naive.Attention(o, lse, q, k, v, spans, heads)
	at := kernels.Slice[int32](spans)
	edit(o, func(i int, v float64) float64 {
		t := i / o.Shape[1]
		if len(seen(at[4*t:4*t+4])) == 0 {
			return math.NaN()
		}
		return v
	})
}

type baseTwo struct{ naive }

func (b baseTwo) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	b.naive.Attention(o, lse, q, k, v, spans, heads)
	if !lse.None() {
		edit(lse, func(_ int, v float64) float64 { return v / math.Ln2 })
	}
}

type gradNoRoot struct{ naive }

func (b gradNoRoot) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	b.naive.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans, heads)
	edit(dk, func(_ int, v float64) float64 { return v * math.Sqrt(float64(heads.Dim)) })
}

type skipsUnseen struct{ naive }

func (b skipsUnseen) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	b.naive.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans, heads)
	edit(dv, func(_ int, v float64) float64 {
		if v == 0 {
			return math.NaN()
		}
		return v
	})
}

type countsPadding struct{ naive }

func (b countsPadding) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	counted := changed(targets, func(_ int, v float64) float64 { return math.Max(0, v) })
	b.naive.CrossEntropy(loss, dh, h, w, counted)
}

type meanLoss struct{ naive }

func (b meanLoss) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	b.naive.CrossEntropy(loss, dh, h, w, targets)
	edit(loss, func(_ int, v float64) float64 { return v / float64(targets.Len()) })
}

type leavesRows struct{ naive }

func (b leavesRows) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	before := kernels.NewHost(b.float, h.Shape...)
	b.naive.CrossEntropy(loss, before, h, w, targets)
	values := decode(before)
	if !dh.None() {
		at := kernels.Slice[int32](targets)
		edit(dh, func(i int, v float64) float64 {
			if at[i/h.Shape[1]] < 0 {
				return v
			}
			return values[i]
		})
	}
}

type expOfLogits struct{ naive }

func (b expOfLogits) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	b.naive.CrossEntropy(loss, dh, h, w, targets)
	edit(loss, func(_ int, v float64) float64 { return math.Log(math.Exp(v)) })
}

type lossHidesNaN struct{ naive }

func (b lossHidesNaN) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	b.naive.CrossEntropy(loss, dh, h, w, targets)
	edit(loss, finite)
}

type wrongSign struct{ naive }

func (b wrongSign) LogProb(lp, h, w, targets kernels.Tensor) {
	b.naive.LogProb(lp, h, w, targets)
	edit(lp, func(_ int, v float64) float64 { return -v })
}
