package train

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"loratrain/checkpoints"
	"loratrain/datasets"
	"loratrain/datasets/toy"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
)

// childRun is set in a process that TestKilledRunResumes starts: the folder to train in.
const childRun = "LORA_TEST_CHILD_RUN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childRun); dir != "" {
		_, err := os.Stat(dir)
		if _, err := trainOn(context.Background(), dir, err == nil, silent{}, killedRun()...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killedRun() []string {
	return []string{
		"train.max_steps=14", "train.batch=3", "train.save_every=1", "train.eval_every=5", "data.limit=30", "eval.limit=6",
		"adapter.experts=3", "adapter.rank=2", "adapter.dropout=0.1", "adapter.shared_rank=2", "threads=1",
	}
}

// trainOn runs on the embedded model and task with the given settings.
func trainOn(ctx context.Context, dir string, resume bool, progress Progress, settings ...string) (*Outcome, error) {
	return trainWith(ctx, dir, resume, progress, func(*run) {}, settings...)
}

// trainWith is trainOn for a test that looks into the run.
func trainWith(ctx context.Context, dir string, resume bool, progress Progress, look func(*run), settings ...string) (*Outcome, error) {
	cfg, err := Parse("test.yaml", nil, settings...)
	if err != nil {
		return nil, err
	}
	b, err := cpu.New(cpu.Options{Threads: cfg.Threads})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return trainAt(ctx, b, dir, resume, progress, look, settings...)
}

// trainAt is trainWith on a backend.
func trainAt(ctx context.Context, b kernels.Backend, dir string, resume bool, progress Progress, look func(*run), settings ...string) (*Outcome, error) {
	cfg, err := Parse("test.yaml", nil, settings...)
	if err != nil {
		return nil, err
	}
	base, err := model.OpenDefault()
	if err != nil {
		return nil, err
	}
	defer base.Close()
	p, err := Prepare(cfg, RunOptions{
		Dir: dir, Resume: resume, Base: base, Backend: b, Progress: progress,
		Catalog: datasets.Catalog{Dir: cfg.Data.Dir, Embedded: map[string]fs.FS{ToyTask: toy.FS()}},
	})
	if err != nil {
		return nil, err
	}
	look(p.r)
	return p.Run(ctx)
}

// watcher calls a function after every step.
type watcher struct {
	silent
	step func(StepInfo)
}

func (w watcher) Step(s StepInfo) { w.step(s) }

// sameRun compares the last checkpoints, the metrics but for times, and the exports of two runs.
func sameRun(t *testing.T, a, b string) {
	t.Helper()
	var states [2]checkpoints.Latest
	var metrics [2][]MetricsLine
	var exports [2][]byte
	for i, dir := range []string{a, b} {
		var err error
		if states[i], err = checkpoints.LatestState(filepath.Join(dir, "checkpoints")); err != nil {
			t.Fatal(err)
		}
		if metrics[i], err = ReadMetrics(filepath.Join(dir, "metrics.jsonl")); err != nil {
			t.Fatal(err)
		}
		for k := range metrics[i] {
			metrics[i][k].Seconds, metrics[i][k].TokensPerSecond = 0, 0
		}
		if exports[i], err = os.ReadFile(filepath.Join(dir, "export", "adapter_model.safetensors")); err != nil {
			t.Fatal(err)
		}
	}
	if states[0].Step != states[1].Step || !bytes.Equal(states[0].Meta, states[1].Meta) {
		t.Errorf("step %d with %s, the other run step %d with %s", states[0].Step, states[0].Meta, states[1].Step, states[1].Meta)
	}
	for i, x := range states[0].Tensors {
		if y := states[1].Tensors[i]; x.Name != y.Name || !bytes.Equal(x.Data, y.Data) {
			t.Fatalf("tensor %s differs in the checkpoints of step %d", x.Name, states[0].Step)
		}
	}
	if len(metrics[0]) != len(metrics[1]) {
		t.Errorf("%d lines of metrics, the other run has %d", len(metrics[0]), len(metrics[1]))
	}
	for i := range min(len(metrics[0]), len(metrics[1])) {
		if x, y := fmt.Sprintf("%+v", metrics[0][i]), fmt.Sprintf("%+v", metrics[1][i]); x != y {
			t.Errorf("metrics line %d:\n%s\nthe other run:\n%s", i+1, x, y)
		}
	}
	if !bytes.Equal(exports[0], exports[1]) {
		t.Error("the exports differ")
	}
}

func TestResumedRunIsBitIdentical(t *testing.T) {
	t.Run("cpu", func(t *testing.T) { resumedIsWhole(t, onCPU(cpu.Options{})) })
	for _, gpu := range append(onGPUs(" bf16", false, true, tolerances{}), onGPUs(" f32", true, false, tolerances{})...) {
		t.Run(gpu.name, func(t *testing.T) {
			whole, again := resumedIsWhole(t, gpu.open), filepath.Join(t.TempDir(), "again")
			if _, err := trainAt(t.Context(), gpu.open(t), again, false, silent{}, func(*run) {}, resumedRun()...); err != nil {
				t.Fatal(err)
			}
			sameRun(t, whole, again)
		})
	}
}

func resumedRun() []string {
	return []string{
		"train.max_steps=9", "train.batch=4", "train.save_every=4", "train.eval_every=3", "eval.limit=8", "adapter.dropout=0.1",
		"train.micro_tokens=128", "data.limit=20", "adapter.granularity=block",
	}
}

// resumedIsWhole compares a run, whose folder it returns, with one that was interrupted. Each part has a backend of its own.
func resumedIsWhole(t *testing.T, open func(testing.TB) kernels.Backend) (whole string) {
	t.Helper()
	train := func(ctx context.Context, dir string, resume bool, progress Progress) error {
		_, err := trainAt(ctx, open(t), dir, resume, progress, func(*run) {}, resumedRun()...)
		return err
	}
	parts := filepath.Join(t.TempDir(), "parts")
	whole = filepath.Join(t.TempDir(), "whole")
	if err := train(t.Context(), whole, false, silent{}); err != nil {
		t.Fatal(err)
	}
	for _, stop := range []int{2, 6, 7} {
		ctx, cancel := context.WithCancel(t.Context())
		err := train(ctx, parts, stop > 2, watcher{step: func(s StepInfo) {
			if s.Step == stop {
				cancel()
			}
		}})
		if !stoppedAt(err, stop, 9) {
			t.Fatalf("interrupted at step %d: %v", stop, err)
		}
		if info, err := ReadRunInfo(parts); err != nil || info.State != RunInterrupted {
			t.Fatalf("run.json says %q, %v after an interruption", info.State, err)
		}
	}
	if err := train(t.Context(), parts, true, silent{}); err != nil {
		t.Fatal(err)
	}
	sameRun(t, whole, parts)
	if err := train(t.Context(), parts, true, silent{}); err == nil || !strings.Contains(err.Error(), "this run is complete") {
		t.Errorf("resuming a complete run: %v", err)
	}
	return whole
}

// stoppedAt reports whether a run of total steps was stopped when step n was reported: on a device the next is under way then.
func stoppedAt(err error, n, total int) bool {
	said := fmt.Sprint(err)
	return strings.Contains(said, fmt.Sprintf("stopped at step %d of %d", n, total)) || strings.Contains(said, fmt.Sprintf("stopped at step %d of %d", n+1, total))
}

func TestKilledRunResumes(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole")
	if _, err := trainOn(t.Context(), whole, false, silent{}, killedRun()...); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	killed := filepath.Join(dir, "killed")
	for kills := 0; ; kills++ {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childRun+"="+killed)
		var text bytes.Buffer
		child.Stderr = &text
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- child.Wait() }()
		var err error
		if kills < 12 {
			select {
			case err = <-ended:
			case <-time.After(time.Duration(50+random.IntN(500)) * time.Millisecond):
				_ = child.Process.Signal(syscall.SIGKILL)
				if err = <-ended; err != nil && text.Len() == 0 {
					continue
				}
			}
		} else {
			err = <-ended
		}
		if err != nil && kills > 0 && strings.Contains(text.String(), "this run is complete") {
			err = nil // the last kill came when all was done
		}
		if err != nil {
			t.Fatalf("after %d kills: %v: %s", kills, err, &text)
		}
		t.Logf("killed %d times", kills)
		break
	}
	sameRun(t, whole, killed)
	if left, _ := filepath.Glob(filepath.Join(dir, ".tmp*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNonFiniteLossStops(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var r *run
	spoil := watcher{step: func(s StepInfo) {
		if s.Step == 3 { // as a learning rate that is far too high does
			nan := hostCopy(r.Backend, r.stepper.Params)
			kernels.Slice[float32](nan)[0] = float32(math.Inf(1))
			r.Backend.Write(r.stepper.Params, nan)
		}
	}}
	_, err := trainWith(t.Context(), dir, false, spoil, func(under *run) { r = under }, "train.max_steps=50", "train.batch=2",
		"train.save_every=2", "eval.limit=2", "data.limit=4")
	if err == nil {
		t.Fatal("a run with an infinite parameter went on")
	}
	first, advice, _ := strings.Cut(err.Error(), "\n")
	for _, want := range []string{"step 4:", "loss ", "train.jsonl:"} {
		if !strings.Contains(first, want) {
			t.Errorf("error %q does not say %q", first, want)
		}
	}
	if !strings.Contains(advice, "lower train.lr") {
		t.Errorf("advice is %q", advice)
	}
	latest, err := checkpoints.LatestState(filepath.Join(dir, "checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range latest.Tensors {
		for i, v := range float64s(x) {
			if math.IsNaN(v) {
				t.Fatalf("the last checkpoint has a NaN: %s, element %d", x.Name, i)
			}
		}
	}
	if info, err := ReadRunInfo(dir); err != nil || info.State != RunFailed || !strings.Contains(info.Error, "loss") {
		t.Errorf("run.json: state %q, error %q, %v", info.State, info.Error, err)
	}
}

func TestEarlyStoppingKeepsNewestAndBest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	out, err := trainOn(t.Context(), dir, false, silent{}, "train.lr=1e-12", "train.max_steps=40", "train.batch=2", "train.eval_every=2",
		"train.save_every=3", "train.patience=3", "eval.limit=5", "data.limit=10", "train.metric=acc")
	if err != nil {
		t.Fatal(err)
	}
	if !out.Stopped || out.Steps != 8 || out.Exported != 2 {
		t.Errorf("stopped %v after %d steps, exported step %d; want true, 8, 2", out.Stopped, out.Steps, out.Exported)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"step-2", "step-8"}; !slices.Equal(names, want) {
		t.Errorf("checkpoints %v, want %v", names, want)
	}
}

func TestRunRefusals(t *testing.T) {
	dir := t.TempDir()
	quick := []string{"train.max_steps=1", "train.batch=2", "eval.limit=2", "data.limit=4"}
	done := filepath.Join(dir, "done")
	if _, err := trainOn(t.Context(), done, false, silent{}, quick...); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(done, "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	interrupted := filepath.Join(dir, "interrupted")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := trainOn(ctx, interrupted, false, silent{}, quick...); err == nil {
		t.Fatal("a cancelled run was complete")
	}
	for _, c := range []struct {
		name, dir string
		resume    bool
		settings  []string
		want      string
		usage     bool
	}{
		{"existing folder", done, false, nil, "already exists\ncontinue that run with --resume", true},
		{"nothing to resume", filepath.Join(dir, "none"), true, nil, "no run to resume", true},
		{"other items", interrupted, true, []string{"data.limit=5"}, "data.limit", true},
		{"no such task", filepath.Join(dir, "x"), false, []string{"data.tasks=toys"}, "data.tasks has toys", true},
		{"no such file", filepath.Join(dir, "x"), false, []string{"data.tasks=t=nowhere.json"}, "nowhere.json", false},
		{"nothing to measure", filepath.Join(dir, "x"), false, []string{"train.eval_every=1", "eval.tasks=t=nowhere.json"}, "nowhere.json", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := trainOn(t.Context(), c.dir, c.resume, silent{}, append(slices.Clone(quick), c.settings...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if _, isUsage := errors.AsType[UsageError](err); isUsage != c.usage {
				t.Errorf("usage error: %v, want %v (%v)", isUsage, c.usage, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
				t.Error("a folder was made")
			}
		})
	}
	if after, err := os.ReadFile(filepath.Join(done, "run.json")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the refused runs changed run.json (%v)", err)
	}
}

// TestPairsLearnTheEnd trains on a user's own prompts and answers: the end of the sequence becomes likely.
func TestPairsLearnTheEnd(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "own.jsonl")
	var text strings.Builder
	for i := range 40 {
		fmt.Fprintf(&text, "{\"prompt\": \"number %d is\", \"answer\": \" odd\"}\n", 2*i+1)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	cfg, err := Parse("test.yaml", nil, "data.file="+file)
	if err != nil {
		t.Fatal(err)
	}
	base, err := model.OpenDefault()
	if err != nil {
		t.Fatal(err)
	}
	data, err := loadData(cfg, base, datasets.Catalog{})
	if err != nil {
		t.Fatal(err)
	}
	if last := data.seqs[0].IDs[len(data.seqs[0].IDs)-1]; !slices.Contains(base.EOS, last) {
		t.Errorf("sequence ends with token %d, want one of %v", last, base.EOS)
	}
	out, err := trainOn(t.Context(), filepath.Join(dir, "run"), false, silent{}, "data.file="+file, "data.eval_file="+file,
		"train.epochs=12", "train.batch=8", "train.lr=5e-3")
	if err != nil {
		t.Fatal(err)
	}
	if before, after := out.Base[0].Loss, out.Adapter[0].Loss; !(after < before/4) {
		t.Errorf("loss went from %.3f to %.3f", before, after)
	}
}

// TestAccumulationEqualsOneBatch compares a step made of several batches with the same sequences in one.
func TestAccumulationEqualsOneBatch(t *testing.T) {
	b := openBackend(t, cpu.Options{Float64: true})
	_, placed := placeBase(t, b, filepath.Join(*golden, "tiny-llama"), 64)
	var all map[string]trajectory
	readJSON(t, "traj.json", &all)
	c := all["traj-shared"]
	c.Balance = 0 // its product of means is not a sum over batches
	bank := model.NewBank(placed.Arch, c.spec())
	random := rand.New(rand.NewPCG(1, 2))
	start := kernels.NewHost(kernels.F64, bank.Size())
	bank.Init(start, 3)
	for i := range kernels.Slice[float64](start) {
		kernels.Slice[float64](start)[i] += 0.05 * random.NormFloat64()
	}
	var seqs []datasets.Sequence
	for n := 3; n < 12; n++ {
		s := datasets.Sequence{Prompt: 1 + n/3}
		for range n {
			s.IDs = append(s.IDs, int32(random.IntN(97)))
		}
		seqs = append(seqs, s)
	}
	var losses []float64
	var grads [][]float64
	for _, limit := range []int{100, 20, 11} {
		s, err := NewStepper(placed, bank, start, c.objective())
		if err != nil {
			t.Fatal(err)
		}
		batches, err := datasets.Pack(seqs, limit, []int{limit})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Step(batches, 1, 1e-3)
		if err != nil {
			t.Fatal(err)
		}
		losses = append(losses, r.CE)
		grads = append(grads, kernels.Slice[float64](hostCopy(b, s.grads)))
	}
	for i := 1; i < len(losses); i++ {
		if !(math.Abs(losses[i]-losses[0]) <= 1e-12) {
			t.Errorf("cross-entropy in several batches %.15g, in one %.15g", losses[i], losses[0])
		}
		for k := range grads[i] {
			if !(math.Abs(grads[i][k]-grads[0][k]) <= 1e-12) {
				t.Fatalf("gradient element %d in several batches %.15g, in one %.15g", k, grads[i][k], grads[0][k])
			}
		}
	}
}
