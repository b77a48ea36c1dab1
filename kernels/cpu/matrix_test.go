package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"loratrain/kernels"
)

func newTestEngine[E float](t testing.TB, o Options) *engine[E] {
	t.Helper()
	o.Float64 = kernels.TypeOf[E]() == kernels.F64
	b, err := New(o)
	if err != nil {
		if o.Matrix == "openblas" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b.(*engine[E])
}

func TestMultiply(t *testing.T) {
	for _, library := range []string{"openblas", "go"} {
		for _, threads := range []int{1, 3} {
			name := fmt.Sprintf("%s/%d threads", library, threads)
			t.Run("float32/"+name, func(t *testing.T) {
				testMultiply(t, newTestEngine[float32](t, Options{Matrix: library, Threads: threads}), 1e-6)
			})
			t.Run("float64/"+name, func(t *testing.T) {
				testMultiply(t, newTestEngine[float64](t, Options{Matrix: library, Threads: threads}), 1e-14)
			})
		}
	}
}

// testMultiply multiplies parts of larger arrays, turned and not, and looks at what lies around the result.
func testMultiply[E float](t *testing.T, e *engine[E], tolerance float64) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(rows, cols int, turned bool) matrix[E] {
		if turned {
			rows, cols = cols, rows
		}
		array := make([]E, (rows+3)*(cols+5))
		for i := range array {
			array[i] = E(r.NormFloat64())
		}
		m := dense(array, rows+3, cols+5).part(1, 1+rows, 2, 2+cols)
		if turned {
			return m.t()
		}
		return m
	}
	at := func(m matrix[E], i, j int) float64 {
		if m.turned {
			i, j = j, i
		}
		return float64(m.data[i*m.stride+j])
	}
	for _, size := range [][3]int{{1, 1, 1}, {3, 5, 7}, {40, 64, 33}, {17, 1, 19}, {64, 700, 130}, {130, 1300, 9}, {2, 0, 3}} {
		for turns := range 4 {
			a, b := random(size[0], size[1], turns&1 != 0), random(size[1], size[2], turns&2 != 0)
			products := make([]float64, size[0]*size[2])
			for i := range products {
				for k := range a.cols {
					products[i] += at(a, i/size[2], k) * at(b, k, i%size[2])
				}
			}
			for _, factor := range [][2]E{{1, 0}, {1, 1}, {0.5, 0}, {-2, 1}, {1, 0.25}} {
				c := random(size[0], size[2], false)
				want := make([]float64, len(c.data))
				for i := range c.data {
					want[i] = float64(c.data[i])
				}
				for i := range c.rows {
					for j := range c.cols {
						old := want[i*c.stride+j]
						want[i*c.stride+j] = float64(factor[0]) * products[i*c.cols+j]
						if factor[1] != 0 {
							want[i*c.stride+j] += float64(factor[1]) * old
						} else {
							c.data[i*c.stride+j] = E(math.NaN()) // must not be read
						}
					}
				}
				e.multiply(c, a, b, factor[0], factor[1])
				limit := tolerance * float64(size[1]+10)
				for i := range c.data {
					if d := math.Abs(float64(c.data[i]) - want[i]); !(d <= limit) {
						t.Fatalf("%v, turned %02b, alpha and beta %v: element (%d, %d) is %g, want %g",
							size, turns, factor, i/c.stride, i%c.stride, c.data[i], want[i])
					}
				}
			}
		}
	}
}

func BenchmarkMultiply(b *testing.B) {
	type shape struct{ rows, depth, cols int }
	for _, library := range []string{"openblas", "go"} {
		for _, s := range []shape{
			{128, 576, 576},
			{128, 576, 1536},
			{128, 1536, 576},
			{512, 576, 576},
			{512, 576, 1536},
			{512, 1536, 576},
			{512, 576, 64},
			{512, 64, 1536},
			{128, 576, 49152},
		} {
			for turns, form := range []string{"A·B", "Aᵀ·B", "A·Bᵀ"} {
				b.Run(fmt.Sprintf("%s/%dx%dx%d/%s", library, s.rows, s.depth, s.cols, form), func(b *testing.B) {
					e := newTestEngine[float32](b, Options{Matrix: library})
					x, y, z := benchMatrix(s.rows, s.depth, turns&1 != 0), benchMatrix(s.depth, s.cols, turns&2 != 0), benchMatrix(s.rows, s.cols, false)
					for b.Loop() {
						e.multiply(z, x, y, 1, 0)
					}
					b.ReportMetric(2*float64(s.rows)*float64(s.depth)*float64(s.cols)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "GFLOP/s")
				})
			}
		}
	}
}

func benchMatrix(rows, cols int, turned bool) matrix[float32] {
	data := make([]float32, rows*cols)
	for i := range data {
		data[i] = float32(i%17) / 16
	}
	if turned {
		return dense(data, cols, rows).t()
	}
	return dense(data, rows, cols)
}
