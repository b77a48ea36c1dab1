package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/checkpoints"
	"loratrain/datasets"
	"loratrain/internal/graph"
	"loratrain/model"
	"loratrain/train"
)

// evalFlags are those of the command eval.
type evalFlags struct {
	computeFlags
	model, adapter, data, template, json string
	tasks                                []string
	limit, maxLength, batchTokens        int
	noBase                               bool
}

func newEvalCommand() *cobra.Command {
	var f evalFlags
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "Measure a model, and an adapter beside it, on benchmark tasks",
		Long: `Eval scores multiple-choice tasks as lm-evaluation-harness does: an item is right when the gold option has the highest
log-likelihood (acc), or the highest per character (acc_norm). For a file of prompts and answers it gives the loss. The
prompt is computed once for all its options.`,
		Example: `  lora-train eval
  lora-train eval --model SmolLM2-135M-Instruct.Q4_1.gguf --tasks arc_easy,openbookqa --data benchmarks
  lora-train eval --adapter runs/my-run --tasks mine=questions.jsonl --json scores.json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.model, "model", "", "Hugging Face folder or .gguf; by default the adapter's base, else the embedded model")
	flags.StringVar(&f.adapter, "adapter", "", "the folder of a run or of an export, measured beside its base")
	flags.StringSliceVar(&f.tasks, "tasks", nil, "arc_easy, arc_challenge, openbookqa, boolq, toy, name=FILE or FILE, separated by commas")
	flags.StringVar(&f.data, "data", "", "the folder of the benchmarks: DIR/ARC-Easy/test.json and so on")
	flags.StringVar(&f.template, "template", string(datasets.Cloze), "how a question is put: cloze or choice")
	flags.IntVar(&f.limit, "limit", 0, "only the first items of each task; 0: all")
	flags.IntVar(&f.maxLength, "max-length", 2048, "tokens of an item at most; the beginning of a longer prompt is cut")
	flags.IntVar(&f.batchTokens, "batch-tokens", 1024, "tokens computed at once")
	flags.BoolVar(&f.noBase, "no-base", false, "do not measure the base beside the adapter")
	flags.StringVar(&f.json, "json", "", "write the scores, item by item, to this file; - for standard output, in place of the table")
	f.register(cmd)
	return cmd
}

func (f *evalFlags) check() error {
	for _, n := range []struct {
		flag       string
		value, min int
	}{{"limit", f.limit, 0}, {"max-length", f.maxLength, 2}, {"batch-tokens", f.batchTokens, 1}} {
		if n.value < n.min {
			return usagef("give a larger number", "--%s %d: expected %d or more", n.flag, n.value, n.min)
		}
	}
	if f.noBase && f.adapter == "" {
		return usagef("name an adapter with --adapter", "--no-base leaves nothing to measure")
	}
	if _, err := datasets.ParseTemplate(f.template); err != nil {
		return train.UsageError{Err: err}
	}
	return checkJSON(f.json)
}

// evalScores is what --json writes.
type evalScores struct {
	Model    string        `json:"model"`
	Digest   string        `json:"digest"`
	Export   string        `json:"adapter,omitempty"`
	Backend  string        `json:"backend"`
	Template string        `json:"template"`
	Base     []train.Score `json:"base,omitempty"`
	Adapter  []train.Score `json:"adapter_scores,omitempty"`
}

func (f *evalFlags) run(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	a, err := openAdapted(f.model, f.adapter)
	if err != nil {
		return err
	}
	defer a.Close()
	tasks, err := f.load(a.base)
	if err != nil {
		return err
	}
	backend, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer backend.Close()
	out := evalScores{Model: a.base.Name, Digest: a.base.Digest(), Backend: backend.String(), Template: f.template}
	placed, err := model.Place(backend, a.base.Arch, a.base.Weights, min(f.maxLength, a.base.Arch.Context))
	if err != nil {
		return err
	}
	m := measurer{cmd: cmd, f: f, base: a.base, tasks: tasks}
	m.progress = train.NewProgress(cmd.ErrOrStderr(), train.IsTerminal(cmd.ErrOrStderr()), quiet(cmd))
	defer m.progress.Close()
	if !f.noBase {
		if out.Base, err = m.measure(placed, nil, "base"); err != nil {
			return err
		}
	}
	if a.export != nil {
		out.Export = a.export.Dir
		if out.Adapter, err = m.adapter(placed, a.export); err != nil {
			return err
		}
	}
	return f.print(cmd, out)
}

// load reads the tasks: those that are named, or the embedded one for the embedded model.
func (f *evalFlags) load(base *model.Base) ([]datasets.Task, error) {
	specs := f.tasks
	if len(specs) == 0 {
		if base.Path != "" {
			return nil, usagef("name some with --tasks arc_easy --data DIR, or a file", "no task to measure %s by", base.Name)
		}
		specs = []string{train.ToyTask}
	}
	tasks, err := catalog(f.data).LoadAll(specs, datasets.Test)
	for i := range tasks {
		tasks[i] = tasks[i].First(f.limit)
	}
	return tasks, err
}

// measurer scores the tasks with one model after another.
type measurer struct {
	cmd      *cobra.Command
	f        *evalFlags
	base     *model.Base
	tasks    []datasets.Task
	progress train.Progress
}

func (m measurer) measure(placed *model.Placed, of train.AdapterOf, who string) ([]train.Score, error) {
	encoder, err := train.NewEncoder(m.base, m.f.template, m.f.maxLength, false)
	if err != nil {
		return nil, err
	}
	e := train.NewEvaluator(placed, encoder, m.f.batchTokens)
	defer e.Close()
	var scores []train.Score
	for _, t := range m.tasks {
		s, err := e.Evaluate(m.cmd.Context(), t, of, func(done, all int) { m.progress.Eval(t.Name+", "+who, done, all) })
		if err != nil {
			return nil, err
		}
		if s.Truncated > 0 {
			m.progress.Log(fmt.Sprintf("%s: the prompts of %s lost their beginning, they are longer than %d tokens", t.Name,
				plural(s.Truncated, "item"), encoder.MaxLength))
		}
		scores = append(scores, s)
	}
	return scores, nil
}

// adapter scores the tasks with an export, its routing table looked up.
func (m measurer) adapter(placed *model.Placed, export *checkpoints.Serving) ([]train.Score, error) {
	served, err := model.Serve(placed, export)
	if err != nil {
		return nil, err
	}
	defer served.Close()
	pass := func(x *graph.Immediate, ids []int32) model.PassAdapter { return served.Pass(x, ids, true) }
	return m.measure(served.Base, pass, "adapter")
}

// print writes the scores.
func (f *evalFlags) print(cmd *cobra.Command, out evalScores) error {
	var table strings.Builder
	if err := train.WriteTable(&table, out.Base, out.Adapter); err != nil {
		return err
	}
	return answer(cmd, f.json, out, table.String())
}
