package main

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/checkpoints"
	"loratrain/model"
	"loratrain/router"
	"loratrain/train"
)

// benchDecodeFlags are those of the command bench decode.
type benchDecodeFlags struct {
	computeFlags
	shape, model, adapter, mode   string
	batch, context, experts, rank int
	steps, rounds                 int
	all                           bool
	json, plot                    string
}

func newBenchDecodeCommand() *cobra.Command {
	var f benchDecodeFlags
	cmd := &cobra.Command{
		Use:   "decode",
		Short: "Measure decoding steps in every mode, beside the backbone alone",
		Long: `Decode measures the steps that generate a token of each of B sequences: the backbone without experts, and the same with
two experts on every linear layer in each mode. Weights and experts are random numbers in bf16 unless --model or --adapter
names others; random experts are chosen once per token for fused and merged, and by a router of every linear layer for
layerwise, which is what the other two do without.

Each round begins with a prompt for every sequence: N random tokens that are run as those of any prompt are, so that keys and
values are in the cache. Then it counts the time of --steps steps, from which the largest logit gives a token; but what is run
next is a random one, so that each token has other experts. With merged every step switches all weights.

It prints the milliseconds of a step, the median of the rounds with the least and the most; what a step moves at least:
weights, experts in use, each once, and keys and values; which share of the machine's rate of copying, measured in the same
run, that comes to; the time as a multiple of the backbone's; and how the steps ran: one kernel for the whole model, a graph of
many that was recorded once, or one operation after the other.`,
		Example: `  lora-train bench decode --shape smollm2-135m
  lora-train bench decode --shape llama2-7b --batch 16 --context 2048 --mode fused
  lora-train bench decode --shape llama2-7b --all --json decode.json --plot decode.svg`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.shape, "shape", "", "random weights of this shape: "+strings.Join(model.ShapeNames(), ", "))
	flags.StringVar(&f.model, "model", "", "in place of a shape, a Hugging Face folder or .gguf")
	flags.StringVar(&f.adapter, "adapter", "", "in place of random experts, the folder of a run or of an export")
	flags.IntVar(&f.batch, "batch", 1, "sequences a step")
	flags.IntVar(&f.context, "context", 128, "tokens of each that are in the cache before the first step")
	flags.IntVar(&f.experts, "experts", 8, "experts of each linear layer; 0: the backbone alone")
	flags.IntVar(&f.rank, "rank", 8, "rank of an expert")
	flags.StringVar(&f.mode, "mode", "", "how experts are applied: fused, merged or layerwise; none: each that --batch allows")
	flags.BoolVar(&f.all, "all", false, "a list of batches, contexts, experts and ranks in place of one of each")
	flags.IntVar(&f.steps, "steps", 32, "steps of a round")
	flags.IntVar(&f.rounds, "rounds", 5, "rounds to measure")
	flags.StringVar(&f.json, "json", "", "write the figures to this file; - for standard output, in place of the table")
	flags.StringVar(&f.plot, "plot", "", "draw the figures in this file, an SVG")
	f.register(cmd)
	return cmd
}

func (f *benchDecodeFlags) check(given func(flag string) bool) error {
	if err := f.checkTogether(given); err != nil {
		return err
	}
	if f.shape != "" {
		if _, err := model.ShapeOf(f.shape); err != nil {
			return train.UsageError{Err: err}
		}
	}
	if f.mode != "" && f.adapter == "" {
		if _, err := model.ParseMode(f.mode, router.Token); err != nil {
			return train.UsageError{Err: err}
		}
		if f.mode == string(model.Merged) && f.batch > 1 {
			return usagef("use --mode fused, or --batch 1", "--batch %d: mode merged has one token's experts in the weights", f.batch)
		}
	}
	least := router.Top
	if f.experts == 0 {
		least = 0
	}
	for _, n := range []struct {
		flag             string
		value, min, most int
	}{
		{"batch", f.batch, 1, model.MaxSequences},
		{"context", f.context, 1, 1 << 20},
		{"experts", f.experts, least, 256},
		{"rank", f.rank, 1, 4096},
		{"steps", f.steps, 1, 1 << 20},
		{"rounds", f.rounds, 1, 1e6},
	} {
		if err := atLeast(n.flag, n.value, n.min); err != nil {
			return err
		}
		if n.value > n.most {
			return usagef("give a smaller number", "--%s %d: expected at most %s", n.flag, n.value, count(n.most))
		}
	}
	return cmp.Or(checkJSON(f.json), f.checkPlot())
}

func (f *benchDecodeFlags) checkPlot() error {
	if f.plot == "-" {
		return usagef("name a file", "--plot -: a drawing is written to a file")
	}
	if ext := strings.ToLower(filepath.Ext(f.plot)); slices.Contains([]string{".png", ".jpg", ".jpeg", ".pdf"}, ext) {
		return usagef("name it .svg", "--plot %s: a drawing is an SVG", f.plot)
	}
	if f.plot != "" && f.plot == f.json {
		return usagef("name another file", "--plot %s: it is --json's, too", f.plot)
	}
	return checkFile("plot", f.plot)
}

// checkTogether refuses flags that say the same thing twice.
func (f *benchDecodeFlags) checkTogether(given func(flag string) bool) error {
	for _, c := range []struct {
		flag  string
		whole bool // it is in force
		parts []string
		why   string
	}{
		{"shape", f.shape != "", []string{"model", "adapter"}, "a shape has random weights and experts"},
		{"adapter", f.adapter != "", []string{"experts", "rank", "all"}, "an adapter has its own experts"},
		{"all", f.all, []string{"batch", "context", "experts", "rank", "mode"}, "the list has its own"},
		{"experts", f.experts == 0, []string{"mode", "rank"}, "the backbone alone applies no experts"},
	} {
		for _, part := range c.parts {
			if c.whole && given(part) {
				return usagef("leave one of them out", "--%s and --%s: %s", c.flag, part, c.why)
			}
		}
	}
	return nil
}

// decodeCase is what one row of the figures is about.
type decodeCase struct {
	Mode        string             `json:"mode"` // backbone, or a model.Mode
	Granularity router.Granularity `json:"granularity,omitempty"`
	Experts     int                `json:"experts,omitempty"`
	Rank        int                `json:"rank,omitempty"`
	Batch       int                `json:"batch"`
	Context     int                `json:"context"`
}

// backbone is the mode without experts.
const backbone = "backbone"

func (c decodeCase) String() string {
	text := c.Mode
	if c.Experts > 0 {
		text += fmt.Sprintf(", %s of rank %d", plural(c.Experts, "expert"), c.Rank)
	}
	return fmt.Sprintf("%s, batch %d, context %s", text, c.Batch, count(c.Context))
}

// spec is the random adapter of a case.
func (c decodeCase) spec() model.AdapterSpec {
	return model.AdapterSpec{Granularity: c.Granularity, Experts: c.Experts, Rank: c.Rank, Alpha: 2 * float64(c.Rank), Targets: model.AllTargets()}
}

// with is a case in a mode with random experts. Those of layerwise have routers of their own.
func (c decodeCase) with(mode model.Mode, experts, rank int) decodeCase {
	c.Mode, c.Granularity, c.Experts, c.Rank = string(mode), router.Token, experts, rank
	if mode == model.Layerwise {
		c.Granularity = router.Layer
	}
	return c
}

// possible says whether a mode can decode so many sequences at once.
func (c decodeCase) possible() bool {
	return c.Batch == 1 || c.Mode != string(model.Merged) || c.Granularity != router.Token
}

// cases is what is measured; adapter, if there is one, says what its experts are.
func (f *benchDecodeFlags) cases(adapter *checkpoints.Config) ([]decodeCase, error) {
	if f.all {
		return allDecodeCases(), nil
	}
	one := decodeCase{Mode: backbone, Batch: f.batch, Context: f.context}
	list := []decodeCase{one}
	if adapter == nil {
		for _, mode := range model.Modes(router.Token) {
			if f.experts > 0 && (f.mode == "" || f.mode == string(mode)) {
				list = append(list, one.with(mode, f.experts, f.rank))
			}
		}
	} else {
		g := router.Granularity(adapter.Granularity)
		modes := model.Modes(g)
		if f.mode != "" {
			mode, err := chooseMode(f.mode, g)
			if err != nil {
				return nil, err
			}
			modes = []model.Mode{mode}
		}
		for _, mode := range modes {
			c := one.with(mode, adapter.Experts, adapter.Rank)
			c.Granularity = g
			list = append(list, c)
		}
	}
	if f.mode == "" {
		list = slices.DeleteFunc(list, func(c decodeCase) bool { return !c.possible() })
	}
	return list, nil
}

// allDecodeCases is the list of --all. Cases of the same experts follow each other, as far as a mode's do.
func allDecodeCases() []decodeCase {
	const experts, rank = 8, 8
	var usual, list []decodeCase
	for _, batch := range []int{1, 4, 16, 64} {
		usual = append(usual, decodeCase{Mode: backbone, Batch: batch, Context: 128})
	}
	for _, batch := range []int{1, 16} {
		usual = append(usual, decodeCase{Mode: backbone, Batch: batch, Context: 2048})
	}
	list = append(list, usual...)
	for _, mode := range model.Modes(router.Token) {
		for _, c := range usual {
			list = append(list, c.with(mode, experts, rank))
		}
		for _, r := range []int{8, 64} {
			for _, e := range []int{4, 8, 16, 64} {
				if e != experts || r != rank {
					list = append(list, usual[0].with(mode, e, r))
				}
			}
		}
	}
	return slices.DeleteFunc(list, func(c decodeCase) bool { return !c.possible() })
}

func (f *benchDecodeFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd.Flags().Changed); err != nil {
		return err
	}
	b, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer b.Close()
	m := decodeMeasurement{f: f, b: b, ctx: cmd.Context()}
	m.progress = train.NewProgress(cmd.ErrOrStderr(), false, quiet(cmd))
	defer m.progress.Close()
	if err := m.run(); err != nil {
		return err
	}
	var drawn error
	if f.plot != "" {
		drawn = checkpoints.WriteFile(f.plot, m.out.plot())
	}
	return errors.Join(answer(cmd, f.json, m.out, m.out.table()), drawn, m.out.failure())
}
