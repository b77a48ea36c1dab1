//go:build linux && (amd64 || arm64)

package emulator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// product is a case of TestMultiply: whole numbers, so that all sums are exact.
type product struct {
	a, b, c     kernels.Type
	aT, bT, cT  bool
	m, k, n     int
	gap         int
	alpha, beta float32
}

func TestMultiply(t *testing.T) {
	d := open(t, Forward)
	types := [][3]kernels.Type{{kernels.F32, kernels.F32, kernels.F32}, {kernels.BF16, kernels.BF16, kernels.BF16}, {kernels.BF16, kernels.BF16, kernels.F32}}
	for _, typ := range types {
		for turned := range 8 {
			for i, size := range [][3]int{{1, 1, 1}, {3, 5, 7}, {4, 9, 300}} {
				p := product{
					typ[0], typ[1], typ[2], turned&1 > 0, turned&2 > 0, turned&4 > 0, size[0], size[1], size[2],
					i, []float32{1, -0.5}[i%2], []float32{0, 2, 1}[i],
				}
				t.Run(fmt.Sprintf("%+v", p), func(t *testing.T) { p.run(t, d) })
			}
		}
	}
}

// stored is a matrix in memory, and its values as they are used. What lies between the rows is NaN.
func stored(t *testing.T, d *Device, typ kernels.Type, rows, cols, gap int, transposed bool, value func() float32) (cuda.Matrix, [][]float32) {
	used := make([][]float32, rows)
	for i := range used {
		used[i] = make([]float32, cols)
		for j := range used[i] {
			used[i][j] = value()
		}
	}
	m := cuda.Matrix{Type: typ, Rows: rows, Cols: cols, Transposed: transposed}
	if transposed {
		m.Rows, m.Cols = cols, rows
	}
	m.Stride = m.Cols + gap
	all := make([]float32, m.Rows*m.Stride)
	for i := range all {
		all[i] = float32(math.NaN())
		if r, c := i/m.Stride, i%m.Stride; c < m.Cols && transposed {
			all[i] = used[c][r]
		} else if c < m.Cols {
			all[i] = used[r][c]
		}
	}
	if typ == kernels.F32 {
		m.At = put(t, d, all...)
		return m, used
	}
	halves := make([]kernels.BFloat16, len(all))
	for i, x := range all {
		halves[i] = kernels.ToBFloat16(x)
	}
	m.At = put(t, d, halves...)
	return m, used
}

func (p product) run(t *testing.T, d *Device) {
	r := rand.New(rand.NewPCG(1, 2))
	small := func() float32 { return float32(r.IntN(7) - 3) }
	start := small
	if p.beta == 0 {
		start = func() float32 { return float32(math.NaN()) }
	}
	a, av := stored(t, d, p.a, p.m, p.k, p.gap, p.aT, small)
	b, bv := stored(t, d, p.b, p.k, p.n, p.gap, p.bT, small)
	c, cv := stored(t, d, p.c, p.m, p.n, p.gap, p.cT, start)
	d.Multiply(cuda.Product{C: c, A: a, B: b, Alpha: p.alpha, Beta: p.beta})
	all := c.Rows * c.Stride
	var got []float32
	if p.c == kernels.F32 {
		got = get[float32](t, d, c.At, all)
	} else {
		for _, x := range get[kernels.BFloat16](t, d, c.At, all) {
			got = append(got, x.Float32())
		}
	}
	for i := range c.Rows {
		for j := range c.Stride {
			x := got[i*c.Stride+j]
			if j >= c.Cols {
				if x == x {
					t.Fatalf("written between the rows: row %d, element %d", i, j)
				}
				continue
			}
			row, col := i, j
			if p.cT {
				row, col = j, i
			}
			var want float32
			for k := range p.k {
				want += av[row][k] * bv[k][col]
			}
			want *= p.alpha
			if p.beta != 0 {
				want += p.beta * cv[row][col]
			}
			if p.c == kernels.BF16 {
				want = kernels.ToBFloat16(want).Float32()
			}
			if x != want {
				t.Fatalf("element (%d, %d) is %v, want %v", row, col, x, want)
			}
		}
	}
}

func TestMultiplyRefuses(t *testing.T) {
	d := open(t, Forward)
	matrix := func(typ kernels.Type, rows, cols int) cuda.Matrix {
		return cuda.Matrix{At: alloc(t, d, rows*cols*typ.Size()), Type: typ, Rows: rows, Cols: cols, Stride: cols}
	}
	a, b, c := matrix(kernels.F32, 2, 3), matrix(kernels.F32, 3, 4), matrix(kernels.F32, 2, 4)
	half := matrix(kernels.BF16, 2, 3)
	outside, narrow, odd := a, a, a
	outside.Stride = 4
	narrow.Stride = 2
	odd.At++
	inside := c
	inside.At = b.At
	for what, p := range map[string]cuda.Product{
		"(2, 3) times (2, 3)":     {C: c, A: a, B: a},
		"types":                   {C: c, A: half, B: b},
		"memory of 24 bytes":      {C: c, A: outside, B: b},
		"Stride:2":                {C: c, A: narrow, B: b},
		"not aligned":             {C: c, A: odd, B: b},
		"where a factor does":     {C: inside, A: a, B: b},
		"near none":               {C: c, A: cuda.Matrix{Type: kernels.F32, Rows: 2, Cols: 3, Stride: 3}, B: b},
		"product (2, 3, 4) f32·f": {C: c, A: a, B: cuda.Matrix{Type: kernels.F32, Rows: 3, Cols: 4, Stride: 4}},
	} {
		d.Multiply(p)
		if err := d.Sync(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}
