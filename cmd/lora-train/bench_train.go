package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"

	"loratrain/datasets"
	"loratrain/internal/budget"
	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
	"loratrain/train"
)

// benchTrainFlags are those of the command bench train.
type benchTrainFlags struct {
	benchFlags
	granularity           string
	experts, rank, shared int
	steps, warmup         int
	recompute, profile    bool
}

func newBenchTrainCommand() *cobra.Command {
	var f benchTrainFlags
	cmd := &cobra.Command{
		Use:   "train",
		Short: "Measure training steps on random tokens",
		Long: `Train measures whole optimizer steps, forwards, backwards and AdamW: B sequences of T random tokens, each the
target of the one before it, with experts on every linear layer. It prints tokens a second, the peak of the memory
that was allocated, and the share of the machine's own rate of matrix products, measured in the same run, that the
model's arithmetic comes to: 4 flops a token for each frozen weight of the linear layers and of the output projection
(forwards and towards the input), 6 for each trained one (towards itself too), and 12 for each pair of a token and a
key that it sees and each element of the heads. What is computed again to save memory is not counted.

--profile takes one more step, operation by operation: how long each took, how long the machine needs at best for its
flops and bytes, and, on a GPU, how long each kernel took.`,
		Example: `  lora-train bench train --shape smollm2-135m --batch 16 --length 512
  lora-train bench train --shape llama2-7b --batch 4 --length 512 --experts 64 --rank 1 --profile
  lora-train bench train --model SmolLM2-135M-Instruct.Q4_1.gguf --json bench.json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.granularity, "granularity", string(router.Token), "where experts are chosen: token, block, layer; none: plain LoRA")
	flags.IntVar(&f.experts, "experts", 8, "experts of each linear layer")
	flags.IntVar(&f.rank, "rank", 8, "rank of an expert")
	flags.IntVar(&f.shared, "shared", 0, "rank of one more expert that serves every token; 0: none")
	flags.IntVar(&f.steps, "steps", 20, "steps to measure")
	flags.IntVar(&f.warmup, "warmup", 3, "steps before them")
	flags.BoolVar(&f.recompute, "recompute", false, "compute each block again in the backward pass, to need less memory")
	flags.BoolVar(&f.profile, "profile", false, "say where the time of a step goes")
	return cmd
}

func (f *benchTrainFlags) check() error {
	if err := f.benchFlags.check(); err != nil {
		return err
	}
	g, err := router.Parse(f.granularity)
	if err != nil {
		return train.UsageError{Err: err}
	}
	least := router.Top
	if g == router.None {
		f.experts, least = 1, 1
	}
	for _, n := range []struct {
		flag       string
		value, min int
	}{{"experts", f.experts, least}, {"rank", f.rank, 1}, {"shared", f.shared, 0}, {"steps", f.steps, 1}, {"warmup", f.warmup, 1}} {
		if err := atLeast(n.flag, n.value, n.min); err != nil {
			return err
		}
	}
	if f.experts > 256 || f.rank > 4096 || f.shared > 4096 {
		return usagef("give smaller ones", "--experts %d --rank %d --shared %d: expected at most 256 experts of rank 4096", f.experts, f.rank, f.shared)
	}
	if g == router.None && f.shared > 0 {
		return usagef("raise --rank instead", "--shared %d: with --granularity none the one expert serves every token already", f.shared)
	}
	if f.shape == "" && f.model == "" {
		f.shape = "tiny"
	}
	return nil
}

func (f *benchTrainFlags) spec() model.AdapterSpec {
	return model.AdapterSpec{
		Granularity: router.Granularity(f.granularity), Experts: f.experts, Rank: f.rank, Shared: f.shared, Alpha: 2 * float64(f.rank),
		Targets: model.AllTargets(),
	}
}

func (f *benchTrainFlags) run(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	b, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer b.Close()
	m := trainMeasurement{f: f, b: b, ctx: cmd.Context()}
	m.progress = train.NewProgress(cmd.ErrOrStderr(), false, quiet(cmd))
	defer m.progress.Close()
	if err := m.run(); err != nil {
		return err
	}
	return answer(cmd, f.json, m.out, m.out.table())
}

// trainMeasurement is a measurement of training on its way.
type trainMeasurement struct {
	f        *benchTrainFlags
	b        kernels.Backend
	ctx      context.Context
	progress train.Progress
	batches  []datasets.Batch // taken in turn
	step     int              // steps done
	out      trainBench
}

func (m *trainMeasurement) run() error {
	placed, closeModel, err := m.place()
	if err != nil {
		return err
	}
	defer closeModel()
	if m.batches, err = randomBatches(placed.Arch.Vocab, m.f.batch, m.f.length); err != nil {
		return err
	}
	bank := model.NewBank(placed.Arch, m.f.spec())
	m.describe(placed.Arch, bank)
	stepper, err := m.stepper(placed, bank)
	if err != nil {
		return err
	}
	if err := m.measure(stepper); err != nil {
		return err
	}
	if err := stepper.Close(); err != nil {
		return err
	}
	if err := m.rates(); err != nil {
		return err
	}
	if m.f.profile {
		return m.profile(placed, bank)
	}
	return nil
}

// rates measures what the machine does at best.
func (m *trainMeasurement) rates() error {
	noise, err := model.NewNoise(m.b, m.b.Float(), 1)
	if err != nil {
		return err
	}
	defer noise.Close()
	m.out.Rates, err = measureRates(m.b, noise)
	m.out.Share = m.out.FlopsPerToken.Total * m.out.TokensPerSecond.Median / m.out.Rates.Flops
	return err
}

// place brings the model to the backend.
func (m *trainMeasurement) place() (*model.Placed, func(), error) {
	started := time.Now()
	defer func() { m.out.Seconds.Weights = time.Since(started).Seconds() }()
	if m.f.model == "" {
		arch, err := model.ShapeOf(m.f.shape)
		if err != nil {
			return nil, nil, err
		}
		m.out.Model = m.f.shape
		p, err := model.PlaceRandom(m.b, arch, 1, m.f.length)
		return p, func() {}, err
	}
	base, err := model.Open(m.f.model)
	if err != nil {
		return nil, nil, err
	}
	m.out.Model = base.Name
	p, err := model.Place(m.b, base.Arch, base.Weights, m.f.length)
	if err == nil {
		err = m.b.Sync()
	}
	return p, func() { base.Close() }, err //nolint:errcheck // a mapped file that was only read
}

// randomBatches is a few steps' batches of sequences of one length, every token the target of the one before it.
func randomBatches(vocab, sequences, length int) ([]datasets.Batch, error) {
	r := rand.New(rand.NewPCG(1, 2))
	var list []datasets.Batch
	for range 4 {
		seqs := make([]datasets.Sequence, sequences)
		for i := range seqs {
			seqs[i] = datasets.Sequence{Prompt: 1, IDs: make([]int32, length)}
			for t := range seqs[i].IDs {
				seqs[i].IDs[t] = r.Int32N(int32(vocab))
			}
		}
		tokens := sequences * length
		packed, err := datasets.Pack(seqs, tokens, []int{tokens})
		if err != nil {
			return nil, err
		}
		list = append(list, packed...)
	}
	return list, nil
}

// stepper prepares steps with the settings of a common run.
func (m *trainMeasurement) stepper(placed *model.Placed, bank *model.Bank) (*train.Stepper, error) {
	start := kernels.NewHost(placed.Backend.Param(), bank.Size())
	bank.Init(start, 1)
	return train.NewStepper(placed, bank, start, train.Objective{
		Balance: 1e-3, AdamW: kernels.AdamW{Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, Clip: 1}, Recompute: m.f.recompute,
	})
}

// take takes steps until the backend is done with the last. A step's result is read while the next one runs, as in a run.
func (m *trainMeasurement) take(s *train.Stepper, steps int) error {
	var last *train.Pending
	for range steps {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		batch := m.batches[m.step%len(m.batches)]
		m.step++
		now, err := s.Launch([]datasets.Batch{batch}, m.step, 1e-4)
		if err != nil {
			return err
		}
		if err := m.read(last); err != nil {
			return err
		}
		last = now
	}
	return cmp.Or(m.read(last), m.b.Sync())
}

// read waits for a step, if there is one.
func (m *trainMeasurement) read(p *train.Pending) error {
	if p == nil {
		return nil
	}
	r, err := p.Result()
	if err == nil && !r.Finite() {
		err = fmt.Errorf("a step's loss is %v, its gradient's norm %v", r.Loss, r.Norm)
	}
	m.out.Loss = r.Loss
	return err
}

// windows is how many times steps are measured, if there are as many.
const windows = 5

// measure takes the steps to warm up, and then those that count.
func (m *trainMeasurement) measure(s *train.Stepper) error {
	started := time.Now()
	if err := m.take(s, 1); err != nil {
		return err
	}
	m.out.Seconds.First, m.out.Seconds.SinceStart = time.Since(started).Seconds(), train.SinceStart().Seconds()
	m.progress.Log(fmt.Sprintf("first step done %.1f s after start", m.out.Seconds.SinceStart))
	if err := m.take(s, m.f.warmup-1); err != nil {
		return err
	}
	var rates, times []float64
	tokens := float64(m.f.batch * m.f.length)
	for w := range min(windows, m.f.steps) {
		n := m.f.steps/windows + min(1, max(0, m.f.steps%windows-w))
		started := time.Now()
		if err := m.take(s, n); err != nil {
			return err
		}
		seconds := time.Since(started).Seconds() / float64(n)
		rates, times = append(rates, tokens/seconds), append(times, 1e3*seconds)
	}
	m.out.TokensPerSecond, m.out.StepMS = spreadOf(rates), spreadOf(times)
	if a, ok := m.b.(kernels.Accountant); ok {
		m.out.PeakBytes = a.PeakBytes()
	}
	return nil
}

// profile takes one more step, operation by operation: see [budget.Meter].
func (m *trainMeasurement) profile(placed *model.Placed, bank *model.Bank) error {
	meter := budget.New(m.b, budget.Rates{Flops: m.out.Rates.Flops, Bytes: m.out.Rates.Bytes})
	s, err := m.stepper(placed.On(meter), bank)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // what it cannot free ends with the backend
	if err := m.take(s, 1); err != nil {
		return err
	}
	meter.Start()
	if err := m.take(s, 1); err != nil {
		return err
	}
	meter.Stop()
	if err := m.together(s, meter); err != nil {
		return err
	}
	m.out.Profile = &trainProfile{Operations: meter.Rows(), Kernels: meter.Kernels()}
	return meter.Sync()
}

// together measures the launches anew in a step that runs as a whole, if the backend can tell them apart: a GPU that only does
// one thing at a time now and then is clocked higher than in a step.
func (m *trainMeasurement) together(s *train.Stepper, meter *budget.Meter) error {
	p, ok := m.b.(kernels.Profiler)
	if !ok {
		return nil
	}
	var failed error
	took, err := p.Profile(func() { failed = m.take(s, 1) })
	if err := cmp.Or(failed, err); err != nil {
		return err
	}
	return meter.Together(took)
}
