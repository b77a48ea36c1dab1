package train

import (
	"fmt"
	"strings"

	"loratrain/model"
)

// field binds a key to its place in a Config. The table of fields is the one place that knows the keys: parsing,
// overriding, checking, writing and comparing configs go through it.
type field struct {
	key     string // "section.name", or "name" at the top level
	doc     string
	value   value
	resumes bool // a resumed run may have another value: it changes what is learned by rounding at most, or digests guard it
}

// fields is the table over the places in c, section by section.
func (c *Config) fields() []field {
	m, d, a, t, e := &c.Model, &c.Data, &c.Adapter, &c.Train, &c.Eval
	return []field{
		{"model.path", `folder of a Hugging Face model, or a .gguf file; "" is the embedded model`, text(&m.Path), true},

		{"data.tasks", "what to learn: tasks by name, or name=file; [] with data.file", list(&d.Tasks, "tasks such as toy or arc_easy=train.json", taskOK), false},
		{"data.dir", "folder with the benchmarks' published files, for tasks without a file", text(&d.Dir), true},
		{"data.template", "how an item becomes text: cloze (the option follows the question) or choice (options are lettered)", choice(&d.Template, templateCloze, templateChoice), false},
		{"data.file", `instead of tasks, your own JSONL with "prompt" and "answer" a line`, text(&d.File), true},
		{"data.eval_file", "the same for evaluation: its loss is measured", text(&d.EvalFile), true},
		{"data.eos", "learn the end of the sequence after the answer; auto: for your own file only", choice(&d.EOS, auto, "true", "false"), false},
		{"data.max_length", "tokens of prompt and answer together", whole(&d.MaxLength, 8, 1<<20), false},
		{"data.limit", "train on the first so many items only; 0: all", whole(&d.Limit, 0, 1<<30), false},

		{"adapter.granularity", "where it is decided which two experts serve a token: once a token, in each block, at each layer; none: plain LoRA", choice(&a.Granularity, "token", "block", "layer", GranularityNone), false},
		{"adapter.experts", "experts of each linear layer; 1 with granularity none", whole(&a.Experts, 1, 256), false},
		{"adapter.rank", "rank of an expert", whole(&a.Rank, 1, 4096), false},
		{"adapter.shared_rank", "rank of one more expert that serves every token; 0: none", whole(&a.SharedRank, 0, 4096), false},
		{"adapter.alpha", "experts' products are scaled by alpha/rank", number(&a.Alpha, above(0), upTo(1e6)), false},
		{"adapter.targets", "the linear layers that have experts", list(&a.Targets, "names among "+strings.Join(targetNames(), ", "), targetOK), false},
		{"adapter.balance", "weight of the loss that keeps experts equally busy", number(&a.Balance, from(0), upTo(1000)), false},
		{"adapter.dropout", "probability that an element of the experts' input is dropped", number(&a.Dropout, from(0), below(1)), false},

		{"train.epochs", "passes over the data", whole(&t.Epochs, 1, 1<<20), false},
		{"train.max_steps", "take so many steps, whatever the epochs have; 0: as many as they have", whole(&t.MaxSteps, 0, 1<<30), false},
		{"train.batch", "sequences a step", whole(&t.Batch, 1, 1<<20), false},
		{"train.micro_tokens", "tokens computed at once; a step that has more is accumulated", whole(&t.MicroTokens, 8, 1<<24), false},
		{"train.recompute", "compute each block again in the backward pass: less memory, a third more time, the same result to the bit", truth(&t.Recompute), true},
		{"train.lr", "learning rate at its peak", number(&t.LR, above(0), upTo(10)), false},
		{"train.warmup_ratio", "share of the steps in which the learning rate rises to its peak", number(&t.WarmupRatio, from(0), below(1)), false},
		{"train.schedule", "how the learning rate falls after that", choice(&t.Schedule, ScheduleLinear, ScheduleCosine, ScheduleConstant), false},
		{"train.weight_decay", "AdamW's decoupled decay", number(&t.WeightDecay, from(0), upTo(10)), false},
		{"train.clip", "largest norm of a step's gradients; 0: any", number(&t.Clip, from(0), upTo(1e6)), false},
		{"train.beta1", "AdamW's decay of the mean gradient", number(&t.Beta1, from(0), below(1)), false},
		{"train.beta2", "AdamW's decay of the mean square", number(&t.Beta2, from(0), below(1)), false},
		{"train.eps", "AdamW's epsilon", number(&t.Eps, above(0), below(1)), false},
		{"train.seed", "decides the experts' start, the order of the data and dropout", whole(&t.Seed, 0, 1<<31-1), false},
		{"train.eval_every", "steps between evaluations; 0: one, at the end", whole(&t.EvalEvery, 0, 1<<30), true},
		{"train.save_every", "steps between checkpoints; 0: one, at the end", whole(&t.SaveEvery, 0, 1<<30), true},
		{"train.patience", "stop after so many evaluations without a better one; 0: never", whole(&t.Patience, 0, 1<<20), true},
		{"train.metric", "which checkpoint is the best: acc, acc_norm, loss; auto: what suits the template", choice(&t.Metric, auto, MetricAcc, MetricAccNorm, MetricLoss), false},

		{"eval.tasks", "tasks to evaluate, by name or name=file; []: the test splits of data.tasks", list(&e.Tasks, "tasks such as toy or arc_easy=test.json", taskOK), false},
		{"eval.limit", "evaluate the first so many items only; 0: all", whole(&e.Limit, 0, 1<<30), false},
		{"eval.batch_tokens", "tokens computed at once", whole(&e.BatchTokens, 8, 1<<24), true},

		{"backend", "what computes: cpu or cuda; auto: cuda where the program and the machine have it", choice(&c.Backend, auto, "cpu", "cuda"), false},
		{"threads", "processor threads; 0: as many as there are; another number may round differently", whole(&c.Threads, 0, 4096), true},
		{"device", "which GPU, as nvidia-smi counts", whole(&c.Device, 0, 1<<10), true},
		{"float32", "compute in float32 on a GPU too, for checks; slow", truth(&c.Float32), false},
	}
}

// synonyms are names that other programs have for our keys.
var synonyms = map[string]string{
	"learning_rate": "train.lr", "batch_size": "train.batch", "num_train_epochs": "train.epochs",
	"gradient_checkpointing": "train.recompute", "activation_checkpointing": "train.recompute", "grad_clip": "train.clip", "max_grad_norm": "train.clip", "r": "adapter.rank", "lora_alpha": "adapter.alpha",
	"lora_dropout": "adapter.dropout", "target_modules": "adapter.targets", "num_experts": "adapter.experts",
	"warmup": "train.warmup_ratio", "lr_scheduler_type": "train.schedule", "base_model": "model.path",
}

func targetNames() []string {
	var names []string
	for _, t := range model.AllTargets() {
		names = append(names, t.String())
	}
	return names
}

func targetOK(name string) bool {
	_, err := model.ParseTarget(name)
	return err == nil
}

// splitTask is the name and the file, or "", of a task.
func splitTask(task string) (name, file string) {
	name, file, _ = strings.Cut(task, "=")
	return name, file
}

func taskOK(task string) bool {
	name, file := splitTask(task)
	return name != "" && (file != "" || !strings.Contains(task, "="))
}

func splitKey(key string) (section, name string) {
	section, name, nested := strings.Cut(key, ".")
	if !nested {
		return "", key
	}
	return section, name
}

// lookup is the field of a key; ok is false if there is none.
func lookup(fields []field, key string) (f field, ok bool) {
	for _, f := range fields {
		if f.key == key {
			return f, true
		}
	}
	return field{}, false
}

// suggestion is advice for a key, or the name of a section, that does not exist.
func suggestion(fields []field, unknown string) string {
	if key, ok := synonyms[unknown[strings.LastIndexByte(unknown, '.')+1:]]; ok {
		return fmt.Sprintf("did you mean %s?", key)
	}
	best, fewest := "", len(unknown)/3+2
	try := func(candidate string, edits int) {
		if edits < fewest {
			best, fewest = candidate, edits
		}
	}
	_, last := splitKey(unknown)
	for _, f := range fields {
		section, name := splitKey(f.key)
		try(f.key, distance(unknown, f.key))
		if edits := distance(last, name); edits <= len(last)/3 {
			try(f.key, edits+1) // the right name in the wrong section
		}
		if section != "" {
			try(section, distance(unknown, section))
		}
	}
	if best == "" {
		return "the config.yaml of any run has all keys, with comments"
	}
	return fmt.Sprintf("did you mean %s?", best)
}

// distance is the number of bytes to insert, delete or replace to get from a to b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
