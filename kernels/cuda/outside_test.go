package cuda_test

import (
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
)

// TestOutside gives operations ids, positions and places that are no row. The host cannot see them: the kernels must touch
// nothing outside, which the emulator would report, and NaN shows what was wrong with an input.
func TestOutside(t *testing.T) {
	b := openEmulated(t, true)
	place := func(host kernels.Tensor) kernels.Tensor {
		t.Helper()
		x, err := b.Place(host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Free(x) })
		return x
	}
	const rows, width = 3, 16
	ones := func(n int) kernels.Tensor {
		return place(kernels.FromSlice(slices.Repeat([]float32{1}, n*width), n, width))
	}
	ids := []int32{2, 3, -1, math.MaxInt32, math.MinInt32, 0}
	table, x, id := ones(rows), ones(len(ids)), place(kernels.FromSlice(ids, len(ids)))
	nan := float32(math.NaN())
	for _, c := range []struct {
		name string
		call func(y kernels.Tensor)
		want []float32 // the sum of each row of y, which is zero before
	}{
		{"Embed", func(y kernels.Tensor) { b.Embed(y, table, id) }, []float32{width, nan, nan, nan, nan, width}},
		// A table of ones makes (0, 2) of (1, 1).
		{"Rotary", func(y kernels.Tensor) { b.Rotary(y, x, table, id, false) }, []float32{width, nan, nan, nan, nan, width}},
		{"Append", func(y kernels.Tensor) { b.Append(y, x, id) }, []float32{width, 0, width}},
	} {
		y, got := place(kernels.NewHost(kernels.F32, len(c.want), width)), make([]float32, len(c.want)*width)
		c.call(y)
		b.Read(kernels.FromSlice(got, len(got)), y)
		if err := b.Sync(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for row, want := range c.want {
			sum := float32(0)
			for _, v := range got[row*width : (row+1)*width] {
				sum += v
			}
			if sum != want && !(sum != sum && want != want) {
				t.Errorf("%s of %v: row %d adds up to %v, want %v", c.name, ids, row, sum, want)
			}
		}
	}
}
