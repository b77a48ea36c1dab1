package train

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"loratrain/kernels"
)

// launched is a step whose result was not read yet.
type launched struct {
	*Pending
	step  int
	items []int
	lr    float64
	began time.Time
}

// train takes the steps that are left. stopped says that early stopping ended it. What is saved or measured is never ahead of
// a result that was not looked at.
func (r *run) train(ctx context.Context) (stopped bool, err error) {
	c, rates := r.cfg.Train, r.cfg.Train.LearningRates(r.total)
	for {
		n, last := r.state.Step, r.state.Step == r.total
		if c.EvalEvery > 0 && n > 0 && (n%c.EvalEvery == 0 || last) && r.state.Measured < n {
			if err := r.settle(); err != nil {
				return false, err
			}
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
			if err := r.settle(); err != nil {
				return false, err
			}
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

// step launches one optimizer step. A device computes it while the next one is prepared, so that its result is read one step
// later; a backend that computes at once gives it at once.
func (r *run) step(rates Schedule) error {
	now := launched{step: r.state.Step + 1, items: r.sampler.Step(r.state.Step), lr: rates.LearningRate(r.state.Step, r.total), began: time.Now()}
	batches, err := r.data.batches(now.items, r.cfg.Train.MicroTokens)
	if err != nil {
		return err
	}
	if now.Pending, err = r.stepper.Launch(batches, now.step, now.lr); err != nil {
		return err
	}
	before := r.pending
	r.pending, r.state.Step = &now, now.step
	if _, later := r.Backend.(kernels.Capturer); later {
		return r.report(before)
	}
	return r.settle()
}

// settle waits until all steps are done, and reports the last.
func (r *run) settle() error {
	last := r.pending
	if last == nil {
		return nil
	}
	r.pending = nil
	if err := r.report(last); err != nil {
		return err
	}
	if err := r.Backend.Sync(); err != nil {
		return fmt.Errorf("step %d: %w", last.step, err)
	}
	return nil
}

// report reads the result of a step, if there is one, and notes it down. It is an error if training cannot go on after it.
func (r *run) report(l *launched) error {
	if l == nil {
		return nil
	}
	res, err := l.Result()
	if err != nil {
		return err
	}
	if !res.Finite() {
		return fmt.Errorf("step %d: loss %v, gradient norm %v; items %s\n%s", l.step, res.Loss, res.Norm,
			strings.Join(r.data.sources(l.items), ", "), nonFiniteAdvice(l.step))
	}
	r.loads = res.Loads
	// Of a step that was launched while another ran only what it took longer counts.
	if l.began.Before(r.reported) {
		l.began = r.reported
	}
	r.reported = time.Now()
	seconds := r.reported.Sub(l.began).Seconds()
	rate := float64(res.Tokens) / seconds
	r.Progress.Step(StepInfo{Step: l.step, Total: r.total, Loss: res.Loss, Balance: res.Balance, TokensPerSecond: rate})
	return r.metrics.WriteStep(StepMetrics{
		Step: l.step, Epoch: float64(l.step) / float64(r.sampler.StepsPerEpoch()), Loss: res.Loss, CE: res.CE, Balance: res.Balance,
		GradNorm: res.Norm, LR: l.lr, Tokens: res.Tokens, Targets: res.Targets, Loads: res.Loads, Seconds: seconds, TokensPerSecond: rate,
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
