package cuda_test

import (
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// TestLinearInPanels leaves room for 16 of a weight's 40 rows in the workspace.
func TestLinearInPanels(t *testing.T) {
	const tokens, width, out = 9, 24, 40
	h := newBench(t, 3)
	used := cuda.WorkspaceBytes - 16*width*2
	x, dy, w := h.normal(kernels.BF16, tokens, width), h.normal(kernels.BF16, tokens, out), h.normal(kernels.F32, out, width)
	y, dx := h.poison(kernels.BF16, tokens, out), h.poison(kernels.BF16, tokens, width)
	h.b.LinearBehind(y.t, x.t, w.t, used)
	h.b.LinearGradBehind(dx.t, dy.t, w.t, used)
	if err := h.b.Sync(); err != nil {
		t.Fatal(err)
	}
	rounded := func(o, i int) float64 { return float64(kernels.ToBFloat16(float32(w.at(o, i))).Float32()) }
	h.compare("y", h.read(y), func(t, o int) (want, size float64) {
		return product(width, func(i int) float64 { return x.at(t, i) }, func(i int) float64 { return rounded(o, i) })
	})
	h.compare("dx", h.read(dx), func(t, i int) (want, size float64) {
		want, size = product(out, func(o int) float64 { return dy.at(t, o) }, func(o int) float64 { return rounded(o, i) })
		return want, size + 0x1p11*size // what the first panels gave was rounded before the others were added
	})
}

func TestPiecesCoverTheTokens(t *testing.T) {
	for _, n := range []struct{ tokens, columns int }{{1, 1}, {100, 8}, {40, 4 << 20}, {3, 64 << 20}, {70000, 256}} {
		next := 0
		cuda.Pieces(n.tokens, n.columns, func(from, count int) {
			if from != next || count < 1 || count > 1 && 4*count*n.columns > cuda.WorkspaceBytes/4 {
				t.Fatalf("%d tokens of %d columns: %d from %d on, expected a piece from %d on that fits", n.tokens, n.columns, count, from, next)
			}
			next += count
		})
		if next != n.tokens {
			t.Errorf("%d tokens of %d columns: %d done", n.tokens, n.columns, next)
		}
	}
}
