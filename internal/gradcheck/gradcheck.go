// Package gradcheck compares gradients with central differences, in tests.
//
// Caveats. Differences say nothing where a function jumps or bends: stay away from ties of a gate. They need
// float64 from end to end; in float32 they drown in rounding.
package gradcheck

import (
	"math"
	"testing"
)

// reported is how many wrong elements of one gradient are named before the rest is only counted.
const reported = 3

// Check compares grad with the central differences of f at x, element by element, and reports to t where they
// differ by more than tol·max(1, |difference|). f must leave its argument alone; x is as it was afterwards. name says
// in failures what x is.
//
// The difference has four points, so its error is of the fourth order in a step of 2⁻¹⁰·max(1, |x|): about 1e-12
// of the fifth derivative and 1e-13 of the value.
func Check(t testing.TB, name string, f func(x []float64) float64, x, grad []float64, tol float64) {
	t.Helper()
	if len(x) != len(grad) {
		t.Errorf("%s: %d elements of gradient for %d of argument", name, len(grad), len(x))
		return
	}
	wrong := 0
	for i := range x {
		want := difference(f, x, i)
		// Written so that a NaN on either side fails.
		if math.Abs(grad[i]-want) <= tol*math.Max(1, math.Abs(want)) {
			continue
		}
		if wrong++; wrong <= reported {
			t.Errorf("%s[%d]: gradient %.12g, central difference %.12g (tolerance %.3g)", name, i, grad[i], want, tol)
		}
	}
	if wrong > reported {
		t.Errorf("%s: %d of %d elements of the gradient are wrong", name, wrong, len(x))
	}
}

// difference is the derivative of f along x[i] (Abramowitz and Stegun 25.3.6).
func difference(f func([]float64) float64, x []float64, i int) float64 {
	at := x[i]
	defer func() { x[i] = at }()
	h := math.Ldexp(math.Max(1, math.Abs(at)), -10)
	value := func(step float64) float64 {
		x[i] = at + step*h
		return f(x)
	}
	return (8*(value(1)-value(-1)) - (value(2) - value(-2))) / (12 * h)
}
