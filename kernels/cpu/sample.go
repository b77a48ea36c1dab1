package cpu

import (
	"math"

	"loratrain/kernels"
)

// Sample chooses a token for each row of logits: the temperature divides the logits, TopK and then TopP leave
// some of them, and the token is the first whose cumulative probability, largest first, exceeds u[t], which is
// uniform in [0, 1). ids (T) i32, logits (T, V) of type Float or Param, u (T) of type Param. A NaN is never chosen; a
// row of nothing else gives 0. Equal logits are in the order of their ids.
func (e *engine[E]) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	const op = "Sample"
	rows, vocabulary := matrixShape(op, "logits", logits)
	if vocabulary == 0 {
		fail(op, "logits are %v, expected a vocabulary", logits)
	}
	id, ls := in[int32](op, "ids", ids, rows), in[E](op, "logits", logits, rows, vocabulary)
	us := in[E](op, "u", u, rows)
	e.split(rows, 1, 8*len(ls), func(w *worker[E], from, to int) {
		for t := from; t < to; t++ {
			id[t] = int32(w.sample(ls[t*vocabulary:(t+1)*vocabulary], float64(us[t]), rule))
		}
	})
}

func (w *worker[E]) sample(logits []E, u float64, rule kernels.Sampling) int {
	best := largest(logits)
	most := float64(logits[best])
	if !(rule.Temperature > 0) || rule.TopK == 1 || math.IsNaN(most) || math.IsInf(most, 0) {
		return best
	}
	all := w.candidates[:0]
	var mass float64
	for i, x := range logits {
		if x == x {
			weight := math.Exp((float64(x) - most) / rule.Temperature)
			all = append(all, candidate{i, float64(x), weight})
			mass += weight
		}
	}
	w.candidates = all
	return rank(all).draw(u, mass, rule)
}

// largest is the position of the largest number, the first among equals; 0 if there is none.
func largest[E float](logits []E) int {
	best := 0
	for i, x := range logits {
		if x > logits[best] || logits[best] != logits[best] && x == x {
			best = i
		}
	}
	return best
}

// candidate is a token and its probability times a constant.
type candidate struct {
	id            int
	logit, weight float64
}

// ranking is candidates of which the largest are put in order as they are asked for: few of a vocabulary are.
type ranking struct {
	heap   []candidate // the best on top
	sorted []candidate
}

func rank(all []candidate) *ranking {
	r := &ranking{heap: all}
	for i := len(all)/2 - 1; i >= 0; i-- {
		r.sink(i)
	}
	return r
}

// draw is the token that u falls on; mass is the sum of all weights.
func (r *ranking) draw(u, mass float64, rule kernels.Sampling) int {
	n := len(r.heap)
	if rule.TopK > 0 && rule.TopK < n {
		n, mass = rule.TopK, 0
		for i := range n {
			mass += r.at(i).weight
		}
	}
	if rule.TopP > 0 && rule.TopP < 1 {
		n, mass = r.until(rule.TopP*mass, n)
	}
	drawn, _ := r.until(math.Nextafter(u*mass, math.Inf(1)), n)
	return r.at(max(drawn, 1) - 1).id // a u that is NaN draws the largest
}

// until is how many of the n largest it takes for their sum to reach mass, and that sum. Those of weight zero,
// which only rounding can ask for, do not count.
func (r *ranking) until(mass float64, n int) (count int, sum float64) {
	for count < n && sum < mass && r.at(count).weight > 0 {
		sum += r.at(count).weight
		count++
	}
	return count, sum
}

// at is the i-th largest.
func (r *ranking) at(i int) candidate {
	for len(r.sorted) <= i {
		last := len(r.heap) - 1
		r.sorted = append(r.sorted, r.heap[0])
		r.heap[0] = r.heap[last]
		r.heap = r.heap[:last]
		r.sink(0)
	}
	return r.sorted[i]
}

// sink restores the order of the heap below i.
func (r *ranking) sink(i int) {
	for {
		top := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(r.heap); child++ {
			if r.heap[child].before(r.heap[top]) {
				top = child
			}
		}
		if top == i {
			return
		}
		r.heap[i], r.heap[top] = r.heap[top], r.heap[i]
		i = top
	}
}

func (c candidate) before(d candidate) bool {
	if c.logit != d.logit {
		return c.logit > d.logit
	}
	return c.id < d.id
}
