package cuda_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"loratrain/kernels"
)

// TestRouteOfManyExperts has more experts than the warps of a block take, rows that are read 16 bytes at a time, and tokens in
// several parts.
func TestRouteOfManyExperts(t *testing.T) {
	for _, float32Mode := range []bool{true, false} {
		b := openEmulated(t, float32Mode)
		for _, n := range [][3]int{{300, 264, 67}, {129, 520, 8}, {64, 8, 33}} {
			t.Run(fmt.Sprintf("%v %v", b.Float(), n), func(t *testing.T) {
				tokens, width, experts := n[0], n[1], n[2]
				h, router, dl := quarters(tokens*width), quarters(experts*width), quarters(tokens*experts)
				hs, rs, ds := place(t, b, b.Float(), h, tokens, width), place(t, b, b.Param(), router, experts, width), place(t, b, b.Param(), dl, tokens, experts)
				logits, dh := place(t, b, b.Param(), nans(len(dl)), tokens, experts), place(t, b, b.Float(), nans(len(h)), tokens, width)
				dr := place(t, b, b.Param(), router, experts, width)
				b.Route(logits, hs, rs)
				b.RouteGradInput(dh, ds, rs)
				b.RouteGradWeight(dr, ds, hs)
				if err := b.Sync(); err != nil {
					t.Fatal(err)
				}
				exact(t, "logits", fetch(b, logits), experts, kernels.F32, width, func(i, j, k int) float64 { return h[i*width+k] * router[j*width+k] })
				exact(t, "dh", fetch(b, dh), width, b.Float(), experts, func(i, j, k int) float64 { return dl[i*experts+k] * router[k*width+j] })
				got := fetch(b, dr)
				for i := range got {
					got[i] -= router[i]
				}
				exact(t, "dr", got, width, kernels.F32, tokens, func(i, j, k int) float64 { return dl[k*experts+i] * h[k*width+j] })
			})
		}
	}
}

// quarters are numbers of which float32 holds every sum of products exactly.
func quarters(n int) []float64 {
	r := rand.New(rand.NewPCG(5, uint64(n)))
	x := make([]float64, n)
	for i := range x {
		x[i] = float64(r.IntN(17)-8) / 4
	}
	return x
}

// exact compares a matrix with Σ_k term(i, j, k), rounded to its type.
func exact(t *testing.T, name string, got []float64, cols int, typ kernels.Type, depth int, term func(i, j, k int) float64) {
	t.Helper()
	wrong := 0
	for at := range got {
		i, j, want := at/cols, at%cols, 0.0
		for k := range depth {
			want += term(i, j, k)
		}
		if typ == kernels.BF16 {
			want = float64(kernels.ToBFloat16(float32(want)).Float32())
		}
		if got[at] == want {
			continue
		}
		if wrong++; wrong < 4 {
			t.Errorf("%s[%d, %d] is %v, want %v", name, i, j, got[at], want)
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d elements of %s are wrong", wrong, len(got), name)
	}
}
