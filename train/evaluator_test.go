package train

import (
	"math"
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
