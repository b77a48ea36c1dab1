package train

import (
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseDefaults(t *testing.T) {
	toy := DefaultToy()
	toy.Data.Tasks, toy.Eval.Tasks, toy.Data.EOS, toy.Train.Metric = []string{"toy"}, []string{"toy"}, "false", "acc_norm"
	own := Default()
	own.Model.Path, own.Data.File, own.Data.EOS, own.Train.Metric = "smol.gguf", "mine.jsonl", "true", "loss"
	lora := Default()
	lora.Model.Path, lora.Data.Dir, lora.Data.Template = "smol.gguf", "bench", "choice"
	lora.Data.Tasks, lora.Eval.Tasks = []string{"arc_easy=train.json"}, []string{"arc_easy"}
	lora.Adapter.Granularity, lora.Adapter.Experts = "none", 1
	lora.Data.EOS, lora.Train.Metric = "false", "acc"
	for _, test := range []struct {
		name, yaml string
		set        []string
		want       Config
	}{
		{"nothing", "", nil, toy},
		{"comments", "# nothing yet\n", nil, toy},
		{"an empty document", "---\n", nil, toy},
		{"no keys", "{}", nil, toy},
		{"a section whose keys are commented out", "train:\n  # lr: 1\n", nil, toy},
		{"defaults of a real model when the file names it", "model: {path: smol.gguf}\ndata:\n  file: mine.jsonl", nil, own},
		{"defaults of a real model when an override names it", "data: {file: mine.jsonl}", []string{"model.path=smol.gguf"}, own},
		{
			"plain LoRA, and the test split of a task trained from a file", "adapter: {granularity: none}\nmodel: {path: smol.gguf}",
			[]string{"data.tasks=arc_easy=train.json", "data.dir=bench", "data.template=choice"},
			lora,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse("c.yaml", []byte(test.yaml), test.set...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const lr = "\ngive it such a value, or leave it out for the default, 0.002"
	const batch = "\ngive it such a value, or leave it out for the default, 32"
	const keys = "\nthe config.yaml of any run has all keys, with comments"
	for _, test := range []struct{ name, yaml, want string }{
		{"misspelt key", "train:\n  lr: 1\n  bacth: 3", "c.yaml:3:3: unknown key \"train.bacth\"\ndid you mean train.batch?"},
		{"key in the wrong section", "train:\n  rank: 3", "c.yaml:2:3: unknown key \"train.rank\"\ndid you mean adapter.rank?"},
		{"key without its section", "lr: 1", "c.yaml:1:1: unknown key \"lr\"\ndid you mean train.lr?"},
		{"another program's key", "train:\n  learning_rate: 1", "c.yaml:2:3: unknown key \"train.learning_rate\"\ndid you mean train.lr?"},
		{"key with a dot", "train.lr: 1", "c.yaml:1:1: unknown key \"train.lr\"\nwrite \"train:\" on a line of its own and below it \"  lr: …\""},
		{"misspelt section", "trian:\n  lr: 1", "c.yaml:1:1: unknown key \"trian\"\ndid you mean train?"},
		{"nothing near", "zzzzzzzzzzz: 1", "c.yaml:1:1: unknown key \"zzzzzzzzzzz\"" + keys},
		{"merge key", "a: &a {lr: 1}", "c.yaml:1:1: unknown key \"a\"" + keys},
		{"list as a key", "train:\n  ? [a]\n  : 1", "c.yaml:2:5: a list as a key; expected a name" + keys},
		{"duplicate key", "train:\n  lr: 1\n  batch: 2\n  lr: 2", "c.yaml:4:3: train.lr a second time; the first is on line 2\nkeep one of them"},
		{"duplicate section", "train:\n  lr: 1\ntrain:\n  lr: 1", "c.yaml:3:1: train a second time; the first is on line 1\nkeep one of them"},
		{"section with a value", "train: 5", "c.yaml:1:8: train is 5; expected keys below it\nwrite them on lines of their own, indented, for example \"  epochs: 1\""},
		{"key with keys", "train:\n  lr:\n    a: 1", "c.yaml:3:5: train.lr is a group of keys; expected a number above 0 and at most 10" + lr},
		{"fraction for a whole number", "train:\n  batch: 1.5", "c.yaml:2:10: train.batch is 1.5; expected a whole number from 1 to 1048576" + batch},
		{"quoted number", "train: {batch: '8'}", "c.yaml:1:16: train.batch is \"8\"; expected a whole number from 1 to 1048576" + batch},
		{"octal", "train: {batch: 010}", "c.yaml:1:16: train.batch is 010; expected a whole number from 1 to 1048576" + batch},
		{"hexadecimal", "train: {batch: 0x10}", "c.yaml:1:16: train.batch is 0x10; expected a whole number from 1 to 1048576" + batch},
		{"more than 64 bits", "train: {batch: 99999999999999999999}", "c.yaml:1:16: train.batch is 99999999999999999999; expected a whole number from 1 to 1048576" + batch},
		{"out of range", "train: {batch: 0}", "c.yaml:1:16: train.batch is 0; expected a whole number from 1 to 1048576" + batch},
		{"open end of a range", "train: {lr: 0}", "c.yaml:1:13: train.lr is 0; expected a number above 0 and at most 10" + lr},
		{"not a number", "train: {lr: .nan}", "c.yaml:1:13: train.lr is .nan; expected a number above 0 and at most 10" + lr},
		{"infinity", "train: {lr: .inf}", "c.yaml:1:13: train.lr is .inf; expected a number above 0 and at most 10" + lr},
		{"text for a number", "train: {lr: high}", "c.yaml:1:13: train.lr is \"high\"; expected a number above 0 and at most 10" + lr},
		{"no value", "train:\n  lr:\n", "c.yaml:2:6: train.lr is empty; expected a number above 0 and at most 10" + lr},
		{"no text", "model: {path: }", "c.yaml:1:15: model.path is empty; expected text in UTF-8, \"\" for none\ngive it such a value, or leave it out for the default, \"\""},
		{"another word for true", "float32: yes", "c.yaml:1:10: float32 is \"yes\"; expected true or false\ngive it such a value, or leave it out for the default, false"},
		{"quoted truth", "float32: 'true'", "c.yaml:1:10: float32 is \"true\"; expected true or false\ngive it such a value, or leave it out for the default, false"},
		{"no such choice", "backend: gpu", "c.yaml:1:10: backend is \"gpu\"; expected one of auto, cpu, cuda\ngive it such a value, or leave it out for the default, auto"},
		{
			"item of a list", "adapter:\n  targets: [q_proj, lm_head]",
			"c.yaml:2:21: adapter.targets has \"lm_head\"; expected a list [a, b] of different names among q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj\n" +
				"give it such a value, or leave it out for the default, [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]",
		},
		{
			"item twice", "data:\n  tasks:\n    - toy\n    - toy",
			"c.yaml:4:7: data.tasks has \"toy\"; expected a list [a, b] of different tasks such as toy or arc_easy=train.json\ngive it such a value, or leave it out for the default, []",
		},
		{
			"text for a list", "data: {tasks: toy}",
			"c.yaml:1:15: data.tasks is \"toy\"; expected a list [a, b] of different tasks such as toy or arc_easy=train.json\ngive it such a value, or leave it out for the default, []",
		},
		{"list of settings", "- lr: 1", "c.yaml:1:1: a list where the configuration begins; expected keys\nbegin with a section, for example \"train:\", and below it \"  lr: 1e-3\""},
		{"second document", "train: {lr: 1}\n---\ntrain: {lr: 2}", "c.yaml:2:1: a second document; expected one\nremove the line --- or ... before it, or keep it in a file of its own"},
		{"empty second document", "train: {lr: 1}\n---\n", "c.yaml:2:1: a second document; expected one\nremove the line --- or ... before it, or keep it in a file of its own"},
		{"tab", "train:\n\tlr: 1", "c.yaml:2:1: not YAML: found character that cannot start any token while scanning for the next token\nindent with spaces instead of tabs"},
		{"tab after a value", "train:\n  lr: 1\n  \tbatch: 1", "c.yaml:3:3: not YAML: found a tab character that violates indentation while scanning a plain scalar that began at line 2, column 7\nindent with spaces instead of tabs"},
		{"open bracket", "train: {lr: 1\nseed: 3", "c.yaml:2:5: not YAML: did not find expected ',' or '}' while parsing a flow mapping that began at line 1, column 8\ncheck the quotes, brackets and indentation there and on the line before"},
		{"broken second document", "train: {lr: 1}\n---\na: b: c", "c.yaml:3:5: not YAML: mapping values are not allowed in this context\ncheck the quotes, brackets and indentation there and on the line before"},
		{"alias to nothing", "train: *x", "c.yaml:1:8: not YAML: unknown anchor 'x' referenced\ncheck the quotes, brackets and indentation there and on the line before"},
		{"control character", "train:\n  lr: \x00", "c.yaml:2:7: byte 0x00; expected text in UTF-8\nis this the configuration? save it as UTF-8 text"},
		{"not UTF-8", "train:\n  é: \xff", "c.yaml:2:6: byte 0xff; expected text in UTF-8\nis this the configuration? save it as UTF-8 text"},
	} {
		t.Run(test.name, func(t *testing.T) { checkUsage(t, second(Parse("c.yaml", []byte(test.yaml))), test.want) })
	}
}

func TestKeysAgainstEachOther(t *testing.T) {
	const real = "model: {path: m}\n"
	for _, test := range []struct {
		name, yaml string
		set        []string
		want       string
	}{
		{
			"one expert for two places", "adapter:\n  granularity: block\n  experts: 1", nil,
			"c.yaml:3:3: adapter.experts is 1, but with granularity block two experts serve each token\nraise adapter.experts to 2 or more, or set adapter.granularity to none for plain LoRA",
		},
		{
			"shared expert of plain LoRA", "adapter: {granularity: none}",
			[]string{"adapter.shared_rank=4"},
			"setting adapter.shared_rank=4: adapter.shared_rank is 4, but with granularity none the one expert serves every token already\nraise adapter.rank instead, and set adapter.shared_rank to 0",
		},
		{"nothing to train", "adapter: {targets: []}", nil, "c.yaml:1:11: adapter.targets is []; nothing would be trained\nname a linear layer, for example adapter.targets: [q_proj, v_proj]"},
		{
			"no data", real, nil,
			"c.yaml:1:9: no data to train on: neither data.tasks nor data.file is given\nname tasks, for example data.tasks: [arc_easy] with data.dir, or your own JSONL in data.file",
		},
		{"two kinds of data", "data: {tasks: [toy], file: a}", nil, "c.yaml:1:22: data.tasks and data.file are both given; expected one of them\nleave one out"},
		{
			"evaluation file without data", "data: {eval_file: a}", nil,
			"c.yaml:1:8: data.eval_file is given without data.file\nname the file to train on in data.file, or tasks to evaluate in eval.tasks",
		},
		{
			"task from nowhere", "data: {tasks: [toy, boolq]}", nil,
			"c.yaml:1:8: data.tasks has boolq, but not where its items are\nname the folder of the benchmarks in data.dir, or a file: boolq=FILE",
		},
		{
			"evaluation from nowhere", "eval: {tasks: [boolq]}", nil,
			"c.yaml:1:8: eval.tasks has boolq, but not where its items are\nname the folder of the benchmarks in data.dir, or a file: boolq=FILE",
		},
		{
			"sequence longer than a batch", "data: {max_length: 4096}", nil,
			"c.yaml:1:8: train.micro_tokens is 1024, less than data.max_length, 4096: a long sequence would not fit\nraise train.micro_tokens to 4096 or more, or lower data.max_length",
		},
		{
			"sequence longer than a batch of the evaluation", "eval: {batch_tokens: 64}", nil,
			"c.yaml:1:8: eval.batch_tokens is 64, less than data.max_length, 128: a long sequence would not fit\nraise eval.batch_tokens to 128 or more, or lower data.max_length",
		},
		{
			"nothing to evaluate", "data: {file: a}\ntrain: {eval_every: 5}", nil,
			"c.yaml:2:9: train.eval_every is 5, but there is nothing to evaluate\nname tasks in eval.tasks, or a JSONL of prompts and answers in data.eval_file",
		},
		{
			"patience without evaluations", "train: {patience: 2}", nil,
			"c.yaml:1:9: train.patience is 2, but nothing is evaluated before the end\nset train.eval_every to the steps between evaluations",
		},
		{
			"accuracy without options", "data: {file: a, eval_file: b}\ntrain: {metric: acc}", nil,
			"c.yaml:2:9: train.metric is acc, but no task is evaluated: prompts and answers have only a loss\nset train.metric to loss, or name tasks in eval.tasks",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkUsage(t, second(Parse("c.yaml", []byte(test.yaml), test.set...)), test.want)
		})
	}
}

// setKey overrides one key of cfg, which an error leaves as it was; it neither resolves nor checks keys against each other.
func setKey(cfg *Config, override string) error {
	p := parser{cfg: *cfg, origins: map[string]string{}}
	if err := p.override(override); err != nil {
		return err
	}
	*cfg = p.cfg
	return nil
}

func TestSet(t *testing.T) {
	cfg := Default()
	for _, o := range []string{
		"train.lr=1e-4", "adapter.targets=q_proj, v_proj", "eval.tasks=[toy,a=b]", "data.tasks=", "model.path=~", "data.dir=", "data.file=a=b # no comment",
	} {
		if err := setKey(&cfg, o); err != nil {
			t.Fatalf("%s: %v", o, err)
		}
	}
	want := Default()
	want.Train.LR, want.Adapter.Targets, want.Eval.Tasks = 1e-4, []string{"q_proj", "v_proj"}, []string{"toy", "a=b"}
	want.Model.Path, want.Data.File = "~", "a=b # no comment"
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	const lr = "expected a number above 0 and at most 10\ngive it such a value, or leave it out for the default, 0.001"
	for o, message := range map[string]string{
		"train.lr":      "setting train.lr: no =; expected key=value\nfor example train.lr=1e-4",
		"train.lt=1":    "setting train.lt=1: unknown key \"train.lt\"\ndid you mean train.lr?",
		"train=1":       "setting train=1: unknown key \"train\"\ndid you mean train?",
		"train.lr=":     "setting train.lr=: train.lr is empty; " + lr,
		"train.lr=-1":   "setting train.lr=-1: train.lr is -1; " + lr,
		"train.lr=1\n2": "setting train.lr=1\\n2: train.lr is 1\\n2; " + lr,
		"model.path=\xff": "setting model.path=\\xff: model.path is \"\\xff\"; expected text in UTF-8, \"\" for none\n" +
			"give it such a value, or leave it out for the default, \"\"",
	} {
		checkUsage(t, setKey(&cfg, o), message)
	}
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("after errors: -want +got\n%s", diff)
	}
}

// sample is a value of a key that the default has not.
func sample(f field) string {
	switch v := f.value.(type) {
	case *wholeValue:
		return "77"
	case *numberValue:
		return "0.123"
	case *truthValue:
		return strconv.FormatBool(!*v.p)
	case *choiceValue:
		for _, word := range v.words {
			if word != *v.p {
				return word
			}
		}
	case *listValue:
		if f.key == "adapter.targets" {
			return "k_proj"
		}
		return "some=file"
	}
	return "some/place"
}

func TestEachKeyHasItsOwnPlace(t *testing.T) {
	reached := map[string]string{}
	base := Default()
	for _, f := range base.fields() {
		cfg := Default()
		if err := setKey(&cfg, f.key+"="+sample(f)); err != nil {
			t.Fatal(err)
		}
		var changed []string
		leaves(reflect.ValueOf(base), reflect.ValueOf(cfg), "", func(path string, differs bool) {
			if differs {
				changed = append(changed, path)
			}
		})
		if len(changed) != 1 {
			t.Fatalf("%s changes %v", f.key, changed)
		}
		if want := strings.ReplaceAll(f.key, "_", ""); !strings.EqualFold(want, changed[0]) {
			t.Errorf("%s changes %s", f.key, changed[0])
		}
		reached[changed[0]] = f.key
	}
	leaves(reflect.ValueOf(base), reflect.ValueOf(base), "", func(path string, _ bool) {
		if reached[path] == "" {
			t.Errorf("no key for Config.%s", path)
		}
	})
}

// leaves visits the fields of two structs of one type.
func leaves(a, b reflect.Value, path string, visit func(path string, differs bool)) {
	for i := range a.NumField() {
		name := path + a.Type().Field(i).Name
		if a.Field(i).Kind() == reflect.Struct {
			leaves(a.Field(i), b.Field(i), name+".", visit)
			continue
		}
		visit(name, !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()))
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Default()
		for _, f := range want.fields() {
			switch v := f.value.(type) {
			case *wholeValue:
				*v.p = rapid.IntRange(v.min, v.max).Draw(t, f.key)
			case *numberValue:
				*v.p = rapid.Float64Range(v.low.limit, v.high.limit).Filter(func(x float64) bool {
					*v.p = x
					return v.fits()
				}).Draw(t, f.key)
			case *truthValue:
				*v.p = rapid.Bool().Draw(t, f.key)
			case *choiceValue:
				*v.p = rapid.SampledFrom(v.words).Draw(t, f.key)
			case *textValue:
				*v.p = "x" + rapid.String().Draw(t, f.key)
			case *listValue:
				if f.key == "adapter.targets" {
					*v.p = rapid.Permutation(targetNames()).Draw(t, f.key)[:rapid.IntRange(1, 7).Draw(t, "targets")]
				} else {
					*v.p = rapid.SliceOfNDistinct(rapid.StringMatching(`[^=\x00]+(=(?s:.)+)?`), 1, 3, rapid.ID[string]).Draw(t, f.key)
				}
			}
		}
		// What the keys demand of each other.
		if rapid.Bool().Draw(t, "tasks") {
			want.Data.File, want.Data.EvalFile = "", ""
		} else {
			want.Data.Tasks = nil
		}
		want.Adapter.Experts = max(want.Adapter.Experts, 2)
		if want.Adapter.Granularity == GranularityNone {
			want.Adapter.SharedRank = 0
		}
		want.Train.MicroTokens = max(want.Train.MicroTokens, want.Data.MaxLength)
		want.Eval.BatchTokens = max(want.Eval.BatchTokens, want.Data.MaxLength)
		want.Train.EvalEvery = max(want.Train.EvalEvery, 1)
		want.Resolve()
		if err := want.Validate(); err != nil {
			t.Fatal(err)
		}
		got, err := Parse("c.yaml", want.Marshal())
		if err != nil {
			t.Fatalf("%v\n%s", err, want.Marshal())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-want +got\n%s\n%s", diff, want.Marshal())
		}
		if again := got.Marshal(); string(again) != string(want.Marshal()) {
			t.Fatalf("got\n%s\nwant\n%s", again, want.Marshal())
		}
	})
}

func TestMarshalReads(t *testing.T) {
	cfg, err := Parse("", nil, "adapter.targets=q_proj", "data.dir=my data", "data.eos=true")
	if err != nil {
		t.Fatal(err)
	}
	text := string(cfg.Marshal())
	for _, line := range []string{
		"model:\n", `  path: ""`, "  # folder with the benchmarks' published files, for tasks without a file\n  dir: \"my data\"\n",
		"  tasks: [toy]\n", "  targets: [q_proj]\n", "  eos: true\n", "  eps: 1e-08\n", "\n# what computes: cpu or cuda;", "\nbackend: auto\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
}

func TestValidate(t *testing.T) {
	cfg := DefaultToy()
	cfg.Resolve()
	if err := cfg.Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	cfg.Train.Beta2 = 1
	checkUsage(t, cfg.Validate(), "train.beta2 is 1; expected a number at least 0 and below 1\ngive it such a value")
	cfg.Train.Beta2 = 0
	cfg.Adapter.Targets = []string{"q_proj", "q_proj"}
	if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), "adapter.targets is [q_proj, q_proj]; ") {
		t.Errorf("a target twice: %v", err)
	}
}

func TestCheckResume(t *testing.T) {
	run, err := Parse("", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range run.fields() {
		now, err := Parse("", nil)
		if err == nil {
			err = setKey(&now, f.key+"="+sample(f))
		}
		if err != nil {
			t.Fatal(err)
		}
		free := map[string]bool{
			"model.path": true, "data.dir": true, "data.file": true, "data.eval_file": true, "train.eval_every": true, "train.save_every": true,
			"train.patience": true, "eval.batch_tokens": true, "threads": true, "device": true, "train.recompute": true,
		}[f.key]
		if err := CheckResume(run, now); (err == nil) != free {
			t.Errorf("%s: got %v, want it free: %v", f.key, err, free)
		}
	}
	now := run
	now.Train.LR = 1
	err = CheckResume(run, now)
	if err == nil || !strings.HasPrefix(err.Error(), "train.lr is 1, but the run to be resumed has 0.002\nleave train.lr as it was, or start another run; ") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	cfg := DefaultToy()
	f.Add(cfg.Marshal(), "train.lr=1")
	f.Add([]byte("train: &a\n  lr: 1\n<<: *a\n"), "data.tasks=[,]")
	f.Add([]byte("data: {tasks: &t [*t]}\n"), "=")
	f.Add([]byte("? {a: b}\n: !!binary x"), "adapter.targets=]")
	f.Add([]byte("\xef\xbb\xbftrain: {seed: 3}"), "threads=1")
	f.Fuzz(func(t *testing.T, data []byte, override string) {
		cfg, err := Parse("c.yaml", data, override)
		if err != nil {
			var u UsageError
			if !errors.As(err, &u) {
				t.Errorf("not a UsageError: %v", err)
			}
			if strings.Count(err.Error(), "\n") != 1 {
				t.Errorf("not two lines: %q", err)
			}
			return
		}
		again, err := Parse("c.yaml", cfg.Marshal())
		if err != nil {
			t.Fatalf("%v\n%s", err, cfg.Marshal())
		}
		if diff := cmp.Diff(cfg, again); diff != "" {
			t.Errorf("-parsed +again\n%s", diff)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func checkUsage(t *testing.T, err error, want string) {
	t.Helper()
	var u UsageError
	switch {
	case err == nil:
		t.Errorf("no error, want %q", want)
	case !errors.As(err, &u):
		t.Errorf("%q is not a UsageError", err)
	case err.Error() != want:
		t.Errorf("got  %q\nwant %q", err, want)
	}
}
