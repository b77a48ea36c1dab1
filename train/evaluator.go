package train

import (
	"context"
	"encoding/json"
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
	Task  string `json:"task"`
	Items int    `json:"items"`
	// The accuracies, their standard errors and what they are compared with; a task of pairs has none of them.
	Acc        float64 `json:"acc"`
	AccNorm    float64 `json:"acc_norm"`
	AccErr     float64 `json:"acc_stderr"`
	AccNormErr float64 `json:"acc_norm_stderr"`
	Chance     float64 `json:"chance"`
	Majority   float64 `json:"majority"`
	// Loss is the mean negative log-likelihood of the answers' tokens; for a task of pairs all there is.
	Loss      float64 `json:"loss"`
	Truncated int     `json:"truncated,omitempty"` // prompts that lost their beginning

	Results []ItemResult `json:"results,omitempty"`
}

// Pairs reports whether the task has no options to choose from.
func (s Score) Pairs() bool { return s.Chance == 0 }

// MarshalJSON leaves out of a task of pairs what it has not, and keeps an accuracy of 0.
func (s Score) MarshalJSON() ([]byte, error) {
	if s.Pairs() {
		return json.Marshal(struct {
			Task      string  `json:"task"`
			Items     int     `json:"items"`
			Loss      float64 `json:"loss"`
			Truncated int     `json:"truncated,omitempty"`
		}{s.Task, s.Items, s.Loss, s.Truncated})
	}
	type plain Score
	return json.Marshal(plain(s))
}

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
	limit := max(e.tokens, longestGroup(groups))
	batches, err := datasets.PackGroups(groups, limit, datasets.Sizes(limit))
	if err != nil {
		return Score{}, err
	}
	s := Score{Task: task.Name, Items: len(groups), Truncated: truncated, Results: make([]ItemResult, len(groups))}
	for i, g := range groups {
		s.Results[i] = ItemResult{Item: i, Gold: task.Items[i].Gold, LogLikelihood: make([]float64, len(g.Branches))}
	}
	goldTokens := 0
	source := func(i int) string { return groups[i].Source }
	err = e.each(ctx, batches, ad, source, progress, func(a datasets.Answer, lp []float64) {
		r := &s.Results[a.Item]
		r.LogLikelihood[a.Branch] = sum(lp)
		if a.Branch == r.Gold {
			s.Loss -= sum(lp)
			goldTokens += len(lp)
		}
	})
	if err != nil {
		return Score{}, err
	}
	s.Loss /= float64(goldTokens)
	s.count(groups)
	s.Chance, s.Majority = datasets.Chance(task.Items), datasets.Majority(task.Items)
	return s, nil
}

// count makes predictions of log-likelihoods, and accuracies of these.
func (s *Score) count(groups []datasets.Group) {
	right, rightNorm := 0, 0
	for i := range s.Results {
		r, perChar := &s.Results[i], make([]float64, len(groups[i].Branches))
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
	s.Acc, s.AccErr = accuracy(right, len(s.Results))
	s.AccNorm, s.AccNormErr = accuracy(rightNorm, len(s.Results))
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
	source := func(i int) string { return seqs[i].Source }
	err = e.each(ctx, batches, ad, source, progress, func(_ datasets.Answer, lp []float64) {
		s.Loss -= sum(lp)
		tokens += len(lp)
	})
	s.Loss /= float64(max(1, tokens))
	return s, err
}

// each runs the batches and gives the log-probabilities of every answer's tokens; source says where an item is from.
func (e *Evaluator) each(ctx context.Context, batches []datasets.Batch, ad AdapterOf, source func(item int) string,
	progress func(done, all int), visit func(a datasets.Answer, lp []float64),
) error {
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
			for _, p := range lp[a.From:a.To] {
				if math.IsNaN(p) || math.IsInf(p, 0) {
					return fmt.Errorf("%s: the log-probability of an answer's token is %v\nthe weights of the model or of the adapter hold numbers that are not finite, or grow to such",
						source(a.Item), p)
				}
			}
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
	return lp, err
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
