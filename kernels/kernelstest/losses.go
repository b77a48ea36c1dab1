package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"loratrain/kernels"
)

// lossCase is rows of h with their targets.
type lossCase struct {
	name                      string
	tokens, width, vocabulary int
	spread                    spread
	typ                       kernels.Type
	targets                   []int32 // nil: a mixture
	size                      float64 // factor of h
	blank                     bool    // rows without a target are NaN
	nanH, nanW                int     // elements that are NaN; -1: none
}

func lossCases(b kernels.Backend) []lossCase {
	var cases []lossCase
	add := func(name string, tokens, width, vocabulary int, change func(*lossCase)) {
		n := lossCase{name, tokens, width, vocabulary, normal, b.Float(), nil, 0.3, false, -1, -1}
		if change != nil {
			change(&n)
		}
		cases = append(cases, n)
	}
	add("smallest", 1, 1, 1, func(n *lossCase) { n.targets = []int32{0} })
	add("two words", 3, 1, 2, nil)
	add("odd sizes", 7, 33, 65, nil)
	add("more words", 33, 7, 257, nil)
	add("first and last word", 3, 5, 33, func(n *lossCase) { n.targets = []int32{0, 32, 0} })
	add("chunks", 3, 3, 9001, func(n *lossCase) { n.targets = []int32{9000, 4096, 0} })
	add("many tokens", 257, 3, 9, nil)
	add("padding only", 5, 9, 17, func(n *lossCase) { n.targets, n.blank = []int32{-100, -1, -100, -7, -100}, true })
	add("padding of NaN", 5, 9, 17, func(n *lossCase) { n.targets, n.blank = []int32{-100, 3, -1, 16, -100}, true })
	add("one target", 5, 9, 17, func(n *lossCase) { n.targets = []int32{-100, -100, -100, -100, 0} })
	add("equal logits", 3, 9, 17, func(n *lossCase) { n.size = 0 })
	add("huge logits", 5, 3, 33, func(n *lossCase) { n.size, n.targets = 5e3, []int32{0, 1, 2, -100, 32} })
	add("outliers", 7, 33, 65, func(n *lossCase) { n.spread, n.size = outliers, 1 })
	add("NaN in h", 5, 9, 17, func(n *lossCase) { n.targets, n.nanH = []int32{3, 4, -100, 5, 6}, 9+2 })
	add("NaN in w", 5, 9, 17, func(n *lossCase) { n.targets, n.nanW = []int32{3, 4, -100, 5, 6}, 8*9+1 })
	for _, typ := range frozen {
		add(fmt.Sprintf("weight %v", typ), 7, 9, 65, func(n *lossCase) { n.typ = typ })
	}
	return cases
}

func (n lossCase) operands(c *call) (h, w, at *operand, targets []int32) {
	targets = n.targets
	if targets == nil {
		targets = c.integers(n.tokens, n.vocabulary)
		for t := 1; t < n.tokens; t += 3 {
			targets[t] = -100
		}
	}
	hs, ws := n.spread.make(c.rand, n.tokens*n.width), c.normal(n.vocabulary*n.width)
	for i := range hs {
		hs[i] *= n.size
	}
	for t, target := range targets {
		if n.blank && target < 0 {
			blank(hs, t, n.width)
		}
	}
	if n.nanH >= 0 {
		hs[n.nanH] = math.NaN()
	}
	if n.nanW >= 0 {
		ws[n.nanW] = math.NaN()
	}
	h, w = c.in("h", c.b.Float(), hs, n.tokens, n.width), c.weight("w", n.typ, ws, n.vocabulary, n.width)
	return h, w, c.ids("targets", targets, n.tokens), targets
}

func testCrossEntropy(t *testing.T, b kernels.Backend) {
	for _, n := range lossCases(b) {
		for _, grad := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s gradient %v", n.name, grad), func(t *testing.T) {
				c := newCall(t, b)
				h, w, at, targets := n.operands(c)
				loss := c.out("loss", b.Param(), 1)
				var dh *operand
				if grad {
					dh = c.out("dh", b.Float(), n.tokens, n.width)
				}
				c.run(func() { b.CrossEntropy(loss.tensor(), dh.tensor(), h.tensor(), w.tensor(), at.tensor()) })
				wantLoss, wantGrad, _ := crossEntropy(h.matrix(), w.matrix(), targets)
				c.want(loss, wantLoss)
				if grad {
					c.want(dh, wantGrad)
				}
			})
		}
	}
	t.Run("worked", func(t *testing.T) {
		c := newCall(t, b)
		// Logits 0 and ln 3: probabilities 1/4 and 3/4. The second row has no target.
		h, w := c.in("h", b.Param(), []float64{1, 5}, 2, 1), c.weight("w", b.Param(), []float64{0, math.Log(3)}, 2, 1)
		if b.Float() != b.Param() {
			t.Skip("ln 3 needs the digits of Param")
		}
		at, loss, dh := c.ids("targets", []int32{0, -100}, 2), c.out("loss", b.Param(), 1), c.out("dh", b.Float(), 2, 1)
		c.run(func() { b.CrossEntropy(loss.tensor(), dh.tensor(), h.tensor(), w.tensor(), at.tensor()) })
		c.want(loss, matrix{1, 1, []number{{v: math.Log(4), acc: 8}}})
		c.want(dh, matrix{2, 1, []number{{v: 0.75 * math.Log(3), acc: 8}, {}}})
	})
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		h, w, at, _ := lossCase{tokens: 3, width: 2, vocabulary: 5, spread: normal, typ: b.Float(), nanH: -1, nanW: -1}.operands(c)
		loss, dh := c.out("loss", b.Param(), 1), c.out("dh", b.Float(), 3, 2)
		c.contradict(func() { b.CrossEntropy(loss.tensor(), dh.tensor(), h.tensor(), w.tensor(), at.tensor()) })
	})
}

func testLogProb(t *testing.T, b kernels.Backend) {
	for _, n := range lossCases(b) {
		t.Run(n.name, func(t *testing.T) {
			c := newCall(t, b)
			h, w, at, targets := n.operands(c)
			lp := c.out("lp", b.Param(), n.tokens)
			c.run(func() { b.LogProb(lp.tensor(), h.tensor(), w.tensor(), at.tensor()) })
			_, _, want := crossEntropy(h.matrix(), w.matrix(), targets)
			c.want(lp, want)
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		h, w, at, _ := lossCase{tokens: 3, width: 2, vocabulary: 5, spread: normal, typ: b.Float(), nanH: -1, nanW: -1}.operands(c)
		lp := c.out("lp", b.Param(), 3)
		c.contradict(func() { b.LogProb(lp.tensor(), h.tensor(), w.tensor(), at.tensor()) })
	})
}
