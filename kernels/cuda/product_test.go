package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
)

// productTest is a switch linear of one shape in bf16, and its gradient towards the input.
type productTest struct {
	rows, width, out, columns int
	plus                      bool
}

// productTests have tiles of each width, more of them than run at once, and rows, columns and depths that end inside of one.
var productTests = []productTest{
	{1, 8, 8, 8, true},
	{1, 64, 576, 64, false},
	{77, 200, 136, 24, true},
	{129, 72, 264, 64, true},
	{300, 4096, 256, 64, true},
	{257, 328, 584, 96, false},
	{1000, 576, 1536, 64, true},
	{2049, 1032, 4104, 64, true},
	{2048, 520, 11008, 64, true}, // in two parts
	{8192, 576, 576, 64, true},   // several tiles of 192 columns for a block
	{513, 11008, 4096, 512, true},
}

// TestProducts compares elements of the results with sums in float64, and two runs with each other.
func TestProducts(t *testing.T) {
	for _, g := range testgpu.All() {
		for _, c := range productTests {
			if g.Emulated() && c.rows*c.width*c.out > 10e6 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%+v", g.Name, c), func(t *testing.T) { c.run(t, g.Open(t, false)) })
		}
	}
}

func (c productTest) run(t *testing.T, b kernels.Backend) {
	r := rand.New(rand.NewPCG(3, uint64(c.rows)))
	matrix := func(scale float64, shape ...int) (kernels.Tensor, func(i, j int) float64) {
		host := kernels.NewHost(kernels.BF16, shape...)
		x := kernels.Slice[kernels.BFloat16](host)
		for i := range x {
			x[i] = kernels.ToBFloat16(float32(scale * r.NormFloat64()))
		}
		placed, err := b.Place(host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Free(placed) })
		return placed, func(i, j int) float64 { return float64(x[i*shape[1]+j].Float32()) }
	}
	poison := func(shape ...int) kernels.Tensor {
		return place(t, b, kernels.BF16, nans(kernels.Len(shape...)), shape...)
	}

	x, xAt := matrix(1, c.rows, c.width)
	dy, dyAt := matrix(1, c.rows, c.out)
	w, wAt := matrix(1/math.Sqrt(float64(c.width)), c.out, c.width)
	down, downAt := matrix(1/math.Sqrt(float64(c.width)), c.width, c.columns)
	up, upAt := matrix(0.1, c.columns, c.out)
	du, duAt := matrix(1, c.rows, c.columns)
	plus, plusAt := matrix(1, c.rows, c.out)
	more, moreAt := matrix(1, c.rows, c.width)
	if !c.plus {
		zero := func(int, int) float64 { return 0 }
		plus, plusAt, more, moreAt = kernels.Tensor{}, zero, kernels.Tensor{}, zero
	}
	sw := kernels.Switch{A: down, B: up, Scale: 2}

	var before [][]float64
	for try := range 2 {
		y, u, dx := poison(c.rows, c.out), poison(c.rows, c.columns), poison(c.rows, c.width)
		b.SwitchLinear(y, u, x, x, w, kernels.Tensor{}, plus, sw)
		b.SwitchGradInput(dx, dy, w, du, down, more)
		got := [][]float64{fetch(b, y), fetch(b, dx), fetch(b, u)}
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		if try > 0 {
			for i, name := range []string{"y", "dx", "u"} {
				if !slices.Equal(got[i], before[i]) {
					t.Errorf("%s is another when the call is repeated", name)
				}
			}
			break
		}
		before = got
		// p is what the kernel makes of u as it is stored, rounded once more.
		p := func(i, k int) float64 {
			return float64(kernels.ToBFloat16(float32(2 * got[2][i*c.columns+k])).Float32())
		}
		c.compare(t, r, "u", got[2], c.columns, func(i, j int) expected {
			return bothProducts(0, c.width, 0, func(k int) float64 { return xAt(i, k) * downAt(k, j) }, nil)
		})
		c.compare(t, r, "y", got[0], c.out, func(i, j int) expected {
			return bothProducts(plusAt(i, j), c.width, c.columns, func(k int) float64 { return xAt(i, k) * wAt(j, k) },
				func(k int) float64 { return p(i, k) * upAt(k, j) })
		})
		c.compare(t, r, "dx", got[1], c.width, func(i, j int) expected {
			return bothProducts(moreAt(i, j), c.out, c.columns, func(k int) float64 { return dyAt(i, k) * wAt(k, j) },
				func(k int) float64 { return duAt(i, k) * downAt(j, k) })
		})
	}
}

// expected is an element: its value, the sum of the magnitudes of its terms, and that of the sums that it may be rounded between.
type expected struct{ want, terms, sums float64 }

// bothProducts is plus and two sums.
func bothProducts(plus float64, n, more int, a, b func(k int) float64) expected {
	one := func(int) float64 { return 1 }
	first, large := product(n, a, one)
	second, small := product(more, b, one)
	return expected{plus + first + second, math.Abs(plus) + large + small, math.Abs(plus) + math.Abs(first) + math.Abs(second)}
}

// compare looks at corners and at elements anywhere, and whether all were written. A sum may be rounded twice, by 2⁻⁸ at most.
func (c productTest) compare(t *testing.T, r *rand.Rand, name string, got []float64, cols int, want func(i, j int) expected) {
	t.Helper()
	at := [][2]int{{0, 0}, {0, cols - 1}, {c.rows - 1, 0}, {c.rows - 1, cols - 1}}
	for range 400 {
		at = append(at, [2]int{r.IntN(c.rows), r.IntN(cols)})
	}
	for _, p := range at {
		e := want(p[0], p[1])
		g := got[p[0]*cols+p[1]]
		if tol := 0x1p-7*e.sums + 0x1p-18*e.terms; !(math.Abs(g-e.want) <= tol) {
			t.Errorf("%s[%d %d] is %v, want %v ± %.3g", name, p[0], p[1], g, e.want, tol)
			return
		}
	}
	for i, g := range got {
		if math.IsNaN(g) {
			t.Errorf("%s[%d %d] was not written", name, i/cols, i%cols)
			return
		}
	}
}

// TestProductTiles wants every column in one of two parts, the first of them whole tiles, and what was found best on an H100.
func TestProductTiles(t *testing.T) {
	b := newBench(t, 132).b
	for _, rows := range []int{1, 300, 2048, 2304, 8192} {
		for cols := 8; cols < 12000; cols += 488 {
			first, width, rest := b.ProductTiles(rows, cols, 4096)
			if first < 1 || first > cols || first < cols && (first%width != 0 || rest == 0) {
				t.Errorf("%d x %d: %d columns in tiles of %d, the rest in tiles of %d", rows, cols, first, width, rest)
			}
		}
	}
	for _, c := range []struct{ rows, cols, depth, first, width, rest int }{
		{2048, 4096, 4096, 4096, 256, 0},
		{2048, 11008, 4096, 41 * 256, 256, 128},
		{8192, 576, 576, 576, 192, 0},
		{8192, 1536, 576, 1536, 256, 0},
		{8192, 192, 576, 192, 128, 0},
	} {
		if first, width, rest := b.ProductTiles(c.rows, c.cols, c.depth); first != c.first || width != c.width || rest != c.rest {
			t.Errorf("%d x %d x %d: %d columns in tiles of %d, the rest in tiles of %d; want %d, %d, %d",
				c.rows, c.cols, c.depth, first, width, rest, c.first, c.width, c.rest)
		}
	}
}
