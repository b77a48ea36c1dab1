package train

import (
	"context"
	"fmt"
	"math"

	"loratrain/datasets"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/model"
)

// Evaluator computes log-likelihoods of answers, with a base alone or with an adapter.
type Evaluator struct {
	base    *model.Placed
	x       *graph.Immediate
	encoder datasets.Encoder
	tokens  int // of a batch, at most
}

// NewEvaluator evaluates on base with at most that many tokens at once.
func NewEvaluator(base *model.Placed, encoder datasets.Encoder, tokens int) *Evaluator {
	return &Evaluator{base: base, x: graph.NewImmediate(base.Backend), encoder: encoder, tokens: tokens}
}

// Close gives memory back.
func (e *Evaluator) Close() { e.x.Close() }

// AdapterOf makes the adapter of one pass over tokens ids; nil stands for the base alone.
type AdapterOf func(x *graph.Immediate, ids []int32) model.PassAdapter

// ItemResult is what a multiple-choice item came to.
type ItemResult struct {
	Item          int       `json:"item"` // from 0, in the order of the file
	Gold          int       `json:"gold"`
	LogLikelihood []float64 `json:"loglikelihood"` // of each option
	// Prediction is the option with the largest log-likelihood, PredictionNorm with the largest per character; the first
	// among equals.
	Prediction     int `json:"prediction"`
	PredictionNorm int `json:"prediction_norm"`
}

// Score is how a task went.
type Score struct {
	Task       string  `json:"task"`
	Items      int     `json:"items"`
	Acc        float64 `json:"acc,omitempty"`
	AccNorm    float64 `json:"acc_norm,omitempty"`
	AccErr     float64 `json:"acc_stderr,omitempty"`
	AccNormErr float64 `json:"acc_norm_stderr,omitempty"`
	Chance     float64 `json:"chance,omitempty"`
	Majority   float64 `json:"majority,omitempty"`
	// Loss is the mean negative log-likelihood of the answers' tokens; for a task of pairs all there is.
	Loss      float64 `json:"loss"`
	Truncated int     `json:"truncated,omitempty"` // prompts that lost their beginning

	Results []ItemResult `json:"results,omitempty"`
}

// Pairs reports whether the task has no options to choose from.
func (s Score) Pairs() bool { return s.Chance == 0 }

// Evaluate scores a task. progress, if not nil, is called with the number of items done and all of them. A context that ends
// stops it between batches.
func (e *Evaluator) Evaluate(ctx context.Context, task datasets.Task, ad AdapterOf, progress func(done, all int)) (Score, error) {
	if len(task.Pairs) > 0 {
		return e.pairs(ctx, task, ad, progress)
	}
	groups, truncated, err := e.encoder.Groups(task.Items)
	if err != nil {
		return Score{}, err
	}
	batches, err := datasets.PackGroups(groups, max(e.tokens, longestGroup(groups)), datasets.Sizes(max(e.tokens, longestGroup(groups))))
	if err != nil {
		return Score{}, err
	}
	results := make([]ItemResult, len(groups))
	for i, g := range groups {
		results[i] = ItemResult{Item: i, Gold: task.Items[i].Gold, LogLikelihood: make([]float64, len(g.Branches))}
	}
	s := Score{Task: task.Name, Items: len(groups), Truncated: truncated, Results: results}
	goldTokens := 0
	err = e.each(ctx, batches, ad, progress, func(a datasets.Answer, lp []float64) {
		results[a.Item].LogLikelihood[a.Branch] = sum(lp)
		if a.Branch == results[a.Item].Gold {
			s.Loss -= sum(lp)
			goldTokens += len(lp)
		}
	})
	if err != nil {
		return Score{}, err
	}
	s.Loss /= float64(goldTokens)
	right, rightNorm := 0, 0
	for i := range results {
		r, perChar := &results[i], make([]float64, len(results[i].LogLikelihood))
		for o, ll := range r.LogLikelihood {
			perChar[o] = ll / float64(max(1, groups[i].Branches[o].Chars))
		}
		r.Prediction, r.PredictionNorm = argmax(r.LogLikelihood), argmax(perChar)
		if r.Prediction == r.Gold {
			right++
		}
		if r.PredictionNorm == r.Gold {
			rightNorm++
		}
	}
	s.Acc, s.AccErr = accuracy(right, len(results))
	s.AccNorm, s.AccNormErr = accuracy(rightNorm, len(results))
	s.Chance, s.Majority = datasets.Chance(task.Items), datasets.Majority(task.Items)
	return s, nil
}

// pairs is the loss of a user's own answers.
func (e *Evaluator) pairs(ctx context.Context, task datasets.Task, ad AdapterOf, progress func(done, all int)) (Score, error) {
	seqs, truncated, err := e.encoder.Sequences(task)
	if err != nil {
		return Score{}, err
	}
	longest := e.tokens
	for _, q := range seqs {
		longest = max(longest, len(q.IDs))
	}
	batches, err := datasets.Pack(seqs, longest, datasets.Sizes(longest))
	if err != nil {
		return Score{}, err
	}
	s, tokens := Score{Task: task.Name, Items: len(seqs), Truncated: truncated}, 0
	err = e.each(ctx, batches, ad, progress, func(_ datasets.Answer, lp []float64) {
		s.Loss -= sum(lp)
		tokens += len(lp)
	})
	s.Loss /= float64(max(1, tokens))
	return s, err
}

// each runs the batches and gives the log-probabilities of every answer's tokens.
func (e *Evaluator) each(ctx context.Context, batches []datasets.Batch, ad AdapterOf, progress func(done, all int), visit func(a datasets.Answer, lp []float64)) error {
	seen, all := map[int]bool{}, map[int]bool{}
	for _, b := range batches {
		for _, i := range b.Items {
			all[i] = true
		}
	}
	for _, b := range batches {
		if err := ctx.Err(); err != nil {
			return err
		}
		lp, err := e.logProbs(b, ad)
		if err != nil {
			return err
		}
		for _, a := range b.Answers {
			visit(a, lp[a.From:a.To])
		}
		for _, i := range b.Items {
			seen[i] = true
		}
		if progress != nil {
			progress(len(seen), len(all))
		}
	}
	return nil
}

// logProbs is each token's log-probability of its target.
func (e *Evaluator) logProbs(b datasets.Batch, of AdapterOf) ([]float64, error) {
	k, n := e.base.Backend, len(b.IDs)
	lp := make([]float64, n)
	err := graph.Catch(k, func() {
		x := e.x
		var ad model.PassAdapter
		var layers model.Adapter
		if of != nil {
			ad = of(x, b.IDs)
			layers = ad
		}
		values := e.base.Bind(x)
		in := model.Inputs{IDs: x.Ints(b.IDs, n), Pos: x.Ints(b.Pos, n), Spans: x.Ints(spans(e.base.Arch, b), n, 4)}
		targets := x.Ints(b.Targets, n)
		hidden := model.Hidden(x, values, layers, in)
		v := graph.LogProb(x, hidden, values.Head, targets)
		host := kernels.NewHost(v.Type, n)
		k.Read(host, v.Tensor())
		copyFloats(lp, host)
		x.Done(hidden, v, targets, in.IDs, in.Pos, in.Spans)
		if ad != nil {
			ad.Release(x)
		}
	})
	if err != nil {
		return nil, err
	}
	for t, p := range lp {
		if math.IsNaN(p) || math.IsInf(p, 0) {
			return nil, fmt.Errorf("the log-probability of token %d of a batch is %v\nthe model's or the adapter's weights hold numbers that are not finite", t, p)
		}
	}
	return lp, nil
}

func longestGroup(groups []datasets.Group) int {
	n := 0
	for _, g := range groups {
		for _, b := range g.Branches {
			n = max(n, len(g.Prefix)+len(b.IDs))
		}
	}
	return n
}

func copyFloats(dst []float64, t kernels.Tensor) {
	if t.Type == kernels.F64 {
		copy(dst, kernels.Slice[float64](t))
		return
	}
	for i, x := range kernels.Slice[float32](t) {
		dst[i] = float64(x)
	}
}

func sum(xs []float64) float64 {
	s := 0.0
	for _, x := range xs {
		s += x
	}
	return s
}

// argmax is the first of the largest.
func argmax(xs []float64) int {
	best := 0
	for i, x := range xs {
		if x > xs[best] {
			best = i
		}
	}
	return best
}

// accuracy is the share of n that is right and its standard error as lm-evaluation-harness has it, of the sample's deviation.
func accuracy(right, n int) (mean, stderr float64) {
	mean = float64(right) / float64(n)
	if n > 1 {
		stderr = math.Sqrt(mean * (1 - mean) / float64(n-1))
	}
	return mean, stderr
}
