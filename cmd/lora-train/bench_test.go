package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/model"
)

// TestBenchTrain runs the measurement on the processor, as long as people's, and holds its figures against each other.
func TestBenchTrain(t *testing.T) {
	defer func(was time.Duration) { enough = was }(enough)
	enough = 20 * time.Millisecond
	var out, progress bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs([]string{
		"bench", "train", "--shape", "tiny", "--batch", "2", "--length", "16", "--experts", "4", "--rank", "2", "--steps", "7", "--warmup", "2",
		"--backend", "cpu", "--profile", "--json", "-", "--quiet",
	})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	if progress.Len() > 0 {
		t.Errorf("standard error: %s", progress.String())
	}
	var r trainBench
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]float64{
		"tokens a second": r.TokensPerSecond.Min, "ms a step": r.StepMS.Min, "peak": float64(r.PeakBytes), "GEMM": r.Rates.Flops, "copy": r.Rates.Bytes,
		"share": r.Share, "loss": r.Loss, "weights": r.Seconds.Weights, "first step": r.Seconds.First, "since start": r.Seconds.SinceStart,
	} {
		if !(x > 0) || math.IsInf(x, 0) {
			t.Errorf("%s is %v", name, x)
		}
	}
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > 1e-9*math.Abs(want) {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	// Two layers of 4·128², 2·128·64 for the keys' and values' part, 3·128·384, and the output of which a sixteenth has no target.
	near("frozen flops", r.FlopsPerToken.Frozen, 4*(2*(2*128*128+2*128*64+3*128*384)+128*3165*15./16))
	near("trained", float64(r.Trainable), 2*8*(2*(128+128)+2*(128+64)+3*(128+384))+4*128)
	near("adapter flops", r.FlopsPerToken.Adapter, 6*float64(r.Trainable))
	near("attention flops", r.FlopsPerToken.Attention, 12*2*128*17/2.)
	near("flops", r.FlopsPerToken.Total, r.FlopsPerToken.Frozen+r.FlopsPerToken.Adapter+r.FlopsPerToken.Attention)
	near("share", r.Share, r.FlopsPerToken.Total*r.TokensPerSecond.Median/r.Rates.Flops)
	near("ms a step", r.StepMS.Median, 1e3*2*16/r.TokensPerSecond.Median)
	if s := r.TokensPerSecond; s.Min > s.Median || s.Median > s.Max {
		t.Errorf("tokens a second: %+v", s)
	}
	// The random weights, and what is trained with its gradients and moments, must have been allocated.
	if least := 2*798976 + 4*4*r.Trainable; r.PeakBytes < least {
		t.Errorf("the peak is %d, less than the %d of the weights", r.PeakBytes, least)
	}
	ops := map[string]int{}
	for _, row := range r.Profile.Operations {
		ops[row.Op] = row.Calls
		if row.Calls < 1 || row.Seconds <= 0 || row.Bytes <= 0 || row.Limit <= 0 {
			t.Errorf("profile: %+v", row)
		}
	}
	for op, calls := range map[string]int{"SwitchLinear": 14, "Attention": 2, "AttentionGrad": 2, "SwitchGradA": 14, "CrossEntropy": 1, "Step": 1} {
		if ops[op] != calls {
			t.Errorf("profile: %d calls of %s, want %d", ops[op], op, calls)
		}
	}
}

// TestRandomBatches looks at the tokens of a measurement: packed without padding, each the target of the one before.
func TestRandomBatches(t *testing.T) {
	batches, err := randomBatches(50, 3, 8)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range batches {
		if b.Tokens != 24 || len(b.IDs) != 24 || b.TargetCount != 21 {
			t.Fatalf("%d tokens in %d rows, %d targets", b.Tokens, len(b.IDs), b.TargetCount)
		}
		for i, id := range b.IDs {
			if id < 0 || id >= 50 || b.Pos[i] != int32(i%8) {
				t.Errorf("token %d is %d at position %d", i, id, b.Pos[i])
			}
			if i%8 < 7 && b.Targets[i] != b.IDs[i+1] {
				t.Errorf("the target of token %d is %d, want %d", i, b.Targets[i], b.IDs[i+1])
			}
		}
	}
	if slices.Equal(batches[0].IDs, batches[1].IDs) {
		t.Error("two batches are the same")
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		xs   []float64
		want spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{5, 1}, spread{3, 1, 5}},
		{[]float64{9, 2, 4}, spread{4, 2, 9}},
	} {
		if got := spreadOf(c.xs); got != c.want {
			t.Errorf("%v: got %v, want %v", c.xs, got, c.want)
		}
	}
}

// TestLinears of a model whose layers have few sizes.
func TestLinears(t *testing.T) {
	a, err := model.ShapeOf("llama2-7b")
	if err != nil {
		t.Fatal(err)
	}
	want := []linear{
		{"q_proj, k_proj, v_proj, o_proj", 4096, 4096},
		{"gate_proj, up_proj", 4096, 11008},
		{"down_proj", 11008, 4096},
		{"output", 4096, 32000},
	}
	if got := linearsOf(a); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// slow is a backend that counts what is asked of it.
type slow struct {
	kernels.Backend
	synced int
	fail   error
}

func (s *slow) Sync() error {
	s.synced++
	return s.fail
}

// TestTimed drains the backend in every window, and tells of its failures.
func TestTimed(t *testing.T) {
	b, calls := &slow{}, 0
	seconds, err := timed(b, func() { calls++ })
	if err != nil || seconds <= 0 || calls < 100 || b.synced != 5 {
		t.Errorf("%v s of %d calls, %d times waited, %v", seconds, calls, b.synced, err)
	}
	b.fail = errDevice
	if _, err := timed(b, func() {}); err != errDevice {
		t.Errorf("got %v, want %v", err, errDevice)
	}
}

var errDevice = errors.New("the device failed")

// TestBenchProfileOfDevice measures a backend that has kernels to tell of: every launch belongs to an operation, and all of an
// operation's time is that of its launches.
func TestBenchProfileOfDevice(t *testing.T) {
	b := testgpu.All()[0].Open(t, false)
	was := openCUDA
	defer func() { openCUDA = was }()
	openCUDA = func(int, bool) (kernels.Backend, error) { return b, nil }
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs([]string{
		"bench", "train", "--batch", "1", "--length", "8", "--experts", "4", "--rank", "2", "--steps", "1", "--warmup", "1",
		"--backend", "cuda", "--profile", "--json", "-", "--quiet",
	})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	var r trainBench
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	launched := map[string]float64{}
	for _, k := range r.Profile.Kernels {
		if k.Launches < 1 || k.Seconds <= 0 {
			t.Errorf("%+v", k)
		}
		launched[k.Op] += k.Seconds
	}
	for _, row := range r.Profile.Operations {
		if math.Abs(launched[row.Op]-row.Seconds) > 1e-9 {
			t.Errorf("%s took %v s, its kernels %v s", row.Op, row.Seconds, launched[row.Op])
		}
	}
	for _, op := range []string{"SwitchLinear", "SwitchGradA", "CrossEntropy", "Step"} {
		if launched[op] == 0 {
			t.Errorf("%s launched nothing", op)
		}
	}
}
