package train

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
)

func TestAccuracy(t *testing.T) {
	for _, c := range []struct {
		right, n     int
		mean, stderr float64
	}{{0, 3, 0, 0}, {20, 20, 1, 0}, {7, 7, 1, 0}, {1, 1, 1, 0}, {1, 2, 0.5, 0.5}, {1, 5, 0.2, 0.2}} {
		mean, stderr := accuracy(c.right, c.n)
		if !(math.Abs(mean-c.mean) < 1e-15) || !(math.Abs(stderr-c.stderr) < 1e-15) {
			t.Errorf("accuracy(%d, %d) = %v, %v; want %v, %v", c.right, c.n, mean, stderr, c.mean, c.stderr)
		}
	}
}

func TestArgmaxTakesTheFirst(t *testing.T) {
	for _, c := range []struct {
		xs   []float64
		want int
	}{{[]float64{-1}, 0}, {[]float64{-2, -1, -1}, 1}, {[]float64{3, 3, 3}, 0}, {[]float64{1, 2, 3}, 2}} {
		if got := argmax(c.xs); got != c.want {
			t.Errorf("argmax(%v) = %d, want %d", c.xs, got, c.want)
		}
	}
}

func TestScoreJSON(t *testing.T) {
	for _, c := range []struct {
		score Score
		want  string
	}{
		{
			Score{Task: "t", Items: 2, Chance: 0.25, Majority: 0.5, Loss: 3},
			`{"task":"t","items":2,"acc":0,"acc_norm":0,"acc_stderr":0,"acc_norm_stderr":0,"chance":0.25,"majority":0.5,"loss":3}`,
		},
		{Score{Task: "p", Items: 2, Loss: 3, Truncated: 1}, `{"task":"p","items":2,"loss":3,"truncated":1}`},
	} {
		data, err := json.Marshal(c.score)
		if err != nil || string(data) != c.want {
			t.Errorf("got %s, want %s (%v)", data, c.want, err)
		}
		var back Score
		if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, c.score) {
			t.Errorf("%s came back as %+v (%v)", data, back, err)
		}
	}
}

func TestMeanMetric(t *testing.T) {
	a, b := Score{Chance: 0.5, Acc: 0.75, AccNorm: 0.25, Loss: 4}, Score{Chance: 0.5, Acc: 0.25, AccNorm: 0.75, Loss: 2}
	pairs := Score{Loss: 9}
	for _, c := range []struct {
		name   string
		scores []Score
		metric string
		want   float64
	}{
		{"one task", []Score{a}, MetricAcc, 0.75},
		{"mean of two", []Score{a, b}, MetricAccNorm, 0.5},
		{"pairs have no accuracy", []Score{a, pairs}, MetricAcc, 0.75},
		{"pairs alone", []Score{pairs}, MetricAccNorm, -9},
		{"loss", []Score{a, b, pairs}, MetricLoss, -5},
	} {
		if got := meanMetric(c.scores, c.metric); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
