package train

import (
	"fmt"
	"math"

	"loratrain/datasets"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
)

// Objective is what a step minimises besides the cross-entropy, and how it moves.
type Objective struct {
	Balance float64 // coefficient of the balance loss
	Dropout float64 // of the adapters' inputs
	Seed    int32   // of dropout
	AdamW   kernels.AdamW
}

// Stepper computes optimizer steps: it holds the trainable tensors, their gradients and moments, each in one buffer, and one
// program for every token count that batches come in.
type Stepper struct {
	Bank *model.Bank
	// Params, M and V are the trainable tensors and AdamW's moments, laid out as Bank says, in the backend's memory.
	Params, M, V kernels.Tensor

	base      *model.Placed
	b         kernels.Backend
	objective Objective
	grads     kernels.Tensor
	arena     *graph.Arena
	programs  map[int]*stepProgram

	// One-element inputs of every program, and of the optimizer.
	seed, ceWeight, balanceWeight, key, norm, hyper kernels.Tensor
}

// stepProgram is forward and backward of a batch of one size.
type stepProgram struct {
	*graph.Program
	ids, pos, spans, seq, targets kernels.Tensor
	routers                       int
}

// NewStepper prepares training of a bank's tensors, which start as params, in host memory, says.
func NewStepper(base *model.Placed, bank *model.Bank, params kernels.Tensor, o Objective) (*Stepper, error) {
	b := base.Backend
	s := &Stepper{Bank: bank, base: base, b: b, objective: o, arena: graph.NewArena(b), programs: map[int]*stepProgram{}}
	type want struct {
		t *kernels.Tensor
		n int
	}
	for _, w := range []want{
		{&s.Params, bank.Size()},
		{&s.M, bank.Size()},
		{&s.V, bank.Size()},
		{&s.grads, bank.Size()},
		{&s.seed, 1},
		{&s.ceWeight, 1},
		{&s.balanceWeight, 1},
		{&s.norm, 1},
		{&s.hyper, 2},
	} {
		var err error
		if *w.t, err = b.Alloc(b.Param(), w.n); err != nil {
			return nil, fmt.Errorf("adapter and optimizer: %w", err)
		}
	}
	var err error
	if s.key, err = b.Alloc(kernels.I32, 2); err != nil {
		return nil, err
	}
	b.Write(s.Params, params)
	s.set(s.seed, 1)
	return s, nil
}

// set writes numbers to a small tensor of the backend's Param type.
func (s *Stepper) set(t kernels.Tensor, xs ...float64) {
	host := kernels.NewHost(t.Type, t.Shape...)
	for i, x := range xs {
		if t.Type == kernels.F64 {
			kernels.Slice[float64](host)[i] = x
		} else {
			kernels.Slice[float32](host)[i] = float32(x)
		}
	}
	s.b.Write(t, host)
}

// get reads a small tensor of the backend's Param type.
func (s *Stepper) get(t kernels.Tensor) []float64 {
	host := kernels.NewHost(t.Type, t.Shape...)
	s.b.Read(host, t)
	xs := make([]float64, t.Len())
	copyFloats(xs, host)
	return xs
}

// program is that for batches of a number of tokens, compiled when it is asked for first.
func (s *Stepper) program(tokens int) (*stepProgram, error) {
	if p := s.programs[tokens]; p != nil {
		return p, nil
	}
	p, err := s.compile(tokens)
	if err != nil {
		return nil, fmt.Errorf("a program for %d tokens: %w", tokens, err)
	}
	s.programs[tokens] = p
	return p, nil
}

func (s *Stepper) compile(tokens int) (*stepProgram, error) {
	p := &stepProgram{}
	for _, in := range []struct {
		t     *kernels.Tensor
		shape []int
	}{
		{&p.ids, []int{tokens}},
		{&p.pos, []int{tokens}},
		{&p.seq, []int{tokens}},
		{&p.targets, []int{tokens}},
		{&p.spans, []int{tokens, 4}},
	} {
		var err error
		if *in.t, err = s.b.Alloc(kernels.I32, in.shape...); err != nil {
			return nil, err
		}
	}
	rec := graph.NewRecorder(s.b)
	values := s.base.Bind(rec)
	drop := model.Dropout{Rate: s.objective.Dropout}
	if drop.Rate > 0 {
		drop.Key = rec.Bind("key", s.key)
	}
	ad, params := s.Bank.Bind(rec, s.Params, drop)
	hidden := model.Hidden(rec, values, ad, model.Inputs{
		IDs: rec.Bind("ids", p.ids), Pos: rec.Bind("positions", p.pos), Spans: rec.Bind("spans", p.spans),
	})
	ce := graph.CrossEntropy(rec, hidden, values.Head, rec.Bind("targets", p.targets))
	loss, keep := graph.Scale(rec, ce, rec.Bind("weight of the cross-entropy", s.ceWeight)), []graph.V{ce}
	if p.routers = len(ad.Decisions); p.routers > 0 {
		balance, loads := router.Balance(rec, ad.Decisions, rec.Bind("sequences", p.seq))
		weighted := graph.Scale(rec, balance, rec.Bind("weight of the balance loss", s.balanceWeight))
		loss, keep = graph.Sum(rec, loss, weighted), append(append(keep, balance), loads...)
	}
	grads := make([]graph.Gradient, len(params))
	for i, v := range params {
		grads[i] = graph.Gradient{Of: v, Into: s.Bank.View(s.grads, s.Bank.Params[i])}
	}
	sums, err := rec.Gradients(loss, rec.Bind("seed", s.seed), grads)
	if err != nil {
		return nil, err
	}
	p.Program, err = rec.Compile(s.arena, keep, sums)
	return p, err
}

// Plan compiles the programs for batches of the given token counts and says what they and the optimizer will take, in
// bytes.
func (s *Stepper) Plan(sizes []int) (activations, trainable int, err error) {
	for _, n := range sizes {
		if _, err := s.program(n); err != nil {
			return 0, 0, err
		}
	}
	return s.arena.Bytes(), 4 * s.Params.Bytes(), nil
}

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

// Step computes the gradients of all batches together, both losses normalised by the counts of the whole step, and moves the
// parameters; n counts steps from 1. If the result is not finite nothing was moved.
func (s *Stepper) Step(batches []datasets.Batch, n int, lr float64) (StepResult, error) {
	var r StepResult
	for _, b := range batches {
		r.Tokens += b.Tokens
		r.Targets += b.TargetCount
	}
	if r.Targets == 0 {
		return r, fmt.Errorf("step %d has no token to learn", n)
	}
	s.b.Zero(s.grads)
	s.set(s.ceWeight, 1/float64(r.Targets))
	for _, b := range batches {
		if err := s.accumulate(b, n, &r); err != nil {
			return r, fmt.Errorf("step %d: %w", n, err)
		}
	}
	s.b.Norm(s.norm, s.grads)
	r.Norm = s.get(s.norm)[0]
	r.CE /= float64(r.Targets)
	r.Loss = r.CE + s.objective.Balance*r.Balance
	if r.Finite() {
		s.set(s.hyper, lr, float64(n))
		s.b.Step(s.Params, s.grads, s.M, s.V, s.norm, s.hyper, s.objective.AdamW)
	}
	return r, s.b.Sync()
}

// accumulate adds one batch's gradients and losses.
func (s *Stepper) accumulate(b datasets.Batch, n int, r *StepResult) error {
	p, err := s.program(len(b.IDs))
	if err != nil {
		return err
	}
	share := float64(b.Tokens) / float64(r.Tokens)
	if p.routers > 0 {
		s.set(s.balanceWeight, s.objective.Balance*share/float64(p.routers))
	}
	for _, in := range []struct {
		t    kernels.Tensor
		data []int32
	}{
		{p.ids, b.IDs},
		{p.pos, b.Pos},
		{p.seq, b.Seq},
		{p.targets, b.Targets},
		{p.spans, spans(s.base.Arch, b)},
		{s.key, []int32{s.objective.Seed, int32(n)}},
	} {
		s.b.Write(in.t, kernels.FromSlice(in.data, in.t.Shape...))
	}
	if err := p.Run(); err != nil {
		return err
	}
	r.CE += s.get(p.Kept(0))[0]
	if p.routers == 0 {
		return nil
	}
	r.Balance += s.get(p.Kept(1))[0] * share / float64(p.routers)
	for i := range p.routers {
		loads := s.get(p.Kept(2 + i))
		if r.Loads == nil {
			r.Loads = make([]float64, len(loads))
		}
		for e, f := range loads {
			r.Loads[e] += f * share / float64(p.routers)
		}
	}
	return nil
}

// spans is what each token of a batch sees.
func spans(a model.Arch, b datasets.Batch) []int32 {
	visible := make([]model.Visible, len(b.IDs))
	for t := range visible {
		visible[t] = model.Visible{PrefixFrom: b.PrefixFrom[t], PrefixTo: b.PrefixTo[t], OwnFrom: b.OwnFrom[t]}
	}
	return a.Spans(visible, b.Pos, b.Seq)
}
