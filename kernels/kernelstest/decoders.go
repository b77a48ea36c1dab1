package kernelstest

import (
	"fmt"
	"slices"
	"testing"

	"loratrain/kernels"
)

// expertsCase is tokens with n experts each.
type expertsCase struct {
	name               string
	tokens, width, out int
	experts, rank, n   int
	spread             spread
	typ                kernels.Type
	repeated, none     bool // ids: all the same; weights: all zero
}

func testExperts(t *testing.T, b kernels.Backend) {
	f := b.Float()
	cases := []expertsCase{
		{name: "smallest", tokens: 1, width: 1, out: 1, experts: 2, rank: 1, n: 2, spread: normal, typ: f},
		{name: "one token", tokens: 1, width: 65, out: 33, experts: 8, rank: 8, n: 2, spread: normal, typ: f},
		{name: "odd sizes", tokens: 7, width: 33, out: 129, experts: 5, rank: 3, n: 2, spread: normal, typ: f},
		{name: "one of them", tokens: 3, width: 33, out: 17, experts: 4, rank: 4, n: 1, spread: normal, typ: f},
		{name: "three of them", tokens: 3, width: 33, out: 17, experts: 4, rank: 4, n: 3, spread: normal, typ: f},
		{name: "an expert twice", tokens: 5, width: 9, out: 17, experts: 4, rank: 4, n: 2, spread: normal, typ: f, repeated: true},
		{name: "no weight", tokens: 5, width: 9, out: 17, experts: 4, rank: 4, n: 2, spread: normal, typ: f, none: true},
		{name: "outliers", tokens: 33, width: 65, out: 33, experts: 8, rank: 16, n: 2, spread: outliers, typ: f},
		{name: "wide", tokens: 2, width: 257, out: 259, experts: 3, rank: 5, n: 2, spread: normal, typ: f},
	}
	for _, typ := range frozen {
		cases = append(cases, expertsCase{name: fmt.Sprintf("of %v", typ), tokens: 3, width: 33, out: 17, experts: 4, rank: 4, n: 2, spread: normal, typ: typ})
	}
	for _, n := range cases {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			op, check := n.call(c)
			c.run(op)
			check()
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		op, _ := expertsCase{tokens: 2, width: 3, out: 5, experts: 4, rank: 3, n: 2, spread: normal, typ: f}.call(c)
		c.contradict(op)
	})
}

func (n expertsCase) call(c *call) (op, check func()) {
	b := c.b
	x := c.in("x", b.Float(), n.spread.make(c.rand, n.tokens*n.width), n.tokens, n.width)
	down := c.weight("a", n.typ, c.normal(n.experts*n.rank*n.width), n.experts, n.rank, n.width)
	up := c.weight("b", n.typ, c.normal(n.experts*n.rank*n.out), n.experts, n.rank, n.out)
	ids, weights := c.integers(n.tokens*n.n, n.experts), c.normal(n.tokens*n.n)
	for i := range ids {
		if n.repeated {
			ids[i] = int32(n.experts - 1)
		}
		if n.none {
			weights[i] = 0
		}
	}
	id, w := c.ids("ids", ids, n.tokens, n.n), c.in("weights", b.Param(), weights, n.tokens, n.n)
	y := c.adds("y", b.Float(), c.normal(n.tokens*n.out), n.tokens, n.out)
	op = func() {
		b.Experts(y.tensor(), x.tensor(), down.tensor(), up.tensor(), id.tensor(), w.tensor(), 1.5)
	}
	return op, func() {
		c.want(y, experts(y.matrix(), x.matrix(), down.matrix(), up.matrix(), n.rank, ids, w.matrix(), 1.5))
	}
}

func testSpread(t *testing.T, b kernels.Backend) {
	for _, row := range []struct {
		name           string
		tokens, expert int
		n              int
		ids            []int32 // of all tokens, or random ones
	}{
		{"smallest", 1, 1, 1, nil},
		{"one token", 1, 8, 2, nil},
		{"first and last", 2, 5, 2, []int32{4, 0, 0, 4}},
		{"an expert twice", 3, 4, 2, []int32{1, 1, 0, 1, 3, 3}},
		{"the same thrice", 1, 3, 3, []int32{2, 2, 2}},
		{"one of them", 7, 9, 1, nil},
		{"many experts", 33, 300, 2, nil},
		{"many tokens", 2063, 7, 2, nil},
		{"all of them", 2, 3, 3, []int32{2, 0, 1, 0, 1, 2}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			ids := row.ids
			if ids == nil {
				ids = c.integers(row.tokens*row.n, row.expert)
			}
			id, w := c.ids("ids", ids, row.tokens, row.n), c.in("weights", b.Param(), c.normal(row.tokens*row.n), row.tokens, row.n)
			gates := c.out("gates", b.Param(), row.tokens, row.expert)
			c.run(func() { b.Spread(gates.tensor(), id.tensor(), w.tensor()) })
			c.want(gates, spreadGates(row.expert, ids, w.matrix()))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		id, w := c.ids("ids", []int32{0, 1, 1, 2}, 2, 2), c.in("weights", b.Param(), c.normal(4), 2, 2)
		gates := c.out("gates", b.Param(), 2, 5)
		c.contradict(func() { b.Spread(gates.tensor(), id.tensor(), w.tensor()) }, "gates")
	})
}

func testAppend(t *testing.T, b kernels.Backend) {
	for _, row := range []struct {
		name       string
		rows, cols int
		at         []int32
	}{
		{"one token", 7, 33, []int32{3}},
		{"out of order", 7, 5, []int32{6, 0, 3}},
		{"padding stays out", 7, 5, []int32{-1, 2, -100, 6, -1}},
		{"padding only", 3, 5, []int32{-1, -1}},
		{"cache of one", 1, 1, []int32{0}},
		{"all rows", 3, 65, []int32{2, 1, 0}},
		{"wide rows", 3, 2062, []int32{2, 0}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			n := len(row.at)
			x, at := c.in("x", b.Float(), outliers.make(c.rand, n*row.cols), n, row.cols), c.ids("at", row.at, n)
			cache := c.adds("cache", b.Float(), c.normal(row.rows*row.cols), row.rows, row.cols)
			c.run(func() { b.Append(cache.tensor(), x.tensor(), at.tensor()) })
			want := appendRows(cache.matrix(), x.matrix(), row.at).values()
			if got := cache.got(); !slices.Equal(got, want) {
				t.Errorf("cache is %v, want %v", got, want)
			}
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		x, at, cache := c.in("x", b.Float(), c.normal(6), 2, 3), c.ids("at", []int32{1, 0}, 2), c.adds("cache", b.Float(), c.normal(12), 4, 3)
		c.contradict(func() { b.Append(cache.tensor(), x.tensor(), at.tensor()) })
	})
}
