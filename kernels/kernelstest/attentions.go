package kernelstest

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
)

// sight is what the tokens of a batch see: four numbers a token.
type sight []int32

// causal is sequences of these lengths end to end, whose tokens see at most window others before them.
func causal(window int, lengths ...int) sight {
	var s sight
	start := 0
	for _, n := range lengths {
		for t := start; t < start+n; t++ {
			s = append(s, int32(max(start, t-window)), int32(t+1), 0, 0)
		}
		start += n
	}
	return s
}

// continued is a prompt and continuations that all see it, and themselves.
func continued(prompt int, lengths ...int) sight {
	s := causal(math.MaxInt32, prompt)
	start := prompt
	for _, n := range lengths {
		for t := start; t < start+n; t++ {
			s = append(s, int32(start), int32(t+1), 0, int32(prompt))
		}
		start += n
	}
	return s
}

// nothing is n tokens that see nothing, in the ways there are to say so.
func nothing(n int) sight {
	var s sight
	for i := range n {
		s = append(s, [][]int32{{0, 0, 0, 0}, {1, 1, 0, 0}, {0, 0, 2, 2}}[i%3]...)
	}
	return s
}

// attentionCase is a batch. Scores have about the given deviation.
type attentionCase struct {
	name       string
	heads      kernels.Heads
	spans      sight
	keys       int // rows of k and v; 0: as many as tokens
	deviation  float64
	values     spread
	unseen     bool // what nobody sees, and the queries that see nothing, are NaN
	nanQ, nanK int  // elements that are NaN; -1: none
}

func attentionCases() []attentionCase {
	plain := func(name string, h kernels.Heads, s sight) attentionCase {
		return attentionCase{name, h, s, 0, 1, normal, false, -1, -1}
	}
	cache := func(name string, h kernels.Heads, keys int, s ...int32) attentionCase {
		return attentionCase{name, h, s, keys, 1, normal, true, -1, -1}
	}
	all := math.MaxInt32
	h := kernels.Heads{Query: 4, KV: 2, Dim: 8}
	return []attentionCase{
		plain("one token", kernels.Heads{Query: 1, KV: 1, Dim: 2}, causal(all, 1)),
		plain("ratio 1", kernels.Heads{Query: 3, KV: 3, Dim: 16}, causal(all, 33)),
		plain("ratio 2", kernels.Heads{Query: 2, KV: 1, Dim: 2}, causal(all, 17)),
		plain("ratio 3", kernels.Heads{Query: 9, KV: 3, Dim: 12}, causal(all, 17)),
		plain("ratio 4", kernels.Heads{Query: 8, KV: 2, Dim: 64}, causal(all, 7)),
		plain("heads of 80", kernels.Heads{Query: 2, KV: 2, Dim: 80}, causal(all, 9)),
		plain("heads of 128", kernels.Heads{Query: 2, KV: 1, Dim: 128}, causal(all, 5)),
		plain("heads of 1", kernels.Heads{Query: 2, KV: 1, Dim: 1}, causal(all, 5)),
		plain("packed", h, causal(all, 5, 1, 9, 3)),
		plain("many sequences", kernels.Heads{Query: 4, KV: 2, Dim: 12}, append(continued(9, 25, 1, 17), nothing(13)...)),
		plain("long sequences", kernels.Heads{Query: 2, KV: 1, Dim: 16}, causal(all, 65, 1, 70)),
		plain("one-token sequences", h, causal(all, 1, 1, 1, 1, 1)),
		plain("window", h, causal(3, 17, 2, 9)),
		plain("shared prompt", h, continued(7, 3, 1, 5)),
		plain("prompt of one", h, continued(1, 1, 1)),
		plain("padding", h, append(causal(all, 5, 3), nothing(4)...)),
		plain("padding between", h, slices.Concat(causal(all, 3), nothing(2), sight{5, 6, 0, 0, 5, 7, 0, 0})),
		plain("nothing at all", h, nothing(5)),
		plain("second range only", h, sight{0, 0, 0, 1, 2, 2, 0, 2, 1, 1, 1, 3}),
		plain("ranges either way round", h, sight{0, 1, 1, 2, 1, 2, 0, 1, 2, 3, 0, 1}),
		plain("gap", h, sight{0, 1, 0, 0, 1, 2, 0, 0, 0, 1, 2, 3, 3, 4, 0, 2}),
		plain("future too", h, sight{0, 4, 0, 0, 0, 4, 0, 0, 2, 4, 0, 1, 0, 4, 0, 0}),
		cache("cache", h, 40, 0, 33, 0, 0, 7, 8, 0, 0, 35, 40, 1, 3),
		cache("long cache", kernels.Heads{Query: 3, KV: 1, Dim: 16}, 300, 3, 260, 0, 0),
		cache("cache of one", h, 1, 0, 1, 0, 0, 0, 1, 0, 0),
		cache("cache behind a prompt", h, 70, 66, 69, 0, 65, 69, 70, 0, 65),
		{"large scores", h, causal(all, 9, 4), 0, 50, normal, false, -1, -1},
		{"huge scores", h, causal(all, 9, 4), 0, 1e4, normal, false, -1, -1},
		{"equal scores", h, causal(all, 9), 0, 0, normal, false, -1, -1},
		{"outliers", h, continued(9, 4), 0, 1, outliers, false, -1, -1},
		{"unseen NaN", h, append(causal(3, 5, 3), nothing(3)...), 12, 1, normal, true, -1, -1},
		{"NaN in q", h, causal(all, 5, 4), 0, 1, normal, false, 3*32 + 9, -1},
		{"NaN in the last k", h, causal(all, 2, 2, 3), 0, 1, normal, false, -1, 6*16 + 9},
		{"NaN in k", h, causal(all, 5, 4), 0, 1, normal, false, -1, 2*16 + 9},
	}
}

// attentionInputs is q, k, v and spans on the backend.
type attentionInputs struct {
	n           attentionCase
	q, k, v, at *operand
	tokens      int
}

func (n attentionCase) inputs(c *call) attentionInputs {
	x := attentionInputs{n: n, tokens: len(n.spans) / 4}
	rows := n.keys
	if rows == 0 {
		rows = x.tokens
	}
	q, k := c.normal(x.tokens*n.heads.Query*n.heads.Dim), c.normal(rows*n.heads.KV*n.heads.Dim)
	v := n.values.make(c.rand, len(k))
	for i := range q {
		q[i] *= n.deviation
	}
	if n.unseen {
		n.hide(q, k, v)
	}
	if n.nanQ >= 0 {
		q[n.nanQ] = math.NaN()
	}
	if n.nanK >= 0 {
		k[n.nanK] = math.NaN()
	}
	x.q = c.in("q", c.b.Float(), q, x.tokens, n.heads.Query*n.heads.Dim)
	x.k, x.v = c.in("k", c.b.Float(), k, rows, n.heads.KV*n.heads.Dim), c.in("v", c.b.Float(), v, rows, n.heads.KV*n.heads.Dim)
	x.at = c.ids("spans", n.spans, x.tokens, 4)
	return x
}

// hide makes a NaN of what does not count.
func (n attentionCase) hide(q, k, v []float64) {
	used := map[int]bool{}
	for t := range len(n.spans) / 4 {
		keys := seen(n.spans[4*t : 4*t+4])
		for _, j := range keys {
			used[j] = true
		}
		if len(keys) == 0 {
			blank(q, t, n.heads.Query*n.heads.Dim)
		}
	}
	width := n.heads.KV * n.heads.Dim
	for j := range len(k) / width {
		if !used[j] {
			blank(k, j, width)
			blank(v, j, width)
		}
	}
}

func blank(x []float64, row, width int) {
	for i := range width {
		x[row*width+i] = math.NaN()
	}
}

func testAttention(t *testing.T, b kernels.Backend) {
	for _, n := range attentionCases() {
		for _, keep := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s lse %v", n.name, keep), func(t *testing.T) {
				c := newCall(t, b)
				x := n.inputs(c)
				o := c.out("o", b.Float(), x.q.view.Shape...)
				var lse *operand
				if keep {
					lse = c.out("lse", b.Param(), x.tokens, n.heads.Query)
				}
				c.run(func() {
					b.Attention(o.tensor(), lse.tensor(), x.q.tensor(), x.k.tensor(), x.v.tensor(), x.at.tensor(), n.heads)
				})
				wantO, wantL := attention(x.q.matrix(), x.k.matrix(), x.v.matrix(), n.spans, n.heads)
				c.want(o, wantO)
				if keep {
					c.want(lse, wantL)
				}
			})
		}
	}
	t.Run("worked", func(t *testing.T) {
		c := newCall(t, b)
		// Scores 2·0/√4 = 0 and 2·ln 3/√4 = ln 3 are weights 1/4 and 3/4.
		q, k := c.in("q", b.Float(), []float64{2, 0, 0, 0}, 1, 4), c.in("k", b.Float(), []float64{0, 0, 0, 0, math.Log(3), 0, 0, 0}, 2, 4)
		v, at := c.in("v", b.Float(), []float64{4, 0, 1, 8, 0, 4, 1, -8}, 2, 4), c.ids("spans", []int32{0, 1, 1, 2}, 1, 4)
		o := c.out("o", b.Float(), 1, 4)
		c.run(func() {
			b.Attention(o.tensor(), kernels.Tensor{}, q.tensor(), k.tensor(), v.tensor(), at.tensor(), kernels.Heads{Query: 1, KV: 1, Dim: 4})
		})
		c.want(o, fill(1, 4, func(_, i int) number { return number{v: []float64{1, 3, 1, -4}[i], acc: 8, sto: 4} }))
	})
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		n := attentionCase{heads: kernels.Heads{Query: 2, KV: 1, Dim: 4}, spans: causal(9, 3), values: normal, nanQ: -1, nanK: -1}
		x := n.inputs(c)
		o, lse := c.out("o", b.Float(), 3, 8), c.out("lse", b.Param(), 3, 2)
		c.contradict(func() {
			b.Attention(o.tensor(), lse.tensor(), x.q.tensor(), x.k.tensor(), x.v.tensor(), x.at.tensor(), n.heads)
		})
	})
}

func testAttentionGrad(t *testing.T, b kernels.Backend) {
	for _, n := range attentionCases() {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			op, check := n.gradient(c)
			c.run(op)
			check()
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		n := attentionCase{heads: kernels.Heads{Query: 2, KV: 1, Dim: 4}, spans: causal(9, 3), values: normal, nanQ: -1, nanK: -1}
		op, _ := n.gradient(c)
		c.contradict(op)
	})
}

func (n attentionCase) gradient(c *call) (op, check func()) {
	x := n.inputs(c)
	wantO, wantL := attention(x.q.matrix(), x.k.matrix(), x.v.matrix(), n.spans, n.heads)
	o := c.in("o", c.b.Float(), wantO.values(), x.q.view.Shape...)
	lses, dos := wantL.values(), c.normal(x.q.view.Len())
	for i := range lses {
		if math.IsInf(wantL.elems[i].acc, 1) {
			lses[i] = math.Inf(-1) // the logarithm of a sum of nothing
		}
	}
	if n.unseen {
		n.hide(dos, nil, nil)
	}
	lse, do := c.in("lse", c.b.Param(), lses, x.tokens, n.heads.Query), c.in("do", c.b.Float(), dos, x.q.view.Shape...)
	dq := c.out("dq", c.b.Float(), x.q.view.Shape...)
	dk, dv := c.out("dk", c.b.Float(), x.k.view.Shape...), c.out("dv", c.b.Float(), x.k.view.Shape...)
	op = func() {
		c.b.AttentionGrad(dq.tensor(), dk.tensor(), dv.tensor(), do.tensor(), o.tensor(), lse.tensor(), x.q.tensor(), x.k.tensor(), x.v.tensor(), x.at.tensor(), n.heads)
	}
	return op, func() {
		wantQ, wantK, wantV := attentionGrad(do.matrix(), o.matrix(), lse.matrix(), x.q.matrix(), x.k.matrix(), x.v.matrix(), n.spans, n.heads)
		c.want(dq, wantQ)
		c.want(dk, wantK)
		c.want(dv, wantV)
	}
}
