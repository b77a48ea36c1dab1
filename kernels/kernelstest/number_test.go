package kernelstest

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"loratrain/internal/gradcheck"
	"loratrain/kernels"
)

// TestBoundsHold evaluates formulas in float32 and finds them within the bounds that number keeps.
func TestBoundsHold(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		// Multiples of 2⁻²⁰, since a bound to first order says nothing about squares that are no longer normal numbers.
		x := rapid.SliceOfN(rapid.Map(rapid.IntRange(-30<<20, 30<<20), func(n int) float32 { return float32(n) / (1 << 20) }), 2, 300).Draw(r, "x")
		var total, exps float32
		for _, v := range x {
			total += v * v
			exps += float32(math.Exp(float64(v - 30)))
		}
		at := func(i int) number { return exact(float64(x[i])) }
		for _, c := range []struct {
			name string
			got  float32
			want number
		}{
			{"sum of squares", total, sum(len(x), func(i int) number { return at(i).times(at(i)) })},
			{"root", float32(math.Sqrt(float64(total))), sum(len(x), func(i int) number { return at(i).times(at(i)) }).sqrt()},
			{"sum of exponentials", exps, sum(len(x), func(i int) number { return at(i).shift(30).exp() })},
			{"logarithm", float32(math.Log(float64(exps))), sum(len(x), func(i int) number { return at(i).shift(30).exp() }).log()},
			{"quotient of differences", (x[0] - x[1]) / (x[0] + 31), at(0).minus(at(1)).over(at(0).plus(exact(31)))},
			{"sigmoid", float32(1 / (1 + math.Exp(-float64(x[0])))), at(0).sigmoid()},
		} {
			tol := tolerance(c.want, kernels.F32, kernels.F32, kernels.F32)
			if !agree(float64(c.got), c.want.v, tol) {
				r.Fatalf("%s is %v, want %v ± %v", c.name, c.got, c.want.v, tol)
			}
		}
	})
}

// TestDot holds the reference's inner loop against the formula that it stands for, bit for bit, bounds included.
func TestDot(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(0, 40).Draw(r, "n")
		vector := func(name string) []number {
			return rapid.SliceOfN(rapid.Custom(func(r *rapid.T) number {
				of := func(part string) float64 { return rapid.Float64Range(-1e30, 1e30).Draw(r, part) }
				if rapid.Bool().Draw(r, "exact") {
					return exact(of("v"))
				}
				return number{of("v"), math.Abs(of("acc")), math.Abs(of("sto"))}
			}), n, n).Draw(r, name)
		}
		x, y := vector("x"), vector("y")
		if got, want := dot(x, y), sum(n, func(i int) number { return x[i].times(y[i]) }); got != want {
			r.Fatalf("dot is %+v, the sum of products %+v", got, want)
		}
	})
}

// TestNearestTo holds the reference's rounding against the processor's and against [kernels.ToBFloat16].
func TestNearestTo(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		x := math.Float64frombits(rapid.Uint64().Draw(r, "x"))
		if i := rapid.IntRange(0, 4*len(awkward)-1).Draw(r, "awkward"); i < len(awkward) {
			x = awkward[i]
		} else if i < 2*len(awkward) {
			x = math.Ldexp(x, -900)
		}
		narrow := float32(x)
		for _, c := range []struct {
			of, got, want float64
			typ           kernels.Type
		}{
			{x, nearestTo(x, kernels.F32), float64(narrow), kernels.F32},
			{x, nearestTo(x, kernels.F64), x, kernels.F64},
			{float64(narrow), nearestTo(float64(narrow), kernels.BF16), float64(kernels.ToBFloat16(narrow).Float32()), kernels.BF16},
		} {
			if c.got != c.want && !(math.IsNaN(c.got) && math.IsNaN(c.want)) || math.Signbit(c.got) != math.Signbit(c.want) {
				r.Fatalf("%v is %v in %v, want %v", c.of, c.got, c.typ, c.want)
			}
		}
	})
}

func TestSumKeepsWhatIsSmall(t *testing.T) {
	values := []float64{1e16, 1, 1, 1, -1e16}
	if got := sum(len(values), func(i int) number { return exact(values[i]) }); got.v != 3 {
		t.Errorf("sum is %v, want 3", got.v)
	}
}

func TestAgree(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		got, want, tol float64
		agree          bool
	}{
		{1, 1, 0, true},
		{1.5, 1, 0.5, true},
		{1.5, 1, 0.4, false},
		{nan, nan, 0, true},
		{nan, 1, 1e9, false},
		{1, nan, nan, false},
		{inf, inf, nan, true},
		{-inf, inf, 1e9, false},
		{1e300, inf, 1e9, false},
		{inf, 1, 1e9, false},
		{nan, 0, inf, true}, // anything goes
	} {
		if got := agree(c.got, c.want, c.tol); got != c.agree {
			t.Errorf("agree(%v, %v, %v) is %v", c.got, c.want, c.tol, got)
		}
	}
}

// TestReferenceGradients holds the reference's own gradients against differences, by the suite's test for backends.
func TestReferenceGradients(t *testing.T) {
	testDifferences(t, naives[0])
	// The chain of two formulas, as a check of the check: d softmax(x)[0] / dx.
	x := []float64{0.3, -1, 2}
	p, _ := softmax(numbers(x))
	gradcheck.Check(t, "x", func(x []float64) float64 {
		p, _ := softmax(numbers(x))
		return p[0].v
	}, x, []float64{p[0].v * (1 - p[0].v), -p[0].v * p[1].v, -p[0].v * p[2].v}, 1e-10)
}
