package kernelstest

import (
	"math"
	"testing"

	"loratrain/kernels"
)

// balanceCase is a batch of E experts with its gates.
type balanceCase struct {
	name    string
	experts int
	logits  []float64
	gates   []float64 // nil: those of the logits
	seq     []int32
	loss    float64 // worked by hand; NaN: the reference alone says
}

func balanceCases(c *call) []balanceCase {
	nan, open := math.NaN(), math.NaN()
	padded := c.normal(9 * 5)
	for _, t := range []int{0, 4, 8} {
		blank(padded, t, 5)
	}
	return []balanceCase{
		{"all alike", 4, make([]float64, 8), []float64{.5, .5, 0, 0, 0, 0, .5, .5}, []int32{0, 0}, 1},
		{"all on two of four", 4, make([]float64, 8), []float64{.5, .5, 0, 0, .5, .5, 0, 0}, []int32{0, 1}, 1},
		// p is (1, 0, 0, 0), and the second place does not count: 4·(1/2·1).
		{"gate underflows", 4, []float64{1e4, 0, 0, 0}, []float64{1, 0, 0, 0}, []int32{3}, 2},
		// p is (1/2, 1/2, 0, 0): 4·(1/2·1/2 + 1/2·1/2).
		{"collapsed", 4, []float64{1e4, 1e4, 0, 0}, []float64{.5, .5, 0, 0}, []int32{0}, 2},
		{"padding does not count", 2, []float64{nan, 1e4, 0, 0, -1e4, 0}, []float64{nan, nan, .5, .5, 1, 1}, []int32{-1, 0, -1}, 1},
		{"two experts", 2, []float64{0, math.Log(3)}, []float64{.25, .75}, []int32{0}, 1},
		{"one token", 8, c.normal(8), nil, []int32{0}, open},
		{"odd sizes", 5, c.normal(7 * 5), nil, []int32{0, 0, 0, 1, 1, 2, 3}, open},
		{"padding of NaN", 5, padded, nil, []int32{-1, 0, 0, 1, -1, 5, 5, 5, -1}, open},
		{"huge logits", 3, []float64{1e4, -1e4, 0, -1e4, 1e4, 9.99e3, 0, 0, 1e4}, nil, []int32{0, 0, 0}, open},
		{"many tokens", 8, c.normal(257 * 8), nil, make([]int32, 257), open},
		{"many experts", 65, c.normal(9 * 65), nil, make([]int32, 9), open},
		{"nobody", 4, c.normal(8), nil, []int32{-1, -1}, 0},
	}
}

func (n balanceCase) operands(c *call) (logits, gates, seq *operand) {
	tokens := len(n.seq)
	logits = c.in("logits", c.b.Param(), n.logits, tokens, n.experts)
	values := n.gates
	if values == nil {
		values = gate(logits.matrix()).values()
	}
	return logits, c.in("gates", c.b.Param(), values, tokens, n.experts), c.ids("seq", n.seq, tokens)
}

func testBalance(t *testing.T, b kernels.Backend) {
	for _, n := range balanceCases(newCall(t, b)) {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			logits, gates, seq := n.operands(c)
			loss, loads := c.out("loss", b.Param(), 1), c.out("loads", b.Param(), n.experts)
			c.run(func() {
				b.Balance(loss.tensor(), loads.tensor(), logits.tensor(), gates.tensor(), seq.tensor())
			})
			wantLoss, wantLoads := balance(logits.matrix(), gates.matrix(), n.seq)
			c.want(loads, wantLoads)
			c.want(loss, wantLoss)
			if n.loss == n.loss {
				c.want(loss, matrix{1, 1, []number{{v: n.loss, acc: 2 * expError}}})
			}
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		logits, gates, seq := balanceCase{experts: 3, logits: c.normal(6), seq: []int32{0, 1}}.operands(c)
		loss, loads := c.out("loss", b.Param(), 1), c.out("loads", b.Param(), 3)
		c.contradict(func() {
			b.Balance(loss.tensor(), loads.tensor(), logits.tensor(), gates.tensor(), seq.tensor())
		})
	})
}

func testBalanceGrad(t *testing.T, b kernels.Backend) {
	gradient := func(c *call, n balanceCase) (op, check func()) {
		logits, gates, seq := n.operands(c)
		_, loads := balance(logits.matrix(), gates.matrix(), n.seq)
		f := c.in("loads", b.Param(), loads.values(), n.experts)
		dloss := c.in("dloss", b.Param(), []float64{-0.7}, 1)
		dlogits := c.out("dlogits", b.Param(), len(n.seq), n.experts)
		gates.idle = true
		op = func() {
			b.BalanceGrad(dlogits.tensor(), dloss.tensor(), logits.tensor(), f.tensor(), seq.tensor())
		}
		return op, func() {
			c.want(dlogits, balanceGrad(dloss.matrix().at(0, 0), logits.matrix(), f.matrix(), n.seq))
		}
	}
	for _, n := range balanceCases(newCall(t, b)) {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			op, check := gradient(c, n)
			c.run(op)
			check()
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		op, _ := gradient(c, balanceCase{experts: 3, logits: c.normal(6), seq: []int32{0, 1}})
		c.contradict(op)
	})
}
