package train

import (
	"context"
	"time"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/model"
)

// adapter is the trained tensors as they are, for an evaluation pass.
func (r *run) adapter(x *graph.Immediate, _ []int32) model.PassAdapter {
	return r.stepper.Adapter(x)
}

// evaluate scores every task that the run is measured by; nil stands for the base alone.
func (r *run) evaluate(ctx context.Context, of AdapterOf, who string) ([]Score, error) {
	e := NewEvaluator(r.placed, r.data.encoder, r.cfg.Eval.BatchTokens)
	defer e.Close()
	var scores []Score
	for _, task := range r.data.tests {
		s, err := e.Evaluate(ctx, task, of, func(done, all int) { r.Progress.Eval(task.Name+", "+who, done, all) })
		if err != nil {
			return nil, err
		}
		scores = append(scores, s)
	}
	return scores, nil
}

// finish measures the base and the best checkpoint, or the last if none was measured, and exports that.
func (r *run) finish(ctx context.Context) (*Outcome, error) {
	out := &Outcome{Dir: r.folder.Dir, Steps: r.state.Step, Exported: r.state.Step, Loads: r.loads, Export: r.folder.ExportDir()}
	if best := r.state.BestStep; best > 0 && best != r.state.Step {
		out.Exported = best
		host := kernels.NewHost(r.stepper.Params.Type, r.stepper.Params.Shape...)
		if err := LoadAdapter(stepFolder(r.folder.CheckpointsDir(), best), r.bank, host); err != nil {
			return nil, err
		}
		r.Backend.Write(r.stepper.Params, host)
	}
	if err := r.stepper.Rest(); err != nil { // the verification needs the memory
		return nil, err
	}
	started := time.Now()
	var err error
	if out.Base, err = r.evaluate(ctx, nil, "base"); err != nil {
		return nil, err
	}
	if out.Adapter, err = r.evaluate(ctx, r.adapter, "adapter"); err != nil {
		return nil, err
	}
	out.EvalSeconds = time.Since(started).Seconds()
	m := model.Adapted{Base: r.Base, Placed: r.placed, Bank: r.bank, Params: r.stepper.Params}
	if out.Agreement, err = m.Export(r.folder.ExportDir(), r.data.prompts()); err != nil {
		return nil, err
	}
	out.Base, out.Adapter = withoutResults(out.Base), withoutResults(out.Adapter)
	return out, nil
}

// withoutResults is scores without their items, for places that hold many of them.
func withoutResults(scores []Score) []Score {
	short := make([]Score, len(scores))
	for i, s := range scores {
		s.Results = nil
		short[i] = s
	}
	return short
}
