package train

import (
	"fmt"
	"math"

	"loratrain/datasets"
	"loratrain/internal/graph"
	"loratrain/kernels"
)

// StepResult is what a step reports: means over its tokens.
type StepResult struct {
	Loss    float64   // cross-entropy + coefficient·balance
	CE      float64   // mean over the tokens that have a target
	Balance float64   // mean over routers, 1 is even
	Norm    float64   // of the gradient, before clipping
	Loads   []float64 // share of the top-2 places that each expert holds, mean over routers
	Tokens  int       // without padding
	Targets int
}

// Finite reports whether training can go on after this step.
func (r StepResult) Finite() bool {
	for _, x := range []float64{r.Loss, r.Norm} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}

// Pending is a step that was launched and whose result was not read yet.
type Pending struct {
	s       *Stepper
	numbers stepNumbers
	batches []pendingBatch
	norm    kernels.Tensor
	wait    func()
}

// pendingBatch is what one batch's program keeps.
type pendingBatch struct {
	kept    []kernels.Tensor
	wait    func()
	share   float64
	routers int
}

// Launch queues the computation of the gradients of all batches together, both losses normalised by the counts of the whole
// step, and the move of the parameters; n counts steps from 1. It does not wait for a device. If the norm of the gradients
// is not finite nothing will move.
func (s *Stepper) Launch(batches []datasets.Batch, n int, lr float64) (*Pending, error) {
	p := &Pending{s: s, numbers: stepNumbers{step: n, lr: lr}, norm: kernels.NewHost(s.norm.Type, 1)}
	for _, b := range batches {
		p.numbers.tokens += b.Tokens
		p.numbers.targets += b.TargetCount
	}
	if p.numbers.targets == 0 {
		return nil, fmt.Errorf("step %d has no token to learn", n)
	}
	for i, b := range batches {
		at := position(0)
		if i == 0 {
			at |= firstOfStep
		}
		if i == len(batches)-1 {
			at |= lastOfStep
		}
		if err := p.launch(b, at); err != nil {
			return nil, fmt.Errorf("step %d: %w", n, err)
		}
	}
	graph.FillNaN(p.norm)
	p.wait = s.b.Fetch(p.norm, s.norm)
	return p, nil
}

// launch queues one batch.
func (p *Pending) launch(b datasets.Batch, at position) error {
	program, err := p.s.program(len(b.IDs))
	if err != nil {
		return err
	}
	program.write(p.s, b, p.numbers)
	if err := program.RunIn(&program.frames[at]); err != nil {
		return err
	}
	batch := pendingBatch{share: p.numbers.share(b), routers: program.routers}
	batch.kept, batch.wait = program.Fetch()
	p.batches = append(p.batches, batch)
	return nil
}

// Result waits for the step. If it is not finite because the device failed, the error is the device's; an error of a step
// whose result is finite shows at the Sync of the backend.
func (p *Pending) Result() (StepResult, error) {
	r := StepResult{Tokens: p.numbers.tokens, Targets: p.numbers.targets}
	for _, b := range p.batches {
		b.wait()
		b.addTo(&r)
	}
	p.wait()
	r.Norm = numbers(p.norm)[0]
	r.CE /= float64(r.Targets)
	r.Loss = r.CE + p.s.objective.Balance*r.Balance
	if !r.Finite() {
		if err := p.s.b.Sync(); err != nil {
			return r, fmt.Errorf("step %d: %w", p.numbers.step, err)
		}
	}
	return r, nil
}

// addTo adds one batch's losses and loads.
func (b pendingBatch) addTo(r *StepResult) {
	r.CE += numbers(b.kept[0])[0]
	if b.routers == 0 {
		return
	}
	r.Balance += numbers(b.kept[1])[0] * b.share / float64(b.routers)
	for _, kept := range b.kept[2:] {
		loads := numbers(kept)
		if r.Loads == nil {
			r.Loads = make([]float64, len(loads))
		}
		for e, f := range loads {
			r.Loads[e] += f * b.share / float64(b.routers)
		}
	}
}

// numbers are the elements of a small tensor in host memory.
func numbers(t kernels.Tensor) []float64 {
	xs := make([]float64, t.Len())
	copyFloats(xs, t)
	return xs
}

// Step is Launch that waits for the result.
func (s *Stepper) Step(batches []datasets.Batch, n int, lr float64) (StepResult, error) {
	p, err := s.Launch(batches, n, lr)
	if err != nil {
		return StepResult{}, err
	}
	r, err := p.Result()
	if err != nil {
		return r, err
	}
	return r, s.b.Sync()
}
