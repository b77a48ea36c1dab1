package train

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"loratrain/checkpoints"
	"loratrain/datasets"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/router"
)

// randomSequences are of 3 to 11 tokens of the tiny model.
func randomSequences(random *rand.Rand, n int) []datasets.Sequence {
	seqs := make([]datasets.Sequence, n)
	for i := range seqs {
		ids := make([]int32, 3+random.IntN(9))
		for k := range ids {
			ids[k] = int32(random.IntN(97))
		}
		seqs[i] = datasets.Sequence{IDs: ids, Prompt: 1 + len(ids)/3}
	}
	return seqs
}

// randomSteps are steps of one to four batches of two sizes.
func randomSteps(t *testing.T, n int) [][]datasets.Batch {
	t.Helper()
	random := rand.New(rand.NewPCG(3, 5))
	steps := make([][]datasets.Batch, n)
	for i := range steps {
		var err error
		if steps[i], err = datasets.Pack(randomSequences(random, 1+i%4*2), 16, []int{9, 16}); err != nil {
			t.Fatal(err)
		}
	}
	return steps
}

// randomStepper trains the tiny model from a start in which every number matters.
func randomStepper(t *testing.T, b kernels.Backend, g router.Granularity, o Objective) *Stepper {
	t.Helper()
	_, placed := placeBase(t, b, filepath.Join(*golden, "tiny-llama"), 64)
	spec := model.AdapterSpec{Granularity: g, Experts: 4, Rank: 2, Shared: 3, Alpha: 4, Targets: model.AllTargets()}
	if g == router.None {
		spec.Experts, spec.Shared = 1, 0
	}
	bank := model.NewBank(placed.Arch, spec)
	random, start := rand.New(rand.NewPCG(1, 2)), kernels.NewHost(b.Param(), bank.Size())
	bank.Init(start, 3)
	for i := range start.Len() {
		if start.Type == kernels.F64 {
			kernels.Slice[float64](start)[i] += 0.05 * random.NormFloat64()
		} else {
			kernels.Slice[float32](start)[i] += float32(0.05 * random.NormFloat64())
		}
	}
	s, err := NewStepper(placed, bank, start, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func randomObjective() Objective {
	return Objective{Balance: 0.05, Dropout: 0.2, Seed: 9, AdamW: kernels.AdamW{Beta1: 0.9, Beta2: 0.99, Eps: 1e-8, Clip: 1}}
}

// sameTrainables compares what two steppers hold, bit by bit.
func sameTrainables(t *testing.T, what string, a, b *Stepper) {
	t.Helper()
	for _, c := range []struct {
		name string
		x, y kernels.Tensor
	}{{"parameters", a.Params, b.Params}, {"gradients", a.grads, b.grads}, {"first moments", a.M, b.M}, {"second moments", a.V, b.V}} {
		if !bytes.Equal(hostCopy(a.b, c.x).Mem.(kernels.Host), hostCopy(b.b, c.y).Mem.(kernels.Host)) {
			t.Errorf("%s: the %s differ", what, c.name)
		}
	}
}

// TestRecordedStepsAreTheSame takes the same steps at once, and recorded on a device that works later.
func TestRecordedStepsAreTheSame(t *testing.T) {
	for _, g := range router.Granularities() {
		t.Run(string(g), func(t *testing.T) {
			device := newLate(t, openBackend(t, cpu.Options{}))
			at, once := randomStepper(t, device, g, randomObjective()), randomStepper(t, openBackend(t, cpu.Options{}), g, randomObjective())
			var launched []*Pending
			var want []StepResult
			steps := randomSteps(t, 9)
			for i, batches := range steps {
				rate := 1e-2 / float64(i+1)
				r, err := once.Step(batches, i+1, rate)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, r)
				before := device.counts
				device.counts = map[string]int{"open": before["open"]}
				p, err := at.Launch(batches, i+1, rate)
				if err != nil {
					t.Fatal(err)
				}
				launched = append(launched, p)
				if n := device.counts["Run"]; n != len(batches) {
					t.Errorf("step %d: %d recordings were run for %d batches", i+1, n, len(batches))
				}
				for name, n := range device.counts {
					limit := map[string]int{
						"Run": len(batches), "Write": len(batches), "Fetch": len(batches) + 1, "Capture": 4, "Alloc": 5, "open": 8,
					}
					if n > limit[name] {
						t.Errorf("step %d: %d calls of %s, want at most %d", i+1, n, name, limit[name])
					}
				}
			}
			for i, p := range launched {
				r, err := p.Result()
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(r, want[i]) {
					t.Errorf("step %d: %+v, computed at once %+v", i+1, r, want[i])
				}
			}
			sameTrainables(t, "recorded", at, once)
			device.counts["Capture"] = 0
			if _, err := at.Step(steps[0], 10, 1e-3); err != nil || device.counts["Capture"] != 0 {
				t.Errorf("a step of sizes that were recorded is recorded %d times, %v", device.counts["Capture"], err)
			}
			if err := at.Rest(); err != nil || device.counts["open"] != 0 {
				t.Errorf("after Rest %d recordings are open, %v", device.counts["open"], err)
			}
			if _, err := at.Step(steps[1], 11, 1e-3); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestArenaThatMovesIsRecordedAgain runs a small program, then one that needs more memory, then the small one.
func TestArenaThatMovesIsRecordedAgain(t *testing.T) {
	device := newLate(t, openBackend(t, cpu.Options{}))
	at, once := randomStepper(t, device, router.Block, randomObjective()), randomStepper(t, openBackend(t, cpu.Options{}), router.Block, randomObjective())
	random := rand.New(rand.NewPCG(8, 8))
	for i, size := range []int{16, 12, 60, 12, 16, 12, 60} {
		seqs := randomSequences(random, 1)
		batches, err := datasets.Pack(seqs, size, []int{size})
		if err != nil {
			t.Fatal(err)
		}
		device.counts["Capture"] = 0
		for _, s := range []*Stepper{at, once} {
			if _, err := s.Step(batches, i+1, 1e-2); err != nil {
				t.Fatal(err)
			}
		}
		if want := []int{1, 1, 1, 1, 1, 0, 0}[i]; device.counts["Capture"] != want {
			t.Errorf("step %d of %d tokens was recorded %d times, want %d", i+1, size, device.counts["Capture"], want)
		}
		sameTrainables(t, fmt.Sprintf("step %d", i+1), at, once)
	}
}

func lateRun() []string {
	return []string{
		"train.max_steps=9", "train.batch=4", "train.save_every=4", "train.eval_every=3", "eval.limit=8", "adapter.dropout=0.1",
		"train.micro_tokens=128", "data.limit=20", "threads=1",
	}
}

// TestRunOnADevice trains where results come a step later: everything that a run writes is the same.
func TestRunOnADevice(t *testing.T) {
	whole, dir := filepath.Join(t.TempDir(), "at once"), filepath.Join(t.TempDir(), "later")
	if _, err := trainOn(t.Context(), whole, false, silent{}, lateRun()...); err != nil {
		t.Fatal(err)
	}
	device := newLate(t, openBackend(t, cpu.Options{Threads: 1}))
	launched, ahead := 0, 0
	look := func(r *run) { device.counts["Run"] = 0 }
	ctx, cancel := context.WithCancel(t.Context())
	_, err := trainAt(ctx, device, dir, false, watcher{step: func(s StepInfo) {
		if launched = device.counts["done Norm"]; launched != s.Step {
			t.Errorf("step %d is reported when %d steps are done", s.Step, launched)
		}
		if len(device.pending) > 0 {
			ahead++
		}
		if s.Step == 6 {
			cancel()
		}
	}}, look, lateRun()...)
	if !stoppedAt(err, 6, 9) {
		t.Fatalf("interrupted at step 6: %v", err)
	}
	if ahead < 3 {
		t.Errorf("%d steps were reported while the next was under way", ahead)
	}
	device = newLate(t, openBackend(t, cpu.Options{Threads: 1}))
	if _, err := trainAt(t.Context(), device, dir, true, silent{}, func(*run) {}, lateRun()...); err != nil {
		t.Fatal(err)
	}
	sameRun(t, whole, dir)
}

// lastSaved is the newest checkpoint of a run, in which no number may be what a failed device leaves.
func lastSaved(t *testing.T, dir string) checkpoints.Latest {
	t.Helper()
	latest, err := checkpoints.LatestState(filepath.Join(dir, "checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	zeros := true
	for _, x := range latest.Tensors {
		for i, v := range float64s(x) {
			if math.IsNaN(v) {
				t.Fatalf("the last checkpoint has a NaN: %s, element %d", x.Name, i)
			}
			zeros = zeros && v == 0
		}
	}
	if zeros {
		t.Error("the last checkpoint holds nothing but zeros")
	}
	return latest
}

// TestDeviceThatFails stops a run at the failing step with the device's error; the last checkpoint is whole.
func TestDeviceThatFails(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole")
	if _, err := trainOn(t.Context(), whole, false, silent{}, lateRun()...); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		operation string
		call      int // of the operation
		step      int // that it belongs to
		saved     int // the checkpoint before
	}{{"Step", 6, 6, 4}, {"Norm", 7, 7, 4}, {"AttentionGrad", 17, 9, 8}, {"Step", 8, 8, 4}, {"Zero", 5, 5, 4}} {
		t.Run(fmt.Sprintf("%s %d", c.operation, c.call), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			device := newLate(t, openBackend(t, cpu.Options{Threads: 1}))
			device.failing, device.failAt = c.operation, c.call
			var reported []int
			_, err := trainAt(t.Context(), device, dir, false, watcher{step: func(s StepInfo) { reported = append(reported, s.Step) }}, func(*run) {}, lateRun()...)
			if !errors.Is(err, errFault) || !strings.HasPrefix(err.Error(), fmt.Sprintf("step %d: ", c.step)) && !strings.HasPrefix(err.Error(), fmt.Sprintf("step %d: ", c.step+1)) {
				t.Fatalf("error %v, want that of the device at step %d or the next", err, c.step)
			}
			if slices.ContainsFunc(reported, func(n int) bool { return n > c.step }) {
				t.Errorf("steps %v were reported, the device failed at step %d", reported, c.step)
			}
			if latest := lastSaved(t, dir); latest.Step != c.saved {
				t.Errorf("the last checkpoint is of step %d, want %d", latest.Step, c.saved)
			}
			if info, err := ReadRunInfo(dir); err != nil || info.State != RunFailed || !strings.Contains(info.Error, errFault.Error()) {
				t.Errorf("run.json: state %q, error %q, %v", info.State, info.Error, err)
			}
			if _, err := trainAt(t.Context(), newLate(t, openBackend(t, cpu.Options{Threads: 1})), dir, true, silent{}, func(*run) {}, lateRun()...); err != nil {
				t.Fatalf("resumed: %v", err)
			}
			sameRun(t, whole, dir)
		})
	}
}

// TestDeviceThatFailsWhileSaving: what it did not send takes no checkpoint's place.
func TestDeviceThatFailsWhileSaving(t *testing.T) {
	whole, dir := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "run")
	if _, err := trainOn(t.Context(), whole, false, silent{}, lateRun()...); err != nil {
		t.Fatal(err)
	}
	device := newLate(t, openBackend(t, cpu.Options{Threads: 1}))
	_, err := trainAt(t.Context(), device, dir, false, watcher{step: func(s StepInfo) {
		if s.Step == 8 { // which is saved next, in three pieces
			device.failing, device.failAt = "Read", device.counts["done Read"]+2
		}
	}}, func(*run) {}, lateRun()...)
	if !errors.Is(err, errFault) || !strings.HasPrefix(err.Error(), "saving step 8: ") {
		t.Fatalf("error %v, want that of the device", err)
	}
	if latest := lastSaved(t, dir); latest.Step >= 8 {
		t.Errorf("step %d was saved", latest.Step)
	}
	if _, err := trainOn(t.Context(), dir, true, silent{}, lateRun()...); err != nil {
		t.Fatalf("resumed: %v", err)
	}
	sameRun(t, whole, dir)
}

// TestNonFiniteLossOnADevice names the step that it belongs to, though the next was launched already.
func TestNonFiniteLossOnADevice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	device := newLate(t, openBackend(t, cpu.Options{Threads: 1}))
	var r *run
	spoil := watcher{step: func(s StepInfo) {
		if s.Step == 6 { // step 7 is launched
			device.finish(len(device.pending))
			bad := hostCopy(r.Backend, r.stepper.Params)
			kernels.Slice[float32](bad)[0] = float32(math.Inf(1))
			device.Backend.Write(r.stepper.Params, bad)
		}
	}}
	settings := []string{"train.max_steps=50", "train.batch=2", "train.save_every=5", "eval.limit=2", "data.limit=4"}
	_, err := trainAt(t.Context(), device, dir, false, spoil, func(under *run) { r = under }, settings...)
	if err == nil || !strings.HasPrefix(err.Error(), "step 8: loss ") {
		t.Fatalf("error %v, want the loss of step 8", err)
	}
	if latest := lastSaved(t, dir); latest.Step != 5 {
		t.Errorf("the last checkpoint is of step %d, want 5", latest.Step)
	}
	lines, err := ReadMetrics(filepath.Join(dir, "metrics.jsonl"))
	if err != nil || len(lines) != 7 || lines[6].Step != 7 {
		t.Errorf("%d lines of metrics, want those of 7 steps (%v)", len(lines), err)
	}
}
