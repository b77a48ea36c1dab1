package train

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestLearningRate(t *testing.T) {
	for _, test := range []struct {
		name  string
		s     Schedule
		total int
		want  []float64
	}{
		{"linear", Schedule{8, 2, ScheduleLinear}, 10, []float64{4, 8, 8, 7, 6, 5, 4, 3, 2, 1}},
		{"linear without warmup", Schedule{4, 0, ScheduleLinear}, 4, []float64{4, 3, 2, 1}},
		{"a warmup of two and a half steps stays below the peak", Schedule{5, 2.5, ScheduleLinear}, 5, []float64{2, 4, 5, 4, 2}},
		{"cosine", Schedule{2, 1, ScheduleCosine}, 5, []float64{2, 2, 1 + math.Sqrt2/2, 1, 1 - math.Sqrt2/2}},
		{"constant", Schedule{3, 3, ScheduleConstant}, 5, []float64{1, 2, 3, 3, 3}},
		{"all warmup", Schedule{4, 4, ScheduleLinear}, 4, []float64{1, 2, 3, 4}},
		{"one step", Schedule{4, 0.1, ScheduleLinear}, 1, []float64{4}},
	} {
		for step, want := range test.want {
			if got := test.s.LearningRate(step, test.total); math.Abs(got-want) > 1e-12 {
				t.Errorf("%s: step %d of %d: got %v, want %v", test.name, step, test.total, got, want)
			}
		}
	}
}

// The recipe whose accuracies are published with this method: lr·min((step+1)/W, max(0, (T-step)/(T-W))).
func TestLearningRateIsTheSmallerOfTwoLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(2, 10000).Draw(t, "total")
		warmup := float64(rapid.IntRange(1, total-1).Draw(t, "warmup"))
		step := rapid.IntRange(0, total-1).Draw(t, "step")
		want := 1e-3 * min(float64(step+1)/warmup, float64(total-step)/(float64(total)-warmup))
		if got := (Schedule{1e-3, warmup, ScheduleLinear}).LearningRate(step, total); math.Abs(got-want) > 1e-15 {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestConfigLearningRates(t *testing.T) {
	cfg := Default()
	if got, want := cfg.Train.LearningRates(70), (Schedule{1e-3, 7, ScheduleLinear}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
