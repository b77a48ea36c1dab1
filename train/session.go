package train

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"
)

// train takes the steps that are left. stopped says that early stopping ended it.
func (r *run) train(ctx context.Context) (stopped bool, err error) {
	c, rates := r.cfg.Train, r.cfg.Train.LearningRates(r.total)
	for {
		n, last := r.state.Step, r.state.Step == r.total
		if c.EvalEvery > 0 && n > 0 && (n%c.EvalEvery == 0 || last) && r.state.Measured < n {
			if err := r.measure(ctx); err != nil {
				if ctx.Err() == nil {
					return false, err
				}
				return false, cmp.Or(r.save(), err)
			}
		}
		stopped = c.Patience > 0 && r.state.Worse >= c.Patience && !last
		due := c.SaveEvery > 0 && n%c.SaveEvery == 0 || r.state.BestStep == n
		if last || stopped || ctx.Err() != nil || n > 0 && due {
			if err := r.save(); err != nil {
				return false, err
			}
		}
		if stopped {
			r.Progress.Log(fmt.Sprintf("stopped early: %s has not improved for %d evaluations", c.Metric, r.state.Worse))
		}
		if last || stopped || ctx.Err() != nil {
			return stopped, ctx.Err()
		}
		if err := r.step(rates); err != nil {
			return false, err
		}
	}
}

// step takes one optimizer step.
func (r *run) step(rates Schedule) error {
	items := r.sampler.Step(r.state.Step)
	batches, err := r.data.batches(items, r.cfg.Train.MicroTokens)
	if err != nil {
		return err
	}
	n, lr, started := r.state.Step+1, rates.LearningRate(r.state.Step, r.total), time.Now()
	res, err := r.stepper.Step(batches, n, lr)
	if err != nil {
		return err
	}
	if !res.Finite() {
		return fmt.Errorf("step %d: loss %v, gradient norm %v; items %s\n%s", n, res.Loss, res.Norm,
			strings.Join(r.data.sources(items), ", "), nonFiniteAdvice(n))
	}
	r.state.Step, r.loads = n, res.Loads
	seconds := time.Since(started).Seconds()
	rate := float64(res.Tokens) / seconds
	r.Progress.Step(StepInfo{Step: n, Total: r.total, Loss: res.Loss, Balance: res.Balance, TokensPerSecond: rate})
	return r.metrics.WriteStep(StepMetrics{
		Step: n, Epoch: float64(n) / float64(r.sampler.StepsPerEpoch()), Loss: res.Loss, CE: res.CE, Balance: res.Balance,
		GradNorm: res.Norm, LR: lr, Tokens: res.Tokens, Targets: res.Targets, Loads: res.Loads, Seconds: seconds, TokensPerSecond: rate,
	})
}

// nonFiniteAdvice is what to do about a loss or a gradient at step n that is no number.
func nonFiniteAdvice(n int) string {
	if n == 1 { // an adapter that never moved adds nothing
		return "the base alone computes this: look at its weights and at these items"
	}
	return "lower train.lr or train.clip, or look at these items; the last checkpoint is as it was before"
}

// measure evaluates the adapter as it is and notes whether it is the best so far.
func (r *run) measure(ctx context.Context) error {
	scores, err := r.evaluate(ctx, r.adapter, "adapter")
	if err != nil {
		return err
	}
	value := meanMetric(scores, r.cfg.Train.Metric)
	if r.state.BestValue == nil || value > *r.state.BestValue {
		r.state.BestStep, r.state.BestValue, r.state.Worse = r.state.Step, &value, 0
	} else {
		r.state.Worse++
	}
	r.state.Measured = r.state.Step
	for _, s := range scores {
		r.Progress.Log(fmt.Sprintf("step %d: %s", r.state.Step, s.summary()))
	}
	return r.metrics.WriteEval(r.state.Step, withoutResults(scores))
}

// meanMetric is what the best checkpoint is the best by, larger being better: the mean accuracy over the tasks that have one, or
// minus the mean loss over all if that is asked for or none has.
func meanMetric(scores []Score, metric string) float64 {
	loss, accuracy, choices := 0.0, 0.0, 0
	for _, s := range scores {
		loss += s.Loss
		if s.Pairs() {
			continue
		}
		choices++
		if metric == MetricAcc {
			accuracy += s.Acc
		} else {
			accuracy += s.AccNorm
		}
	}
	if metric == MetricLoss || choices == 0 {
		return -loss / float64(len(scores))
	}
	return accuracy / float64(choices)
}
