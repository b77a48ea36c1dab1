package kernelstest

import (
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
)

func testAdvance(t *testing.T, b kernels.Backend) {
	many := make([]int32, 64)
	for i := range many {
		many[i] = int32(i - 3)
	}
	for _, row := range []struct {
		name               string
		length             []int32
		room, window       int
		vocabulary, chosen int // of the routing table; 0: none
	}{
		{"first position", []int32{0}, 1, 0, 5, 2},
		{"one sequence", []int32{6}, 40, 0, 5, 2},
		{"no table", []int32{6, -1, 0}, 40, 0, 0, 0},
		{"stopped", []int32{3, -1, math.MinInt32, 0}, 9, 0, 7, 2},
		{"all stopped", []int32{-1, -1}, 9, 0, 7, 2},
		{"last row of the cache", []int32{8, 7, 8}, 9, 0, 7, 2},
		{"full", []int32{9, 8, 10, math.MaxInt32}, 9, 0, 7, 2},
		{"no room", []int32{0, 0}, 0, 0, 7, 2},
		{"within the window", []int32{2, 3, 0}, 50, 4, 7, 2},
		{"out of the window", []int32{4, 5, 49, 50}, 50, 4, 7, 2},
		{"window of one", []int32{0, 1, 7}, 8, 1, 7, 2},
		{"window beyond the room", []int32{0, 7, 8}, 8, math.MaxInt32, 7, 2},
		{"one expert", []int32{5, 2}, 8, 0, 3, 1},
		{"three experts", []int32{5, -1, 2}, 8, 0, 3, 3},
		{"64 sequences", many, 60, 33, 97, 2},
		{"rows that 31 bits hold", []int32{1<<24 - 1, 0, 1<<24 - 2}, 1 << 24, 0, 97, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			a := newAdvance(c, row.length, row.room, row.window, row.vocabulary, row.chosen)
			c.run(a.op)
			a.check()
		})
	}
	t.Run("step by step", func(t *testing.T) { testAdvanceSteps(t, b) })
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		c.contradict(newAdvance(c, []int32{2, 0, -1}, 5, 0, 7, 2).op)
	})
}

// testAdvanceSteps goes on from what the call before left, with the same tensors.
func testAdvanceSteps(t *testing.T, b kernels.Backend) {
	c := newCall(t, b)
	a := newAdvance(c, []int32{0, 1, -1}, 4, 2, 7, 2)
	for step := range 5 {
		a.op()
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		for _, o := range c.args {
			b.Read(o.after, o.whole)
		}
		a.check()
		if t.Failed() {
			t.Fatalf("in step %d", step+1)
		}
		a.in.length = a.in.advance().length
	}
}

// advance is the operands of an Advance.
type advance struct {
	c                                     *call
	in                                    advancing
	tokens, length, keys, pos, live, rows *operand
	spans, u, experts, weights, ids, gate *operand
}

func newAdvance(c *call, length []int32, room, window, vocabulary, chosen int) *advance {
	n := len(length)
	a := &advance{c: c, in: advancing{
		tokens: c.integers(n, max(vocabulary, 1)), length: length, room: room, window: window, chosen: chosen,
	}}
	if vocabulary > 0 {
		a.in.tokens[n-1], a.in.ids = int32(vocabulary-1), c.integers(vocabulary*chosen, 9)
	}
	for range 2 * n {
		a.in.keys = append(a.in.keys, int32(c.rand.Uint32()))
	}
	param := c.b.Param()
	a.tokens, a.keys = c.ids("tokens", a.in.tokens, n), c.ids("keys", a.in.keys, n, 2)
	wide := make([]float64, n)
	for i, l := range length {
		wide[i] = float64(l)
	}
	a.length = c.operand("length", adds, kernels.I32, wide, -8888, n)
	a.pos, a.live, a.rows = c.out("pos", kernels.I32, n), c.out("live", kernels.I32, n), c.out("rows", kernels.I32, n)
	a.spans = c.out("spans", kernels.I32, n, 4)
	a.u = c.out("u", param, n)
	if chosen > 0 {
		a.ids = c.ids("ids", a.in.ids, vocabulary, chosen)
		a.gate = c.in("gates", param, c.normal(vocabulary*chosen), vocabulary, chosen)
		a.in.gates = a.gate.matrix()
		a.experts, a.weights = c.out("experts", kernels.I32, n, chosen), c.out("weights", param, n, chosen)
	}
	return a
}

func (a *advance) op() {
	a.c.b.Advance(kernels.Sequences{
		Tokens: a.tokens.tensor(), Length: a.length.tensor(), Keys: a.keys.tensor(), Room: a.in.room, Window: a.in.window,
		Pos: a.pos.tensor(), Live: a.live.tensor(), Rows: a.rows.tensor(), Spans: a.spans.tensor(), U: a.u.tensor(),
		Experts: a.experts.tensor(), Weights: a.weights.tensor(),
	}, a.ids.tensor(), a.gate.tensor())
}

func (a *advance) check() {
	a.c.t.Helper()
	want := a.in.advance()
	a.c.wantIDs(a.length, want.length...)
	a.c.wantIDs(a.pos, want.pos...)
	a.c.wantIDs(a.live, want.live...)
	a.c.wantIDs(a.rows, want.rows...)
	a.c.wantIDs(a.spans, want.spans...)
	a.same(a.u, want.u)
	if a.in.chosen > 0 {
		a.c.wantIDs(a.experts, want.experts...)
		a.same(a.weights, want.weights)
	}
}

// same compares numbers that are copied or made of bits.
func (a *advance) same(o *operand, want matrix) {
	a.c.t.Helper()
	if got := o.got(); !slices.Equal(got, want.values()) {
		a.c.t.Errorf("%s is %v, want %v", o.name, got, want.values())
	}
}
