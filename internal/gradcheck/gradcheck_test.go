package gradcheck

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// recorder keeps what a check reports; the embedded nil TB catches any other use.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }

func wave(x []float64) float64 { return math.Sin(x[0])*math.Exp(x[1]) + 5*x[2]*x[2]*x[2] }

func waveGrad(x []float64) []float64 {
	return []float64{math.Cos(x[0]) * math.Exp(x[1]), math.Sin(x[0]) * math.Exp(x[1]), 15 * x[2] * x[2]}
}

func TestAcceptsRightGradient(t *testing.T) {
	x := []float64{0.3, -1.2, 4}
	before := slices.Clone(x)
	Check(t, "x", wave, x, waveGrad(x), 1e-9)
	if !slices.Equal(x, before) {
		t.Errorf("x is %v afterwards, was %v", x, before)
	}
}

func TestReportsWrongGradient(t *testing.T) {
	x := []float64{0.3, -1.2, 2}
	for _, c := range []struct {
		name  string
		spoil func(g []float64) []float64
		want  string
	}{
		{"off by a millionth", func(g []float64) []float64 { g[1] += 1e-6; return g }, "x[1]: gradient"},
		{"sign", func(g []float64) []float64 { g[2] = -g[2]; return g }, "x[2]: gradient -60, central difference 60"},
		{"NaN", func(g []float64) []float64 { g[0] = math.NaN(); return g }, "x[0]: gradient NaN"},
		{"too short", func(g []float64) []float64 { return g[:2] }, "2 elements of gradient for 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r recorder
			Check(&r, "x", wave, x, c.spoil(waveGrad(x)), 1e-9)
			if len(r.errors) != 1 || !strings.Contains(r.errors[0], c.want) {
				t.Errorf("reported %q, want one report with %q", r.errors, c.want)
			}
		})
	}
}

func TestReportsNaNFunction(t *testing.T) {
	var r recorder
	Check(&r, "x", func([]float64) float64 { return math.NaN() }, []float64{1}, []float64{0}, 1)
	if len(r.errors) != 1 {
		t.Errorf("reported %q, want one report", r.errors)
	}
}

func TestCountsTheRest(t *testing.T) {
	var r recorder
	Check(&r, "x", func(x []float64) float64 { return x[0] }, make([]float64, 9), slices.Repeat([]float64{7}, 9), 1e-9)
	if len(r.errors) != reported+1 || !strings.Contains(r.errors[reported], "9 of 9") {
		t.Errorf("reported %q, want %d elements and a count", r.errors, reported)
	}
}
