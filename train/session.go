package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/model"
)

// progressState is what a checkpoint holds besides the tensors. The sampler's order, the learning rate and dropout follow from the step
// and the configuration.
type progressState struct {
	Step      int      `json:"step"`       // taken
	Measured  int      `json:"measured"`   // the last step after which the adapter was evaluated
	BestStep  int      `json:"best_step"`  // 0: nothing was measured yet
	BestValue *float64 `json:"best_value"` // larger is better
	Worse     int      `json:"worse"`      // measurements since the best
}

// train takes the steps that are left. stopped says that early stopping ended it.
func (r *run) train(ctx context.Context) (stopped bool, err error) {
	c, rates := r.cfg.Train, r.cfg.Train.LearningRates(r.total)
	for {
		n, last := r.state.Step, r.state.Step == r.total
		if c.EvalEvery > 0 && n > 0 && (n%c.EvalEvery == 0 || last) && r.state.Measured < n {
			if err := r.measure(ctx); err != nil {
				return false, errors.Join(err, r.save())
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
		return fmt.Errorf("step %d: loss %v, gradient norm %v; items %s\nlower train.lr or train.clip, or look at these items; the last checkpoint is as it was before",
			n, res.Loss, res.Norm, strings.Join(r.data.sources(items), ", "))
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

// measure evaluates the adapter as it is and notes whether it is the best so far.
func (r *run) measure(ctx context.Context) error {
	if len(r.data.tests) == 0 {
		return errors.New("train.eval_every is set, but nothing to evaluate on is named\nset eval.tasks or data.eval_file")
	}
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

// meanMetric is the mean over tasks of what the best checkpoint is the best by; larger is better.
func meanMetric(scores []Score, metric string) float64 {
	total := 0.0
	for _, s := range scores {
		switch {
		case metric == MetricLoss || s.Pairs():
			total -= s.Loss
		case metric == MetricAcc:
			total += s.Acc
		default:
			total += s.AccNorm
		}
	}
	return total / float64(len(scores))
}

// The prefixes of a checkpoint's tensors.
const (
	stateParams = ""
	stateM      = "adamw.m."
	stateV      = "adamw.v."
)

// save writes a checkpoint of the step taken last and removes all but it and the best one.
func (r *run) save() error {
	meta, err := json.Marshal(r.state)
	if err != nil {
		return err
	}
	s := checkpoints.State{Step: r.state.Step, Meta: meta}
	for _, b := range r.buffers() {
		host := kernels.NewHost(b.t.Type, b.t.Shape...)
		r.Backend.Read(host, b.t)
		for _, t := range r.bank.Tensors(host) {
			t.Name = b.prefix + t.Name
			s.Tensors = append(s.Tensors, t)
		}
	}
	dir := r.folder.CheckpointsDir()
	if err := checkpoints.SaveState(dir, s); err != nil && !errors.Is(err, checkpoints.ErrExists) {
		return err
	}
	return checkpoints.Reap(dir, r.state.Step, r.state.BestStep)
}

// buffer is one of those that a checkpoint holds, and the prefix of its tensors' names.
type buffer struct {
	prefix string
	t      kernels.Tensor
}

func (r *run) buffers() []buffer {
	return []buffer{{stateParams, r.stepper.Params}, {stateM, r.stepper.M}, {stateV, r.stepper.V}}
}

// load takes up the newest complete checkpoint; without one the run starts again.
func (r *run) load() error {
	latest, err := checkpoints.LatestState(r.folder.CheckpointsDir())
	if errors.Is(err, checkpoints.ErrNoState) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, skipped := range latest.Skipped {
		r.Progress.Log(fmt.Sprintf("passed over: %v", skipped))
	}
	if err := json.Unmarshal(latest.Meta, &r.state); err != nil {
		return fmt.Errorf("%s: %w", latest.Path, err)
	}
	for _, b := range r.buffers() {
		host := kernels.NewHost(b.t.Type, b.t.Shape...)
		if err := r.bank.Load(host, withPrefix(latest.Tensors, b.prefix)); err != nil {
			return fmt.Errorf("%s: %w", latest.Path, err)
		}
		r.Backend.Write(b.t, host)
	}
	r.Progress.Log(fmt.Sprintf("resumed after step %d of %d", r.state.Step, r.total))
	return nil
}

// withPrefix is the tensors whose names begin with a prefix, without it; the empty prefix stands for those of the adapter itself.
func withPrefix(tensors []checkpoints.Tensor, prefix string) []checkpoints.Tensor {
	var list []checkpoints.Tensor
	for _, t := range tensors {
		if prefix == stateParams && strings.HasPrefix(t.Name, "adamw.") {
			continue
		}
		if name, ok := strings.CutPrefix(t.Name, prefix); ok {
			t.Name = name
			list = append(list, t)
		}
	}
	return list
}

// LoadAdapter reads the adapter of a checkpoint folder into a buffer in host memory.
func LoadAdapter(path string, bank *model.Bank, params kernels.Tensor) error {
	s, err := checkpoints.LoadState(path)
	if err != nil {
		return err
	}
	if err := bank.Load(params, withPrefix(s.Tensors, stateParams)); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
