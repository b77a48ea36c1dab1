package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
	"loratrain/train"
)

// benchSwitchFlags are those of the command bench switch.
type benchSwitchFlags struct {
	computeFlags
	shape, json           string
	experts, rank, rounds int
}

func newBenchSwitchCommand() *cobra.Command {
	var f benchSwitchFlags
	cmd := &cobra.Command{
		Use:   "switch",
		Short: "Measure switching all weights of a model to other experts",
		Long: `Switch measures what decoding with --mode merged does before a token: one launch writes, for every linear layer of a model,
the weights plus the products of the two experts that were chosen, from weights that stay as they are to a copy that is used.
Weights and experts are random numbers in bf16, and so are the choices. It prints how long a switch takes, what it moves and
which share of the machine's rate of copying, measured in the same run, that is; how long the launch takes that finds its choice
in force; and it compares the weights after all switches with those of a single one, bit by bit.`,
		Example: `  lora-train bench switch --shape llama2-7b
  lora-train bench switch --shape smollm2-135m --experts 64 --rank 1 --json switch.json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.shape, "shape", "tiny", "random weights of this shape: "+strings.Join(model.ShapeNames(), ", "))
	flags.IntVar(&f.experts, "experts", 8, "experts of each linear layer")
	flags.IntVar(&f.rank, "rank", 8, "rank of an expert")
	flags.IntVar(&f.rounds, "rounds", 9, "rounds of switches to measure")
	flags.StringVar(&f.json, "json", "", "write the figures to this file; - for standard output, in place of the table")
	f.register(cmd)
	return cmd
}

func (f *benchSwitchFlags) check() error {
	if _, err := model.ShapeOf(f.shape); err != nil {
		return train.UsageError{Err: err}
	}
	for _, n := range []struct {
		flag       string
		value, min int
	}{{"experts", f.experts, router.Top}, {"rank", f.rank, 1}, {"rounds", f.rounds, 1}} {
		if err := atLeast(n.flag, n.value, n.min); err != nil {
			return err
		}
	}
	if f.experts > 256 || f.rank > 4096 || f.rounds > 1e6 {
		return usagef("give smaller ones", "--experts %d --rank %d --rounds %d: expected at most 256 experts of rank 4096, a million rounds",
			f.experts, f.rank, f.rounds)
	}
	return checkJSON(f.json)
}

func (f *benchSwitchFlags) run(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	b, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer b.Close()
	m := switchMeasurement{f: f, b: b, ctx: cmd.Context()}
	if err := m.run(); err != nil {
		return err
	}
	return answer(cmd, f.json, m.out, m.out.table())
}

// switchBench is what --json of bench switch writes.
type switchBench struct {
	Backend string `json:"backend"`
	Model   string `json:"model"`
	Experts int    `json:"experts"`
	Rank    int    `json:"rank"`
	Linears int    `json:"linear_layers"`
	Weights int    `json:"weights"` // of them, in elements

	Rounds    int     `json:"rounds"`
	Switches  int     `json:"switches"` // of a round
	MS        spread  `json:"switch_ms"`
	Bytes     float64 `json:"switch_bytes"` // weights read and written, two experts read
	Rate      float64 `json:"bytes_per_second"`
	Copy      float64 `json:"copy_bytes_per_second"`
	Share     float64 `json:"share_of_copy_rate"`
	InForceUS spread  `json:"in_force_us"`

	// After so many switches the weights had the bits of a fresh merge. Other bits are an error.
	Compared int `json:"identical_after"`
}

func (o *switchBench) table() string {
	var text strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&text, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	line("model", "%s: %s, %s", o.Model, plural(o.Linears, "linear layer"), plural(o.Weights, "weight"))
	line("backend", "%s", o.Backend)
	line("experts", "%d of rank %d, %d at a time", o.Experts, o.Rank, router.Top)
	line("copy", "%s", copyRate(o.Copy))
	line("ms/switch", "%.3f (%.3f to %.3f in %s of %d)", o.MS.Median, o.MS.Min, o.MS.Max, plural(o.Rounds, "round"), o.Switches)
	line("moved", "%.4g GB a switch: %s GB/s", o.Bytes/1e9, count(int(math.Round(o.Rate/1e9))))
	line("share", "%.1f %% of the copy rate", 100*o.Share)
	line("in force", "%.2f µs (%.2f to %.2f) if nothing is to be switched", o.InForceUS.Median, o.InForceUS.Min, o.InForceUS.Max)
	line("bits", "after %s the weights are those of a fresh merge", plural(o.Compared, "merge"))
	return text.String()
}

// switchMeasurement is a measurement of switches on its way.
type switchMeasurement struct {
	f   *benchSwitchFlags
	b   kernels.Backend
	ctx context.Context
	out switchBench

	names   []string // of the layers
	layers  []kernels.Merge
	merging kernels.Merging
	choices choices
	force   kernels.Tensor
	done    int // switches
}

// switchScale is alpha / rank.
const switchScale = 2

func (m *switchMeasurement) run() error {
	arch, err := model.ShapeOf(m.f.shape)
	if err != nil {
		return err
	}
	m.out = switchBench{Backend: m.b.String(), Model: m.f.shape, Experts: m.f.experts, Rank: m.f.rank, Rounds: m.f.rounds}
	if m.out.Copy, err = measureCopy(m.b); err != nil {
		return err
	}
	if err := m.enough(arch); err != nil {
		return err
	}
	if err := m.place(arch); err != nil {
		return fmt.Errorf("random weights: %w", err)
	}
	if m.merging, err = m.b.PrepareMerge(m.layers); err != nil {
		return err
	}
	defer m.merging.Close()
	if err := m.measure(); err != nil {
		return err
	}
	if err := m.measureInForce(); err != nil {
		return err
	}
	return m.compare()
}

// enough refuses a model that the machine has no memory for: on the CPU memory is taken when it is written to, and too much ends the program.
func (m *switchMeasurement) enough(arch model.Arch) error {
	all := model.AllTargets()
	bytes := model.CopyBytes(kernels.BF16, arch, all) + model.CopyBytes(m.b.Float(), arch, all)
	for _, t := range all {
		in, out := arch.Shape(t)
		bytes += arch.Layers * m.out.Experts * m.out.Rank * (in + out) * kernels.BF16.Size()
	}
	what := fmt.Sprintf("%s with a copy of its weights and %d experts of rank %d", m.out.Model, m.out.Experts, m.out.Rank)
	if err := model.Enough(m.b, what, bytes); err != nil {
		return fmt.Errorf("%w\ngive a smaller --shape, fewer --experts or a smaller --rank, or free memory", err)
	}
	return nil
}

// place makes the layers of a model and their experts, and the choices.
func (m *switchMeasurement) place(arch model.Arch) error {
	noise, err := model.NewNoise(m.b, kernels.BF16, 1)
	if err != nil {
		return err
	}
	defer noise.Close()
	o := &m.out
	for l := range arch.Layers {
		for _, t := range model.AllTargets() {
			in, out := arch.Shape(t)
			var ts [3]kernels.Tensor
			for i, shape := range [][]int{{out, in}, {o.Experts, o.Rank, in}, {o.Experts, o.Rank, out}} {
				if ts[i], err = noise.Tensor(shape...); err != nil {
					return err
				}
			}
			dst, err := m.b.Alloc(m.b.Float(), out, in)
			if err != nil {
				return err
			}
			m.names = append(m.names, model.Module(l, t))
			m.layers = append(m.layers, kernels.Merge{Dst: dst, Src: ts[0], A: ts[1], B: ts[2]})
			o.Weights += dst.Len()
			o.Bytes += float64(dst.Bytes()+ts[0].Bytes()) + router.Top*float64(ts[1].Bytes()+ts[2].Bytes())/float64(o.Experts)
		}
	}
	o.Linears = len(m.layers)
	if m.force, err = m.b.Alloc(kernels.I32, 2*router.Top); err != nil {
		return err
	}
	m.b.Write(m.force, kernels.FromSlice([]int32{-1, -1, -1, -1}, 2*router.Top))
	m.choices, err = placeChoices(m.b, o.Experts)
	return cmp.Or(err, m.b.Sync())
}

// choices are random choices of two experts on a backend, none of them like the one before it.
type choices struct{ ids, weights kernels.Tensor }

const choiceCount = 61

func placeChoices(b kernels.Backend, experts int) (c choices, err error) {
	r := rand.New(rand.NewPCG(1, 3))
	var ids []int32
	var weights []float32
	for range choiceCount {
		first := r.IntN(experts)
		second := (first + 1 + r.IntN(experts-1)) % experts
		w := 0.5 + r.Float32()/2
		ids, weights = append(ids, int32(first), int32(second)), append(weights, w, 1-w)
	}
	if c.ids, err = b.Place(kernels.FromSlice(ids, len(ids))); err == nil {
		c.weights, err = b.Place(kernels.FromSlice(weights, len(weights)))
	}
	return c, err
}

// at is choice i of an endless row of them.
func (c choices) at(i int) (ids, weights kernels.Tensor) {
	from := i % choiceCount * router.Top
	return c.ids.View(from, router.Top), c.weights.View(from, router.Top)
}

// switches queues n switches, each to another choice, and waits for them.
func (m *switchMeasurement) switches(n int) (seconds float64, err error) {
	started := time.Now()
	for range n {
		ids, weights := m.choices.at(m.done)
		m.b.Merge(m.merging, ids, weights, m.force, switchScale)
		m.done++
	}
	err = m.b.Sync()
	return time.Since(started).Seconds(), cmp.Or(err, m.ctx.Err())
}

func (m *switchMeasurement) measure() error {
	var once float64
	for range 2 { // the first may load the kernel
		var err error
		if once, err = m.switches(1); err != nil {
			return err
		}
	}
	m.out.Switches = callsIn(once)
	var times []float64
	for range m.f.rounds {
		seconds, err := m.switches(m.out.Switches)
		if err != nil {
			return err
		}
		times = append(times, 1e3*seconds/float64(m.out.Switches))
	}
	o := &m.out
	o.MS = spreadOf(times)
	o.Rate = o.Bytes / (o.MS.Median / 1e3)
	o.Share = o.Rate / o.Copy
	return nil
}

// measureInForce queues the last choice again and again, as a decoder does where it can: in a recording.
func (m *switchMeasurement) measureInForce() error {
	const calls = 100
	ids, weights := m.choices.at(m.done - 1)
	queue := func() {
		for range calls {
			m.b.Merge(m.merging, ids, weights, m.force, switchScale)
		}
	}
	if c, ok := m.b.(kernels.Capturer); ok {
		r, err := c.Capture(queue)
		if err != nil {
			return err
		}
		defer r.Close()
		queue = r.Run
	}
	var times []float64
	for range m.f.rounds + 1 {
		started := time.Now()
		queue()
		if err := cmp.Or(m.b.Sync(), m.ctx.Err()); err != nil {
			return err
		}
		times = append(times, 1e6*time.Since(started).Seconds()/calls)
	}
	m.out.InForceUS = spreadOf(times[1:]) // the first run prepares the recording
	return nil
}

// compare merges every layer afresh, as the last choice wants it, and wants its bits.
func (m *switchMeasurement) compare() error {
	ids, weights := m.choices.at(m.done - 1)
	for i, l := range m.layers {
		got, err := m.bits(l.Dst)
		if err != nil {
			return err
		}
		fresh, err := m.b.Alloc(l.Dst.Type, l.Dst.Shape...)
		if err != nil {
			return fmt.Errorf("a fresh merge: %w", err)
		}
		one := l
		one.Dst = fresh
		p, err := m.b.PrepareMerge([]kernels.Merge{one})
		if err != nil {
			return err
		}
		m.b.Merge(p, ids, weights, kernels.Tensor{}, switchScale)
		want, err := m.bits(fresh)
		p.Close()
		m.b.Free(fresh)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s has other bits after %s than after a fresh merge of the last one\n"+
				"this is a mistake in the backend: do not decode with --mode merged", m.names[i], plural(m.done, "merge"))
		}
	}
	m.out.Compared = m.done
	return nil
}

// bits is the memory of a tensor.
func (m *switchMeasurement) bits(t kernels.Tensor) ([]byte, error) {
	host := kernels.NewHost(t.Type, t.Shape...)
	m.b.Read(host, t)
	return host.Mem.(kernels.Host), cmp.Or(m.b.Sync(), m.ctx.Err())
}
