package train

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"loratrain/datasets"
	"loratrain/kernels/cpu"
	"loratrain/model"
)

// spy is told of everything; any of its functions may be nil.
type spy struct {
	silent
	step func(StepInfo)
	eval func(what string, done, total int)
	logs *[]string
}

func (s spy) Step(i StepInfo) {
	if s.step != nil {
		s.step(i)
	}
}

func (s spy) Eval(what string, done, total int) {
	if s.eval != nil {
		s.eval(what, done, total)
	}
}

func (s spy) Log(line string) {
	if s.logs != nil {
		*s.logs = append(*s.logs, line)
	}
}

func logged(logs []string, part string) bool {
	return slices.ContainsFunc(logs, func(l string) bool { return strings.Contains(l, part) })
}

// stopAfter trains up to a step, where it is interrupted.
func stopAfter(t *testing.T, dir string, step int, settings ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := trainOn(ctx, dir, false, spy{step: func(s StepInfo) {
		if s.Step == step {
			cancel()
		}
	}}, settings...)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("stopped at step %d ", step)) {
		t.Fatalf("interrupted at step %d: %v", step, err)
	}
}

// exportOf exports a run as the command does.
func exportOf(t *testing.T, dir, out string, log Progress) (Exported, error) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Parse(configFile, data)
	if err != nil {
		t.Fatal(err)
	}
	base, err := model.OpenDefault()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = base.Close() })
	return Export(cfg, RunOptions{Dir: dir, Base: base, Backend: openBackend(t, cpu.Options{Threads: 1}), Progress: log}, out, FormatSwitch)
}

// measured are settings of a run that is evaluated on the way, by a loss that falls at every step.
var measured = []string{
	"train.max_steps=6", "train.batch=4", "train.eval_every=3", "train.save_every=2", "train.metric=loss", "eval.limit=8", "data.limit=20",
	"train.lr=1e-3", "threads=1",
	"data.max_length=40", "eval.batch_tokens=40", // several batches, so that an evaluation can be stopped between them
}

func TestInterruptedEvaluation(t *testing.T) {
	whole, parts := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "parts")
	if _, err := trainOn(t.Context(), whole, false, silent{}, measured...); err != nil {
		t.Fatal(err)
	}
	// Ctrl-C during the evaluations after steps 3 and 6, then twice in that of the base at the end.
	for i, c := range []struct {
		at   int    // the step after which it is stopped
		last int    // the last step that this process takes, 0 for none
		who  string // is evaluated then
	}{{3, 3, "adapter"}, {6, 6, "adapter"}, {6, 0, "base"}, {6, 0, "base"}} {
		ctx, cancel := context.WithCancel(t.Context())
		taken := 0
		_, err := trainOn(ctx, parts, i > 0, spy{
			step: func(s StepInfo) { taken = s.Step },
			eval: func(what string, done, total int) {
				if strings.HasSuffix(what, c.who) && taken == c.last && done < total {
					cancel()
				}
			},
		}, measured...)
		cancel()
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("stopped at step %d of 6; ", c.at)) {
			t.Fatalf("interruption %d: %v", i, err)
		}
	}
	if _, err := trainOn(t.Context(), parts, true, silent{}, measured...); err != nil {
		t.Fatal(err)
	}
	sameRun(t, whole, parts)
	left, err := filepath.Glob(filepath.Join(parts, "checkpoints", "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("checkpoints %v, want step-6 alone, which is the best and the newest (%v)", left, err)
	}
	e, err := exportOf(t, parts, filepath.Join(t.TempDir(), "export"), silent{})
	if err != nil || e.Step != 6 {
		t.Errorf("exported step %d, want 6 (%v)", e.Step, err)
	}
}

// TestKilledWhileReplacing looks at both sides of the instant at which a checkpoint takes the place of another.
func TestKilledWhileReplacing(t *testing.T) {
	for _, written := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "run")
		stopAfter(t, dir, 3, measured...)
		step := filepath.Join(dir, "checkpoints", "step-3")
		aside := step + replacedSuffix
		if err := os.Rename(step, aside); err != nil {
			t.Fatal(err)
		}
		if written {
			if err := os.CopyFS(step, os.DirFS(aside)); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(aside, "state.json")); err != nil { // half deleted
				t.Fatal(err)
			}
		}
		var logs []string
		if _, err := trainOn(t.Context(), dir, true, spy{logs: &logs}, measured...); err != nil {
			t.Fatal(err)
		}
		if !logged(logs, "resumed after step 3 of 6") {
			t.Errorf("written %v: the checkpoint was lost: %q", written, logs)
		}
		if _, err := os.Stat(aside); err == nil {
			t.Errorf("written %v: %s is left", written, aside)
		}
	}
}

func TestFailedSaveIsNotCalledSaved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := trainOn(ctx, dir, false, spy{step: func(s StepInfo) {
		if s.Step == 2 {
			if err := os.WriteFile(filepath.Join(dir, "checkpoints"), nil, 0o666); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}}, "train.max_steps=6", "train.batch=2", "train.save_every=0", "eval.limit=2", "data.limit=8")
	if err == nil || strings.Contains(err.Error(), "is saved") || !strings.Contains(err.Error(), "checkpoints") {
		t.Errorf("interrupted where nothing can be saved: %v", err)
	}
	if info, err := ReadRunInfo(dir); err != nil || info.State != RunFailed {
		t.Errorf("run.json says %q, want failed (%v)", info.State, err)
	}
}

// TestEditedConfigIsRefused edits config.yaml, with which --resume and export would otherwise begin: the checkpoint knows better.
func TestEditedConfigIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	stopAfter(t, dir, 3, measured...)
	edited := append(slices.Clone(measured), "adapter.alpha=99")
	cfg, err := Parse("edited", nil, edited...)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Backend = "cpu"
	before, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, configFile), cfg.Marshal(), 0o666); err != nil {
		t.Fatal(err)
	}
	_, resumed := trainOn(t.Context(), dir, true, silent{}, edited...)
	_, exported := exportOf(t, dir, filepath.Join(dir, "out"), silent{})
	for what, err := range map[string]error{"resume": resumed, "export": exported} {
		if err == nil || !strings.Contains(err.Error(), "step-3: was made with adapter.alpha 16, now it is 99\n") {
			t.Errorf("%s: %v", what, err)
		}
		if _, wrong := errors.AsType[UsageError](err); !wrong {
			t.Errorf("%s: not a usage error", what)
		}
	}
	if after, err := os.ReadFile(filepath.Join(dir, infoFile)); err != nil || string(after) != string(before) {
		t.Errorf("the refused resume changed run.json (%v)", err)
	}
}

func TestDamagedCheckpoints(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	settings := append(slices.Clone(measured), "train.max_steps=12")
	stopAfter(t, dir, 5, settings...)
	step := func(n int) string { return filepath.Join(dir, "checkpoints", fmt.Sprintf("step-%d", n)) }
	spoil := func(n int) {
		t.Helper()
		if err := os.Truncate(filepath.Join(step(n), "state.safetensors"), 100); err != nil {
			t.Fatal(err)
		}
	}
	spoil(3) // the best so far
	_, err := exportOf(t, dir, filepath.Join(dir, "out"), silent{})
	if err == nil || !strings.Contains(err.Error(), "step-3: state.safetensors: damaged") || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("export of a damaged best checkpoint: %v", err)
	}
	var logs []string
	ctx, cancel := context.WithCancel(t.Context())
	_, err = trainOn(ctx, dir, true, spy{logs: &logs, step: func(s StepInfo) {
		if s.Step == 8 {
			cancel()
		}
	}}, settings...)
	cancel()
	if !strings.Contains(fmt.Sprint(err), "stopped at step 8") || !logged(logs, "resumed after step 5") || !logged(logs, "the best checkpoint so far cannot be read") {
		t.Fatalf("%v, logs %q", err, logs)
	}
	spoil(8)
	logs = nil
	if _, err := exportOf(t, dir, filepath.Join(dir, "out"), spy{logs: &logs}); err != nil || !logged(logs, "passed over: "+step(8)) {
		t.Errorf("export passed over a damaged checkpoint: %v, logs %q", err, logs)
	}
	before, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		t.Fatal(err)
	}
	spoil(6)
	_, err = trainOn(t.Context(), dir, true, silent{}, settings...)
	if err == nil || !strings.Contains(err.Error(), "none of 2 checkpoints is complete: ") || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("nothing but damaged checkpoints: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, infoFile)); err != nil || string(after) != string(before) {
		t.Errorf("the refused resume changed run.json (%v)", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "checkpoints")); err != nil {
		t.Fatal(err)
	}
	logs = nil
	if _, err := trainOn(t.Context(), dir, true, spy{logs: &logs}, settings...); err != nil || !logged(logs, "no checkpoint yet") {
		t.Errorf("without a checkpoint: %v, logs %q", err, logs)
	}
	if lines, err := ReadMetrics(filepath.Join(dir, "metrics.jsonl")); err != nil || len(lines) != 12+4 {
		t.Errorf("%d lines of metrics, want 16 (%v)", len(lines), err)
	}
}

func TestResumeWithOtherData(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "my data=1.jsonl") // a task's name could not be made of it as it is
	lines := "{\"prompt\": \"a b\", \"answer\": \" c\"}\n{\"prompt\": \"d e\", \"answer\": \" f\"}\n"
	if err := os.WriteFile(own, []byte(lines), 0o666); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run")
	settings := []string{"train.max_steps=4", "train.batch=2", "data.file=" + own}
	stopAfter(t, run, 2, settings...)
	moved := filepath.Join(dir, "moved.jsonl")
	if err := os.Rename(own, moved); err != nil {
		t.Fatal(err)
	}
	settings[2] = "data.file=" + moved
	_, err := trainOn(t.Context(), run, true, silent{}, append(slices.Clone(settings), "data.eval_file="+moved)...)
	if err == nil || !strings.Contains(err.Error(), `data "data.eval_file": the run began without it`) {
		t.Errorf("with an evaluation that the run did not begin with: %v", err)
	}
	other := filepath.Join(dir, "other.jsonl")
	if err := os.WriteFile(other, []byte(lines[:strings.Index(lines, "\n")+1]), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err = trainOn(t.Context(), run, true, silent{}, settings[0], settings[1], "data.file="+other)
	if err == nil || !strings.Contains(err.Error(), `data "data.file": its items are not those`) {
		t.Errorf("with other items: %v", err)
	}
	out, err := trainOn(t.Context(), run, true, silent{}, settings...)
	if err != nil {
		t.Fatalf("with the same file in another place: %v", err)
	}
	if out.Steps != 4 || out.Resumed != 2 {
		t.Errorf("%d steps, resumed after %d; want 4, 2", out.Steps, out.Resumed)
	}
}

func TestUserFilesKeepTheirPaths(t *testing.T) {
	for path, want := range map[string]string{
		"own.jsonl": "own=own.jsonl", "a=b/c d.jsonl": "c-d=a=b/c d.jsonl", "a+b.json": "a-b=a+b.json", "/x/.jsonl": "x=/x/.jsonl", "own.txt": "own=own.txt",
	} {
		if got := (userFile{"data.file", path}).spec(); got != want {
			t.Errorf("%s: task %q, want %q", path, got, want)
		}
		if _, err := (datasets.Catalog{}).Load(want, datasets.Train); err == nil || strings.Contains(err.Error(), "is no name for a task") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
