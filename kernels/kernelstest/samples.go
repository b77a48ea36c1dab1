package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"loratrain/kernels"
)

// halves is the temperature at which a logit less by one halves the probability.
const halves = 1 / math.Ln2

// sampleRows are worked by hand. Logits 1, 3, 0, 2 with halves are probabilities 8/15 for id 1, 4/15 for 3, 2/15
// for 0 and 1/15 for 2, which add up to 0.533, 0.8, 0.933 and 1.
var sampleRows = []struct {
	name   string
	logits []float64
	rule   kernels.Sampling
	u      float64
	want   int32
}{
	{"greedy", mixed, kernels.Sampling{}, 0.99, 1},
	{"greedy tie goes low", []float64{1, 3, 3, 3}, kernels.Sampling{}, 0.99, 1},
	{"greedy first", []float64{7, 3, 2, 7}, kernels.Sampling{}, 0, 0},
	{"greedy last", []float64{-7, -8, -9, -5}, kernels.Sampling{}, 0, 3},
	{"greedy whatever the rest says", mixed, kernels.Sampling{TopK: 3, TopP: 0.9}, 0.99, 1},
	{"u of zero is the largest", mixed, kernels.Sampling{Temperature: halves}, 0, 1},
	{"in the largest", mixed, kernels.Sampling{Temperature: halves}, 0.52, 1},
	{"in the second", mixed, kernels.Sampling{Temperature: halves}, 0.55, 3},
	{"in the third", mixed, kernels.Sampling{Temperature: halves}, 0.82, 0},
	{"in the last", mixed, kernels.Sampling{Temperature: halves}, 0.95, 2},
	{"u near one is the last", mixed, kernels.Sampling{Temperature: halves}, nearOne, 2},
	{"one word", []float64{5}, kernels.Sampling{Temperature: 1}, nearOne, 0},
	{"cold", mixed, kernels.Sampling{Temperature: 1e-3}, nearOne, 1},
	{"hot", mixed, kernels.Sampling{Temperature: 1e6}, 0.7, 0},
	{"ties in order of ids", make([]float64, 4), kernels.Sampling{Temperature: 1}, 0.6, 2},
	{"huge logits", []float64{-1e4, 0, 1e4, -3e38}, kernels.Sampling{Temperature: 1}, nearOne, 2},
	{"huge and equal", []float64{1e4, 1e4, -1e4, 1e4}, kernels.Sampling{Temperature: 1}, 0.5, 1},
	{"far below zero", []float64{-1e4, -1e4}, kernels.Sampling{Temperature: 1}, 0.75, 1},
	{"never what is impossible", []float64{math.Inf(-1), 1, 1, math.Inf(-1)}, kernels.Sampling{Temperature: 1}, nearOne, 2},

	{"top-k of one", mixed, kernels.Sampling{Temperature: halves, TopK: 1}, nearOne, 1},
	{"top-k, in the largest", mixed, kernels.Sampling{Temperature: halves, TopK: 2}, 0.65, 1}, // 8/12
	{"top-k, in the second", mixed, kernels.Sampling{Temperature: halves, TopK: 2}, 0.68, 3},
	{"top-k, u near one", mixed, kernels.Sampling{Temperature: halves, TopK: 2}, nearOne, 3},
	{"top-k of more than there are", mixed, kernels.Sampling{Temperature: halves, TopK: 99}, 0.95, 2},
	{"top-k tie goes low", []float64{1, 2, 1, 1}, kernels.Sampling{Temperature: halves, TopK: 2}, nearOne, 0},

	{"top-p reached at once", mixed, kernels.Sampling{Temperature: halves, TopP: 0.5}, nearOne, 1},
	{"top-p of almost nothing", mixed, kernels.Sampling{Temperature: halves, TopP: 1e-6}, nearOne, 1},
	{"top-p takes the one that reaches it", mixed, kernels.Sampling{Temperature: halves, TopP: 0.6}, nearOne, 3},
	{"top-p, in the largest", mixed, kernels.Sampling{Temperature: halves, TopP: 0.6}, 0.65, 1}, // 8/12
	{"top-p, in the second", mixed, kernels.Sampling{Temperature: halves, TopP: 0.6}, 0.68, 3},
	{"top-p of one is all", mixed, kernels.Sampling{Temperature: halves, TopP: 1}, 0.95, 2},
	{"top-p tie goes low", make([]float64, 4), kernels.Sampling{Temperature: 1, TopP: 0.4}, nearOne, 1},
	{"top-p of what top-k left", mixed, kernels.Sampling{Temperature: halves, TopK: 3, TopP: 0.55}, nearOne, 1}, // 8/14, not 8/15
	{"top-k and top-p", mixed, kernels.Sampling{Temperature: halves, TopK: 3, TopP: 0.8}, nearOne, 3},           // 12/14
}

var mixed = []float64{1, 3, 0, 2}

const nearOne = 1 - 0x1p-24

func testSample(t *testing.T, b kernels.Backend) {
	for _, row := range sampleRows {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			logits, u := c.in("logits", b.Float(), row.logits, 1, len(row.logits)), c.in("u", b.Param(), []float64{row.u}, 1)
			ids := c.out("ids", kernels.I32, 1)
			c.run(func() { b.Sample(ids.tensor(), logits.tensor(), u.tensor(), row.rule) })
			c.wantIDs(ids, row.want)
		})
	}
	for _, rule := range []kernels.Sampling{
		{},
		{Temperature: 1},
		{Temperature: 0.7, TopK: 5},
		{Temperature: 1.3, TopP: 0.9},
		{Temperature: 1, TopK: 40, TopP: 0.5},
		{Temperature: 0.2, TopK: 1000, TopP: 0.999},
	} {
		for _, vocabulary := range []int{2, 33, 1025} {
			t.Run(fmt.Sprintf("%+v of %d", rule, vocabulary), func(t *testing.T) { testSampleRule(t, b, rule, vocabulary) })
		}
	}
	if b.Float() != b.Param() {
		// Numbers that Float cannot tell apart.
		t.Run("logits of type Param", func(t *testing.T) {
			c := newCall(t, b)
			logits := c.in("logits", b.Param(), []float64{5, 5 + 0x1p-20, 5 - 0x1p-20, 5, -3 - 0x1p-20, -3}, 2, 3)
			u, ids := c.in("u", b.Param(), []float64{nearOne, 0}, 2), c.out("ids", kernels.I32, 2)
			for _, rule := range []kernels.Sampling{{}, {Temperature: 1e-12}, {Temperature: 1, TopK: 1}, {Temperature: 1, TopP: 1e-3}} {
				c.run(func() { b.Sample(ids.tensor(), logits.tensor(), u.tensor(), rule) })
				c.wantIDs(ids, 1, 0)
			}
			c.run(func() { b.Sample(ids.tensor(), logits.tensor(), u.tensor(), kernels.Sampling{Temperature: 1, TopK: 2}) })
			c.wantIDs(ids, 0, 0)
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		logits, u, ids := c.in("logits", b.Float(), c.normal(8), 2, 4), c.in("u", b.Param(), []float64{0, 0.5}, 2), c.out("ids", kernels.I32, 2)
		c.contradict(func() { b.Sample(ids.tensor(), logits.tensor(), u.tensor(), kernels.Sampling{Temperature: 1}) }, "logits")
	})
}

// testSampleRule draws rows at once and compares those that rounding cannot decide.
func testSampleRule(t *testing.T, b kernels.Backend, rule kernels.Sampling, vocabulary int) {
	const rows, margin = 33, 1e-5
	c := newCall(t, b)
	values := c.normal(rows * vocabulary)
	for i := range values {
		values[i] *= 3
	}
	us := make([]float64, rows)
	for i := range us {
		us[i] = c.rand.Float64()
	}
	logits, u := c.in("logits", b.Float(), values, rows, vocabulary), c.in("u", b.Param(), us, rows)
	ids := c.out("ids", kernels.I32, rows)
	c.run(func() { b.Sample(ids.tensor(), logits.tensor(), u.tensor(), rule) })
	sure := 0
	for i, got := range ids.got() {
		row := matrix{1, vocabulary, logits.matrix().row(i)}.values()
		want, near := draw(choices(row, rule), u.matrix().at(0, i).v)
		less, more := rule, rule
		less.TopP, more.TopP = rule.TopP-margin, rule.TopP+margin
		if near < margin && rule.Temperature > 0 || rule.TopP > 0 && len(choices(row, less)) != len(choices(row, more)) {
			continue
		}
		sure++
		if int32(got) != want {
			t.Errorf("ids[%d] is %v, want %d (u %v)", i, got, want, us[i])
		}
	}
	if sure < rows/2 {
		t.Errorf("only %d of %d rows say anything", sure, rows)
	}
}
