package train

import (
	"fmt"
	"slices"
)

// fault is what is wrong with a config, by the keys that it is about, the likelier culprit first.
type fault struct {
	keys            []string
	problem, advice string
}

// Validate checks each value against what its key takes, and the keys against each other. The config must be
// resolved. An error names the key, says what was expected and what to do.
func (c *Config) Validate() error {
	if f := c.fault(); f != nil {
		return usage("", f.problem, f.advice)
	}
	return nil
}

func (c *Config) fault() *fault {
	for _, f := range c.fields() {
		if !f.value.fits() {
			return &fault{[]string{f.key}, fmt.Sprintf("%s is %s; expected %s", f.key, f.value.encode(), f.value.want()), "give it such a value"}
		}
	}
	for _, check := range []func(*Config) *fault{adapterFault, dataFault, taskFault, sizeFault, evaluationFault} {
		if f := check(c); f != nil {
			return f
		}
	}
	return nil
}

func adapterFault(c *Config) *fault {
	a := &c.Adapter
	none := a.Granularity == GranularityNone
	switch {
	case len(a.Targets) == 0:
		return &fault{[]string{"adapter.targets"}, "adapter.targets is []; nothing would be trained", "name a linear layer, for example adapter.targets: [q_proj, v_proj]"}
	case !none && a.Experts < 2:
		return &fault{
			[]string{"adapter.experts", "adapter.granularity"},
			fmt.Sprintf("adapter.experts is %d, but with granularity %s two experts serve each token", a.Experts, a.Granularity),
			"raise adapter.experts to 2 or more, or set adapter.granularity to none for plain LoRA",
		}
	case none && a.SharedRank > 0:
		return &fault{
			[]string{"adapter.shared_rank", "adapter.granularity"},
			fmt.Sprintf("adapter.shared_rank is %d, but with granularity none the one expert serves every token already", a.SharedRank),
			"raise adapter.rank instead, and set adapter.shared_rank to 0",
		}
	}
	return nil
}

func dataFault(c *Config) *fault {
	d := &c.Data
	switch {
	case len(d.Tasks) > 0 && d.File != "":
		return &fault{[]string{"data.file", "data.tasks"}, "data.tasks and data.file are both given; expected one of them", "leave one out"}
	case len(d.Tasks) == 0 && d.File == "":
		return &fault{
			[]string{"data.tasks", "model.path"},
			"no data to train on: neither data.tasks nor data.file is given",
			"name tasks, for example data.tasks: [arc_easy] with data.dir, or your own JSONL in data.file",
		}
	case d.EvalFile != "" && d.File == "":
		return &fault{[]string{"data.eval_file"}, "data.eval_file is given without data.file", "name the file to train on in data.file, or tasks to evaluate in eval.tasks"}
	}
	return nil
}

func taskFault(c *Config) *fault {
	for _, at := range []struct {
		key   string
		tasks []string
	}{{"data.tasks", c.Data.Tasks}, {"eval.tasks", c.Eval.Tasks}} {
		for _, task := range at.tasks {
			if name, file := splitTask(task); name != ToyTask && file == "" && c.Data.Dir == "" {
				return &fault{
					[]string{at.key, "data.tasks"},
					fmt.Sprintf("%s has %s, but not where its items are", at.key, task),
					fmt.Sprintf("name the folder of the benchmarks in data.dir, or a file: %s=FILE", task),
				}
			}
		}
	}
	return nil
}

func sizeFault(c *Config) *fault {
	for _, size := range []struct {
		key    string
		tokens int
	}{{"train.micro_tokens", c.Train.MicroTokens}, {"eval.batch_tokens", c.Eval.BatchTokens}} {
		if size.tokens < c.Data.MaxLength {
			return &fault{
				[]string{size.key, "data.max_length"},
				fmt.Sprintf("%s is %d, less than data.max_length, %d: a long sequence would not fit", size.key, size.tokens, c.Data.MaxLength),
				fmt.Sprintf("raise %s to %d or more, or lower data.max_length", size.key, c.Data.MaxLength),
			}
		}
	}
	return nil
}

func evaluationFault(c *Config) *fault {
	t := &c.Train
	nothing := len(c.Eval.Tasks) == 0 && c.Data.EvalFile == ""
	const name = "name tasks in eval.tasks, or a JSONL of prompts and answers in data.eval_file"
	switch {
	case t.EvalEvery > 0 && nothing:
		return &fault{[]string{"train.eval_every"}, fmt.Sprintf("train.eval_every is %d, but there is nothing to evaluate", t.EvalEvery), name}
	case t.Patience > 0 && t.EvalEvery == 0:
		return &fault{
			[]string{"train.patience"},
			fmt.Sprintf("train.patience is %d, but nothing is evaluated before the end", t.Patience),
			"set train.eval_every to the steps between evaluations",
		}
	case slices.Contains([]string{MetricAcc, MetricAccNorm}, t.Metric) && len(c.Eval.Tasks) == 0:
		return &fault{
			[]string{"train.metric"},
			fmt.Sprintf("train.metric is %s, but no task is evaluated: prompts and answers have only a loss", t.Metric),
			"set train.metric to loss, or name tasks in eval.tasks",
		}
	}
	return nil
}
