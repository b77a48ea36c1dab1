package kernelstest

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"loratrain/kernels"
)

var stepFlaws = append([]flaw{
	inCase("smallest", "puts keys one position late", `keys of layer 0, sequence 0, position 0 are off by NaN`, misplaced(1)),
	inCase("one sequence", "puts keys one position early", `position 69, which no step is at(?s:.*)position 73 are off`, misplaced(-1)),
	inCase("the last place", "leaves the last place", `values of layer 4, sequence 2, position 63 are off`, leavesLastPlace),
	inCase("the last place", "does not see the last place", `logits of sequence 2 at position 63`, inOps(func(n naive) kernels.Backend { return blindAtEnd{n} })),
	inCase("one sequence", "forgets what it appended", `step 1: logits of sequence 0 at position 71`, forgetsAppended),
	inCase("one sequence", "keeps in a place what is before it", `keys of layer 0, sequence 0, position 70 are off`, keepsBefore),
	inCase("biases, norms, window", "shares a cache between layers", `step 0: logits of sequence 0 at position 100`, ofModel(func(m *kernels.StepModel) {
		last := &m.Layers[len(m.Layers)-1]
		last.Keys, last.Values = m.Layers[0].Keys, m.Layers[0].Values
	})),

	inCase("biases, norms, window", "writes logits of what stands still", `step 0: logits\[1, 0\] of a sequence that stands still(?s:.*)step 0: logits\[2, 0\](?s:.*)step 1: logits\[0, 0\]`, overwritesStopped),
	inCase("biases, norms, window", "appends before a sequence that stands still", `keys of layer 0, sequence 1, position 137, which no step is at`, appendsBefore),
	inCase("biases, norms, window", "appends to what stands still", `keys of layer 0, sequence 2, position 0, which no step is at`, appendsStopped),
	inCase("biases, norms, window", "remembers who stood still", `step 1: logits of sequence 1 at position 0 are off`, remembersLive),
	inCase("biases, norms, window", "ends at the first that stands still", `step 0: logits of sequence 3 at position 69 are off`, endsAtStopped),
	inCase("the last place", "stops with all", `step 2: logits of sequence 2 at position 62 are off`, stopsWithAll),
	inCase("biases, norms, window", "reads the weights of what stands still", `step 0: logits of sequence 0 at position 100 are off`, readsStopped),

	inCase("biases, norms, window", "takes the first experts for all", `step 0: logits of sequence 3 at position 69 are off`, takesFirstExperts),
	inCase("biases, norms, window", "takes the first weights for all", `step 0: logits of sequence 3 at position 69 are off`, takesFirstWeights),
	inCase("biases, norms, window", "counts an expert once", `step 1: logits of sequence 1 at position 0 are off`, countsOnce),
	inCase("two experts", "takes the first expert alone", `step 0: logits of sequence 0 at position 130 are off`, inOps(func(n naive) kernels.Backend { return firstExpert{n} })),
	inCase("two experts", "forgets the scale", `step 0: logits of sequence 0 at position 130 are off`, ofModel(func(m *kernels.StepModel) { m.Scale = 1 })),
	inCase("two experts", "takes the first layer's experts", `step 0: logits of sequence 0 at position 130 are off`, ofModel(func(m *kernels.StepModel) {
		last := &m.Layers[len(m.Layers)-1]
		last.A, last.B = m.Layers[0].A, m.Layers[0].B
	})),

	inCase("biases, norms, window", "sees one key more than the window", `step 0: logits of sequence 0 at position 100 are off`, ofModel(func(m *kernels.StepModel) { m.Window++ })),
	inCase("biases, norms, window", "sees one key less than the window", `step 0: logits of sequence 3 at position 69 are off`, ofModel(func(m *kernels.StepModel) { m.Window-- })),
	inCase("biases, norms, window", "forgets the window", `step 0: logits of sequence 0 at position 100 are off`, ofModel(func(m *kernels.StepModel) { m.Window = 0 })),
	inCase("one sequence", "forgets the first key", `step 0: logits of sequence 0 at position 70 are off`, ofModel(func(m *kernels.StepModel) { m.Window = 70 })),
	inCase("biases, norms, window", "forgets the norm of queries", `step 0: logits of sequence 0 at position 100 are off`, ofLayers(func(l *kernels.StepLayer) { l.QNorm = kernels.Tensor{} })),
	inCase("biases, norms, window", "forgets the norm of keys", `keys of layer 0, sequence 0, position 100 are off`, ofLayers(func(l *kernels.StepLayer) { l.KNorm = kernels.Tensor{} })),
	inCase("biases, norms, window", "takes the norm of queries for keys", `keys of layer 0, sequence 0, position 100 are off`, ofLayers(func(l *kernels.StepLayer) { l.KNorm = l.QNorm })),
	inCase("biases, norms, window", "has an eps of its own", `step 0: logits of sequence 0 at position 100 are off`, ofModel(func(m *kernels.StepModel) { m.Eps = 1e-5 })),
	inCase("biases, norms, window", "has an eps of its own in heads", `keys of layer 0, sequence 0, position 100 are off`, inOps(func(n naive) kernels.Backend { return headsEps{n} })),
	inCase("biases, norms, window", "deals out heads in turns", `step 0: logits of sequence 0 at position 100 are off`, inOps(func(n naive) kernels.Backend { return turns{n} })),
	inCase("biases, norms, window", "turns all by the first position", `keys of layer 0, sequence 3, position 69 are off`, inOps(func(n naive) kernels.Backend { return sharesPosition{n} })),
	inCase("smallest", "takes one norm for both", `step 0: logits of sequence 0 at position 0 are off`, ofLayers(func(l *kernels.StepLayer) { l.PostNorm = l.InputNorm })),
	inCase("smallest", "forgets the residual stream", `step 0: logits of sequence 0 at position 0 are off`, inOps(func(n naive) kernels.Backend { return noPlus{n} })),
	inCase("smallest", "takes the embedding for the head", `step 0: logits of sequence 0 at position 0 are off`, ofModel(func(m *kernels.StepModel) { m.Head = m.Embed })),
	inCase("smallest", "adds to the logits before", `step 1: logits of sequence 0 at position 1 are off`, addsUp),
	inCase("smallest", "gives the logits before", `step 1: logits of sequence 0 at position 1 are off`, givesBefore),
	inCase("smallest", "differs when repeated", `step 2: logits\[0, 0\] have other bits`, differsAgain),
	inCase("smallest", "counts positions itself", `step 0: pos, element 0: an input was modified`, movesPosition),
}, linearFlaws()...)

// linearFlaws are mistakes in one of the linear layers.
func linearFlaws() []flaw {
	var list []flaw
	for t := range kernels.Targets {
		list = append(list,
			inCase("biases, norms, window", fmt.Sprintf("forgets bias %d", t), `(step 0: logits of|(keys|values) of layer 0,) sequence 0(,| at) position 100 are off`,
				ofLayers(func(l *kernels.StepLayer) { l.Bias[t] = kernels.Tensor{} })),
			inCase("two experts", fmt.Sprintf("forgets the experts of linear layer %d", t), `step 0: logits of sequence 0 at position 130 are off`,
				ofLayers(func(l *kernels.StepLayer) { l.A[t] = kernels.Tensor{} })))
	}
	return list
}

// mistake is a step with one, made of a right one.
type mistake func(s naiveStep) kernels.Step

// inCase is a flaw that a case of testDecodingStep must find.
func inCase(name, what, says string, make mistake) flaw {
	return flaw{"DecodingStep " + what, "DecodingStep/" + strings.ReplaceAll(name, " ", "_"), says, func(n naive) kernels.Backend { return badSteps{n, make} }}
}

type badSteps struct {
	naive
	make mistake
}

func (b badSteps) NewStep(m kernels.StepModel) (kernels.Step, error) {
	m.Layers = slices.Clone(m.Layers)
	return b.make(naiveStep{b.naive, m}), nil
}

// ofModel is a step of another model.
func ofModel(f func(m *kernels.StepModel)) mistake {
	return func(s naiveStep) kernels.Step {
		f(&s.m)
		return s
	}
}

func ofLayers(f func(l *kernels.StepLayer)) mistake {
	return ofModel(func(m *kernels.StepModel) {
		for i := range m.Layers {
			f(&m.Layers[i])
		}
	})
}

// inOps is a step made of another backend's operations.
func inOps(ops func(n naive) kernels.Backend) mistake {
	return func(s naiveStep) kernels.Step { return naiveStep{ops(s.Backend.(naive)), s.m} }
}

// stepCall is the operands of a step.
type stepCall struct{ logits, tokens, pos, ids, weights kernels.Tensor }

// stepFunc is a step as a function.
type stepFunc func(c stepCall)

func (f stepFunc) Close() {}

func (f stepFunc) Run(logits, tokens, pos, ids, weights kernels.Tensor) {
	f(stepCall{logits, tokens, pos, ids, weights})
}

func (c stepCall) run(s kernels.Step) { s.Run(c.logits, c.tokens, c.pos, c.ids, c.weights) }

// behind does something to the caches of each layer, sequence by sequence, when a step is done. row is a row of the cache that it gets, all of the
// sequences being in one.
func behind(f func(m kernels.StepModel, sequence, pos int, keys bool, row func(i int) kernels.Tensor)) mistake {
	return func(s naiveStep) kernels.Step {
		return stepFunc(func(c stepCall) {
			c.run(s)
			for _, l := range s.m.Layers {
				for i, cache := range []kernels.Tensor{l.Keys, l.Values} {
					for sequence, pos := range kernels.Slice[int32](c.pos) {
						f(s.m, sequence, int(pos), i == 0, func(i int) kernels.Tensor { return cache.View(i*cache.Shape[1], cache.Shape[1]) })
					}
				}
			}
		})
	}
}

func zero(int, float64) float64   { return 0 }
func poison(int, float64) float64 { return math.NaN() }

func misplaced(by int) mistake {
	return behind(func(m kernels.StepModel, sequence, pos int, keys bool, row func(int) kernels.Tensor) {
		if keys && pos >= 0 && pos+by < m.Positions {
			own := sequence*m.Positions + pos
			copy(hostBytes(row(own+by)), hostBytes(row(own)))
			edit(row(own), poison)
		}
	})
}

var leavesLastPlace = behind(func(m kernels.StepModel, sequence, pos int, _ bool, row func(int) kernels.Tensor) {
	if pos == m.Positions-1 {
		edit(row(sequence*m.Positions+pos), poison)
	}
})

var forgetsAppended = behind(func(m kernels.StepModel, sequence, pos int, _ bool, row func(int) kernels.Tensor) {
	if pos >= 0 {
		edit(row(sequence*m.Positions+pos), poison)
	}
})

// keepsBefore leaves in each place what is in the one before it.
var keepsBefore = behind(func(m kernels.StepModel, sequence, pos int, _ bool, row func(int) kernels.Tensor) {
	if own := sequence*m.Positions + pos; pos > 0 {
		copy(hostBytes(row(own)), hostBytes(row(own-1)))
	}
})

// appendsBefore takes a position below 0 for one like others.
var appendsBefore = behind(func(m kernels.StepModel, sequence, pos int, _ bool, row func(int) kernels.Tensor) {
	if own := sequence*m.Positions + pos; pos < 0 && own >= 0 {
		edit(row(own), zero)
	}
})

var appendsStopped = behind(func(m kernels.StepModel, sequence, pos int, _ bool, row func(int) kernels.Tensor) {
	if pos < 0 {
		edit(row(sequence*m.Positions), zero)
	}
})

// blindAtEnd sees all but the last of 64 keys.
type blindAtEnd struct{ naive }

func (b blindAtEnd) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	b.naive.Attention(o, lse, q, k, v, changed(spans, func(i int, v float64) float64 {
		if i%4 == 3 && v > 0 && int(v)%64 == 0 {
			return v - 1
		}
		return v
	}), heads)
}

// headsEps takes an eps of its own for norms of heads.
type headsEps struct{ naive }

func (b headsEps) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	if w.Len() < x.Shape[1] {
		eps = 1e-5
	}
	b.naive.RMSNorm(y, x, w, eps)
}

type sharesPosition struct{ naive }

func (b sharesPosition) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	first := decode(pos)[0]
	b.naive.Rotary(y, x, table, changed(pos, func(int, float64) float64 { return first }), backwards)
}

func overwritesStopped(s naiveStep) kernels.Step {
	return stepFunc(func(c stepCall) {
		c.run(s)
		at := kernels.Slice[int32](c.pos)
		edit(c.logits, func(i int, v float64) float64 {
			if at[i/c.logits.Shape[1]] < 0 {
				return 0
			}
			return v
		})
	})
}

// stopping is a step that also skips the sequences which stopped says after each step's positions.
func stopping(stopped func(before [][]int32, sequence int) bool) mistake {
	return func(s naiveStep) kernels.Step {
		var all [][]int32
		return stepFunc(func(c stepCall) {
			all = append(all, slices.Clone(kernels.Slice[int32](c.pos)))
			c.pos = changed(c.pos, func(i int, v float64) float64 {
				if stopped(all, i) {
					return -1
				}
				return v
			})
			c.run(s)
		})
	}
}

var (
	remembersLive = stopping(func(all [][]int32, sequence int) bool { return all[0][sequence] < 0 })
	endsAtStopped = stopping(func(all [][]int32, sequence int) bool { return slices.Min(all[len(all)-1][:sequence+1]) < 0 })
	stopsWithAll  = stopping(func(all [][]int32, _ int) bool {
		return slices.ContainsFunc(all, func(pos []int32) bool { return slices.Max(pos) < 0 })
	})
)

// withGates is a step of other experts or weights.
func withGates(f func(c *stepCall)) mistake {
	return func(s naiveStep) kernels.Step {
		return stepFunc(func(c stepCall) {
			f(&c)
			c.run(s)
		})
	}
}

// firstRow is t with its first row in all.
func firstRow(t kernels.Tensor) kernels.Tensor {
	values := decode(t)
	return changed(t, func(i int, _ float64) float64 { return values[i%t.Shape[1]] })
}

var (
	takesFirstExperts = withGates(func(c *stepCall) { c.ids = firstRow(c.ids) })
	takesFirstWeights = withGates(func(c *stepCall) { c.weights = firstRow(c.weights) })
	countsOnce        = withGates(func(c *stepCall) {
		ids := decode(c.ids)
		c.weights = changed(c.weights, func(i int, v float64) float64 {
			if i%2 == 1 && ids[i] == ids[i-1] {
				return 0
			}
			return v
		})
	})
	// readsStopped multiplies weights of no sequence with zero.
	readsStopped = func(s naiveStep) kernels.Step {
		return stepFunc(func(c stepCall) {
			nothing := 0.0
			for _, v := range decode(c.weights) {
				nothing += 0 * v
			}
			c.run(s)
			edit(c.logits, func(_ int, v float64) float64 { return v + nothing })
		})
	}
)

// keepsLogits is a step that gives something made of its logits and those that it gave before.
func keepsLogits(f func(now, before float64) float64) mistake {
	return func(s naiveStep) kernels.Step {
		var before []float64
		return stepFunc(func(c stepCall) {
			c.run(s)
			now := decode(c.logits)
			if before != nil {
				edit(c.logits, func(i int, v float64) float64 { return f(v, before[i]) })
			}
			before = now
		})
	}
}

var (
	addsUp      = keepsLogits(func(now, before float64) float64 { return now + before })
	givesBefore = keepsLogits(func(_, before float64) float64 { return before })
)

// differsAgain gives other bits in each run.
func differsAgain(s naiveStep) kernels.Step {
	runs := 0.0
	return stepFunc(func(c stepCall) {
		c.run(s)
		runs++
		edit(c.logits, func(_ int, v float64) float64 { return v * (1 + 2*runs*roundoff(s.Param())) })
	})
}

func movesPosition(s naiveStep) kernels.Step {
	return stepFunc(func(c stepCall) {
		c.run(s)
		edit(c.pos, func(_ int, v float64) float64 { return v + 1 })
	})
}
