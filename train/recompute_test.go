package train

import (
	"reflect"
	"slices"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// TestRecomputingChangesNoBit takes the same steps with activations kept and computed again.
func TestRecomputingChangesNoBit(t *testing.T) {
	for _, g := range router.Granularities() {
		for _, dropout := range []float64{0, 0.3} {
			o := randomObjective()
			o.Dropout = dropout
			kept := randomStepper(t, openBackend(t, cpu.Options{}), g, o)
			o.Recompute = true
			again := randomStepper(t, openBackend(t, cpu.Options{}), g, o)
			for i, batches := range randomSteps(t, 6) {
				var results [2]StepResult
				for k, s := range []*Stepper{kept, again} {
					var err error
					if results[k], err = s.Step(batches, i+1, 1e-2); err != nil {
						t.Fatal(err)
					}
				}
				if !reflect.DeepEqual(results[0], results[1]) {
					t.Errorf("%s, dropout %g, step %d: %+v with activations kept, %+v computed again", g, dropout, i+1, results[0], results[1])
				}
			}
			sameTrainables(t, string(g)+", recomputed", kept, again)
		}
	}
}

// TestRecomputingRunsEachBlockAgain counts operations: every block's, but for its last product, and nothing twice more.
func TestRecomputingRunsEachBlockAgain(t *testing.T) {
	count := func(g router.Granularity, recompute bool) map[string]int {
		device := newLate(t, openBackend(t, cpu.Options{}))
		o := randomObjective()
		o.Dropout, o.Recompute = 0, recompute
		s := randomStepper(t, device, g, o)
		if _, err := s.Step(randomSteps(t, 1)[0], 1, 1e-2); err != nil {
			t.Fatal(err)
		}
		return device.counts
	}
	const layers = 2
	for _, g := range router.Granularities() {
		kept, again := count(g, false), count(g, true)
		for name, want := range map[string]int{
			"SwitchLinear":  6 * layers, // all but the last of each block
			"Attention":     layers,
			"Rotary":        2 * layers,
			"SwiGLU":        layers,
			"RMSNorm":       2 * layers,
			"AttentionGrad": 0, "SwitchGradA": 0, "Embed": 0, "CrossEntropy": 0, "Balance": 0, "SwitchGradInput": 0,
		} {
			if got := again["done "+name] - kept["done "+name]; got != want {
				t.Errorf("%s: %s runs %d times more, want %d", g, name, got, want)
			}
		}
		if got := kept["done RMSNorm"]; got != 2*layers+1 {
			t.Errorf("%s: RMSNorm runs %d times, want %d", g, got, 2*layers+1)
		}
	}
}

// TestRecomputingSavesMemory: with recomputation a block costs its input alone, so that many cost little more than few.
func TestRecomputingSavesMemory(t *testing.T) {
	bytes := func(layers int, recompute bool) int {
		a := smallShape(layers)
		s, _ := countedStepperOf(t, a, Objective{Balance: 1e-3, Dropout: 0.1, Recompute: recompute})
		activations, _, err := s.Plan([]int{512})
		if err != nil {
			t.Fatal(err)
		}
		return activations
	}
	width := smallShape(1).Width
	for _, c := range []struct {
		recompute bool
		most      int // bytes that a block more may take
	}{
		// Its input, and the product u of its last layer.
		{true, 512 * (width + 64) * kernels.BF16.Size()},
		// Its input and middle, and their norms; queries, keys, values, attention and its logarithms; gate, up and their product; seven times u.
		{false, 512 * (8*width + 3*4*width + 7*64 + 2*4) * kernels.BF16.Size()},
	} {
		each := (bytes(20, c.recompute) - bytes(4, c.recompute)) / 16
		if each > c.most*101/100 {
			t.Errorf("recompute %v: a block takes %d bytes, want at most %d", c.recompute, each, c.most)
		}
	}
	if sizes := []int{bytes(20, true), bytes(20, false)}; sizes[0]*5 > sizes[1] {
		t.Errorf("twenty blocks take %d bytes recomputed and %d kept: want a fifth at most", sizes[0], sizes[1])
	}
}

// TestSmallerBatchesFitTheArena runs batches of all sizes in the memory that was planned for the largest.
func TestSmallerBatchesFitTheArena(t *testing.T) {
	for _, recompute := range []bool{false, true} {
		s, b := countedStepperOf(t, smallShape(6), Objective{Balance: 1e-3, Dropout: 0.1, Recompute: recompute})
		sizes := []int{1, 2, 3, 7, 31, 32, 33, 63, 100, 128, 200, 255, 256}
		planned, _, err := s.Plan(sizes)
		if err != nil {
			t.Fatal(err)
		}
		before := b.bytes - s.programs[256].smallBytes(256)
		for _, n := range slices.Backward(sizes) {
			if _, err := s.program(n); err != nil {
				t.Fatal(err)
			}
			if err := s.Reserve(); err != nil {
				t.Fatal(err)
			}
		}
		if got := b.bytes - before; got != planned {
			t.Errorf("recompute %v: batches of %d sizes take %d bytes, planned were %d", recompute, len(sizes), got, planned)
		}
	}
}

// TestPlanIsWhatIsAllocated compares a plan with what the backend counts.
func TestPlanIsWhatIsAllocated(t *testing.T) {
	b := openBackend(t, cpu.Options{})
	account := b.(kernels.Accountant)
	s := randomStepper(t, b, router.Layer, randomObjective())
	before := account.PeakBytes()
	activations, _, err := s.Plan([]int{9, 16})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reserve(); err != nil {
		t.Fatal(err)
	}
	for i, batches := range randomSteps(t, 8) {
		if _, err := s.Step(batches, i+1, 1e-3); err != nil {
			t.Fatal(err)
		}
	}
	if got := account.PeakBytes() - before; got != activations {
		t.Errorf("%d bytes were allocated, %d planned", got, activations)
	}
}
