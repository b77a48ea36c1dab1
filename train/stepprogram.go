package train

import (
	"errors"
	"fmt"

	"loratrain/datasets"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
)

// stepProgram is forward and backward of a batch of one size, and what a step does before and after.
type stepProgram struct {
	*graph.Program
	tokens  int
	routers int
	inputs  graph.Pack     // in the backend's memory
	host    graph.Pack     // what is written to inputs
	frames  [4]graph.Frame // by position: that of a batch in its step
}

// The tensors of a program's inputs.
const (
	inIDs           = iota // (T) i32
	inPos                  // (T) i32
	inSeq                  // (T) i32
	inTargets              // (T) i32
	inSpans                // (T, 4) i32
	inKey                  // (2) i32: the seed of dropout and the step
	inSeed                 // (1): the gradient of the loss itself
	inCEWeight             // (1)
	inBalanceWeight        // (1)
	inHyper                // (2): learning rate and step
)

func inputSpecs(tokens int, param kernels.Type) []graph.Spec {
	return []graph.Spec{
		inIDs:           graph.Of(kernels.I32, tokens),
		inPos:           graph.Of(kernels.I32, tokens),
		inSeq:           graph.Of(kernels.I32, tokens),
		inTargets:       graph.Of(kernels.I32, tokens),
		inSpans:         graph.Of(kernels.I32, tokens, 4),
		inKey:           graph.Of(kernels.I32, 2),
		inSeed:          graph.Of(param, 1),
		inCEWeight:      graph.Of(param, 1),
		inBalanceWeight: graph.Of(param, 1),
		inHyper:         graph.Of(param, 2),
	}
}

// position is where a batch stands in its step: bits.
type position int

const (
	firstOfStep position = 1 << iota
	lastOfStep
)

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

func (s *Stepper) compile(tokens int) (p *stepProgram, err error) {
	p = &stepProgram{tokens: tokens, host: graph.NewHostPack(inputSpecs(tokens, s.b.Param())...)}
	if p.inputs, err = graph.NewPack(s.b, inputSpecs(tokens, s.b.Param())...); err != nil {
		return nil, err
	}
	if p.Program, err = s.record(p); err != nil {
		return nil, errors.Join(err, p.close(s.b))
	}
	before := func() {
		s.b.Zero(s.grads)
		s.round()
	}
	after := func() {
		s.b.Norm(s.norm, s.grads)
		s.b.Step(s.Params, s.grads, s.M, s.V, s.norm, p.inputs.Parts[inHyper], s.objective.AdamW)
	}
	p.frames[firstOfStep].Before, p.frames[firstOfStep|lastOfStep].Before = before, before
	p.frames[lastOfStep].After, p.frames[firstOfStep|lastOfStep].After = after, after
	return p, nil
}

// record is the graph of p, compiled.
func (s *Stepper) record(p *stepProgram) (*graph.Program, error) {
	rec := graph.NewRecorder(s.b)
	if s.objective.Recompute {
		rec.Recompute()
	}
	input := func(name string, i int) graph.V { return rec.Bind(name, p.inputs.Parts[i]) }
	values := s.base.Bind(rec)
	drop := model.Dropout{Rate: s.objective.Dropout}
	if drop.Rate > 0 {
		drop.Key = input("key", inKey)
	}
	ad, params := s.Bank.BindRounded(rec, s.Params, s.rounded, drop)
	hidden := model.Hidden(rec, values, ad, model.Inputs{
		IDs: input("ids", inIDs), Pos: input("positions", inPos), Spans: input("spans", inSpans),
	})
	ce := graph.CrossEntropy(rec, hidden, values.Head, input("targets", inTargets))
	loss, keep := graph.Scale(rec, ce, input("weight of the cross-entropy", inCEWeight)), []graph.V{ce}
	if p.routers = len(ad.Decisions); p.routers > 0 {
		balance, loads := router.Balance(rec, ad.Decisions, input("sequences", inSeq))
		weighted := graph.Scale(rec, balance, input("weight of the balance loss", inBalanceWeight))
		loss, keep = graph.Sum(rec, loss, weighted), append(append(keep, balance), loads...)
	}
	grads := make([]graph.Gradient, len(params))
	for i, v := range params {
		grads[i] = graph.Gradient{Of: v, Into: s.Bank.View(s.grads, s.Bank.Params[i])}
	}
	sums, err := rec.Gradients(loss, input("seed", inSeed), grads)
	if err != nil {
		return nil, err
	}
	return rec.Compile(s.arena, keep, sums)
}

// smallBytes is what the inputs and kept values of such a program for a number of tokens take.
func (p *stepProgram) smallBytes(tokens int) int {
	return graph.PackBytes(inputSpecs(tokens, p.inputs.Parts[inSeed].Type)...) + p.KeptBytes()
}

// stepNumbers are the numbers of a step that its batches need.
type stepNumbers struct {
	step            int
	lr              float64
	tokens, targets int // in all batches
}

// write brings a batch to the inputs.
func (p *stepProgram) write(s *Stepper, b datasets.Batch, n stepNumbers) {
	for i, data := range map[int][]int32{
		inIDs: b.IDs, inPos: b.Pos, inSeq: b.Seq, inTargets: b.Targets, inSpans: spans(s.base.Arch, b),
		inKey: {s.objective.Seed, int32(n.step)},
	} {
		copy(kernels.Slice[int32](p.host.Parts[i]), data)
	}
	set(p.host.Parts[inSeed], 1)
	set(p.host.Parts[inCEWeight], 1/float64(n.targets))
	if p.routers > 0 {
		set(p.host.Parts[inBalanceWeight], s.objective.Balance*n.share(b)/float64(p.routers))
	}
	set(p.host.Parts[inHyper], n.lr, float64(n.step))
	s.b.Write(p.inputs.Whole, p.host.Whole)
}

// share is a batch's part of its step's tokens.
func (n stepNumbers) share(b datasets.Batch) float64 { return float64(b.Tokens) / float64(n.tokens) }

func (p *stepProgram) close(b kernels.Backend) error {
	if !p.inputs.Whole.None() {
		b.Free(p.inputs.Whole)
	}
	if p.Program == nil {
		return nil
	}
	return p.Program.Close()
}

// set writes numbers to a tensor of host memory.
func set(t kernels.Tensor, xs ...float64) {
	for i, x := range xs {
		if t.Type == kernels.F64 {
			kernels.Slice[float64](t)[i] = x
		} else {
			kernels.Slice[float32](t)[i] = float32(x)
		}
	}
}

// spans is what each token of a batch sees.
func spans(a model.Arch, b datasets.Batch) []int32 {
	visible := make([]model.Visible, len(b.IDs))
	for t := range visible {
		visible[t] = model.Visible{PrefixFrom: b.PrefixFrom[t], PrefixTo: b.PrefixTo[t], OwnFrom: b.OwnFrom[t]}
	}
	return a.Spans(visible, b.Pos, b.Seq)
}
