package cpu

import (
	"math"

	"loratrain/kernels"
)

// chunkBytes is the logits that are in memory at a time.
const chunkBytes = 32 << 20

// head is the inputs of a loss: hidden rows, the output projection, and the tokens that have a target.
type head[E float] struct {
	e       *engine[E]
	h       []E
	w       weight[E]
	targets []int32
	active  []int32 // tokens with a target ≥ 0
	width   int
}

func (e *engine[E]) headIn(op string, h, w, targets kernels.Tensor) head[E] {
	rows, width := matrixShape(op, "h", h)
	vocabulary, _ := matrixShape(op, "w", w)
	x := head[E]{
		e: e, h: in[E](op, "h", h, rows, width), w: weightIn[E](op, "w", w, vocabulary, width),
		targets: in[int32](op, "targets", targets, rows), width: width,
	}
	for t, target := range x.targets {
		if int(target) >= vocabulary {
			fail(op, "targets[%d] is %d, expected less than %d", t, target, vocabulary)
		}
		if target >= 0 {
			x.active = append(x.active, int32(t))
		}
	}
	return x
}

// chunks computes the logits of as many active tokens at a time as fit memory, and calls f with those tokens.
func (x head[E]) chunks(f func(tokens []int32, logits matrix[E])) {
	if len(x.active) == 0 {
		return
	}
	w := x.e.main()
	defer w.release(w.mark())
	step := min(len(x.active), max(8, chunkBytes/(x.w.rows*x.e.Float().Size()+1)))
	hidden, logits := w.take(step*x.width), w.take(step*x.w.rows)
	for from := 0; from < len(x.active); from += step {
		tokens := x.active[from:min(len(x.active), from+step)]
		for i, t := range tokens {
			copy(hidden[i*x.width:(i+1)*x.width], x.h[int(t)*x.width:])
		}
		m := dense(logits, len(tokens), x.w.rows)
		x.e.timesTransposed(m, dense(hidden, len(tokens), x.width), x.w)
		f(tokens, m)
	}
}

// CrossEntropy is loss = Σ_t log Σ_v exp(h[t]·w[v]) - h[t]·w[targets[t]] over the tokens with a target ≥ 0,
// and, unless dh is none, its gradient towards h, zero in the other rows. Never more than a chunk of the
// logits is in memory. loss (1), dh, h (T, D), w (V, D), targets (T) i32.
func (e *engine[E]) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	const op = "CrossEntropy"
	x := e.headIn(op, h, w, targets)
	grad, out := maybe[E](op, "dh", dh, h.Shape...), in[E](op, "loss", loss, 1)
	clear(grad)
	var sum accumulator
	x.chunks(func(tokens []int32, logits matrix[E]) {
		losses, sums := make([]float64, len(tokens)), make([]float64, len(tokens))
		e.split(len(tokens), 1, 8*len(logits.data), func(wk *worker[E], from, to int) {
			for i := from; i < to; i++ {
				row, target := logits.row(i), x.targets[tokens[i]]
				at := float64(row[target])
				var most float64
				if grad == nil {
					most, sums[i] = wk.sumExp(row)
				} else {
					most, sums[i] = wk.expInPlace(row)
					row[target] = E(float64(row[target]) - sums[i])
				}
				losses[i] = math.Log(sums[i]) + (most - at)
			}
		})
		for _, l := range losses {
			sum.add(l)
		}
		if grad != nil {
			x.gradient(grad, tokens, logits, sums)
		}
	})
	out[0] = E(sum.value())
}

// gradient writes the rows of dh of some tokens, given exp(logits - most) less the sum of the row at its target.
func (x head[E]) gradient(grad []E, tokens []int32, p matrix[E], sums []float64) {
	w := x.e.main()
	defer w.release(w.mark())
	dh := dense(w.take(len(tokens)*x.width), len(tokens), x.width)
	x.e.times(dh, p, x.w, 0)
	for i, t := range tokens {
		w.vec.scale(grad[int(t)*x.width:(int(t)+1)*x.width], dh.row(i), E(1/sums[i]))
	}
}

// LogProb is lp[t] = h[t]·w[targets[t]] - log Σ_v exp(h[t]·w[v]) for the tokens with a target ≥ 0, zero for
// the others. lp (T), otherwise as CrossEntropy.
func (e *engine[E]) LogProb(lp, h, w, targets kernels.Tensor) {
	const op = "LogProb"
	x := e.headIn(op, h, w, targets)
	out := in[E](op, "lp", lp, len(x.targets))
	clear(out)
	x.chunks(func(tokens []int32, logits matrix[E]) {
		e.split(len(tokens), 1, 8*len(logits.data), func(wk *worker[E], from, to int) {
			for i := from; i < to; i++ {
				row, t := logits.row(i), tokens[i]
				most, sum := wk.sumExp(row)
				out[t] = E(float64(row[x.targets[t]]) - most - math.Log(sum))
			}
		})
	})
}

// expInPlace is row = exp(row - most), where most is the largest element, and the sum of that.
func (w *worker[E]) expInPlace(row []E) (most, sum float64) {
	largest := w.vec.max(row)
	var total accumulator
	for from := 0; from < len(row); from += pieces {
		part := row[from:min(len(row), from+pieces)]
		w.vec.shift(part, part, -largest)
		w.exp(part, part)
		total.add(float64(w.vec.sum(part)))
	}
	return float64(largest), total.value()
}

// sumExp is expInPlace that leaves the row as it is.
func (w *worker[E]) sumExp(row []E) (most, sum float64) {
	defer w.release(w.mark())
	largest, tmp := w.vec.max(row), w.take(pieces)
	var total accumulator
	for from := 0; from < len(row); from += pieces {
		part := row[from:min(len(row), from+pieces)]
		e := tmp[:len(part)]
		w.vec.shift(e, part, -largest)
		w.exp(e, e)
		total.add(float64(w.vec.sum(e)))
	}
	return float64(largest), total.value()
}
