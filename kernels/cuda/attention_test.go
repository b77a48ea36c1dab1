package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// ranges is what the tokens of a batch see, four numbers a token.
type ranges []float64

// packed is sequences of these lengths end to end, whose tokens see themselves and at most window others before them.
func packed(window int, lengths ...int) (r ranges) {
	start := 0
	for _, n := range lengths {
		for t := start; t < start+n; t++ {
			r = append(r, float64(max(start, t-window)), float64(t+1), 0, 0)
		}
		start += n
	}
	return r
}

// sharing is a prompt, and continuations that see all of it and themselves.
func sharing(prompt int, lengths ...int) ranges {
	r := packed(math.MaxInt32, append([]int{prompt}, lengths...)...)
	for t := prompt; t < len(r)/4; t++ {
		r[4*t+3] = float64(prompt)
	}
	return r
}

// alike is n tokens that see the same.
func alike(n int, span ...float64) ranges { return slices.Repeat(span, n) }

// steps is n tokens that see width keys each, step after those of the last.
func steps(n, step, width int) (r ranges) {
	for t := range n {
		r = append(r, float64(t*step), float64(t*step+width), 0, 0)
	}
	return r
}

// attentionTest is a batch and its numbers: the suite's batches are small, and lie at odd addresses.
type attentionTest struct {
	name          string
	heads         kernels.Heads
	spans         ranges
	keys          int // 0: as many as tokens
	odd           bool
	sharp         bool   // scores have a deviation of 100
	plant         string // the array that has a NaN
	row           int    // and its row
	q, k, v, do   []float64
	tokens, count int
}

func (n *attentionTest) fill(typ kernels.Type) {
	r := rand.New(rand.NewPCG(7, 8))
	n.tokens, n.count = len(n.spans)/4, n.keys
	if n.count == 0 {
		n.count = n.tokens
	}
	normal := func(rows, heads int) []float64 {
		x := make([]float64, rows*heads*n.heads.Dim)
		for i := range x {
			x[i] = float64(float32(r.NormFloat64()))
			if typ == kernels.BF16 {
				x[i] = float64(kernels.ToBFloat16(float32(x[i])).Float32())
			}
		}
		return x
	}
	n.q, n.do = normal(n.tokens, n.heads.Query), normal(n.tokens, n.heads.Query)
	n.k, n.v = normal(n.count, n.heads.KV), normal(n.count, n.heads.KV)
	width, x := n.heads.KV*n.heads.Dim, n.k
	if n.sharp {
		for i := range n.q {
			n.q[i] *= 128
		}
	}
	switch n.plant {
	case "":
		return
	case "q", "do":
		width, x = n.heads.Query*n.heads.Dim, map[string][]float64{"q": n.q, "do": n.do}[n.plant]
	case "v":
		x = n.v
	}
	x[n.row*width+n.heads.Dim-1] = math.NaN()
}

// placed is place, at an address that only suits one element if odd.
func (n *attentionTest) placed(t *testing.T, b kernels.Storage, typ kernels.Type, x []float64, shape ...int) kernels.Tensor {
	t.Helper()
	if !n.odd {
		return place(t, b, typ, x, shape...)
	}
	return place(t, b, typ, slices.Concat(nans(1), x), len(x)+1).View(1, shape...)
}

// attentionResults is the outputs of Attention and its gradient.
type attentionResults struct{ o, lse, dq, dk, dv []float64 }

// run does both operations on b. The gradient gets the forward results of given, if there are any.
func (n *attentionTest) run(t *testing.T, b kernels.Backend, float kernels.Type, given *attentionResults) attentionResults {
	h := n.heads
	put := func(x []float64, rows, heads int) kernels.Tensor { return n.placed(t, b, float, x, rows, heads*h.Dim) }
	q, do := put(n.q, n.tokens, h.Query), put(n.do, n.tokens, h.Query)
	k, v := put(n.k, n.count, h.KV), put(n.v, n.count, h.KV)
	o, dq := put(nans(len(n.q)), n.tokens, h.Query), put(nans(len(n.q)), n.tokens, h.Query)
	dk, dv := put(nans(len(n.k)), n.count, h.KV), put(nans(len(n.k)), n.count, h.KV)
	lse := n.placed(t, b, b.Param(), nans(n.tokens*h.Query), n.tokens, h.Query)
	spans := place(t, b, kernels.I32, n.spans, n.tokens, 4)
	b.Attention(o, lse, q, k, v, spans, h)
	got := attentionResults{o: fetch(b, o), lse: fetch(b, lse)}
	if given != nil {
		b.Write(o, hostTensor(float, given.o, o.Shape...))
		b.Write(lse, hostTensor(b.Param(), given.lse, lse.Shape...))
	}
	b.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans, h)
	got.dq, got.dk, got.dv = fetch(b, dq), fetch(b, dk), fetch(b, dv)
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	return got
}

// compare wants numbers that agree up to a share of what is typical, and NaN in the same places.
func (n *attentionTest) compare(t *testing.T, name string, got, want []float64, cols int, share float64) {
	t.Helper()
	var size, count float64
	for _, w := range want {
		if w-w == 0 {
			size += w * w
			count++
		}
	}
	tol, wrong := share*math.Sqrt(size/max(count, 1)), 0
	for i, w := range want {
		if math.Abs(got[i]-w) <= tol+share*math.Abs(w) || got[i] == w || math.IsNaN(got[i]) && math.IsNaN(w) {
			continue
		}
		if wrong++; wrong <= 3 {
			t.Errorf("%s[%d %d] is %v, want %v ± %.3g", name, i/cols, i%cols, got[i], w, tol+share*math.Abs(w))
		}
	}
	if wrong > 3 {
		t.Errorf("%d of %d elements of %s are wrong", wrong, len(want), name)
	}
}

// decoded is the last tokens of sequences of so many, each in as many rows of a cache as there is room for; none of 0.
func decoded(room int, lengths ...int) ranges {
	var r ranges
	for s, n := range lengths {
		r = append(r, 0, 0, float64(s*room), float64(s*room+n))
	}
	return r
}

func attentionTests() []attentionTest {
	all := math.MaxInt32
	h := kernels.Heads{Query: 2, KV: 1, Dim: 64}
	tests := []attentionTest{
		{name: "9 heads", heads: kernels.Heads{Query: 9, KV: 3, Dim: 64}, spans: packed(all, 1, 63, 64, 65)},
		{name: "heads of 6", heads: kernels.Heads{Query: 3, KV: 1, Dim: 6}, spans: packed(all, 130)},
		{name: "heads of 24", heads: kernels.Heads{Query: 2, KV: 2, Dim: 24}, spans: packed(all, 65, 1, 63)},
		{name: "shared prompt", heads: kernels.Heads{Query: 2, KV: 1, Dim: 40}, spans: sharing(70, 33, 1, 60)},
		{name: "prompts of heads of 72", heads: kernels.Heads{Query: 2, KV: 1, Dim: 72}, spans: sharing(130, 5, 64)},
		{name: "window", heads: kernels.Heads{Query: 2, KV: 2, Dim: 128}, spans: packed(40, 130, 64)},
		{name: "heads of 256", heads: kernels.Heads{Query: 2, KV: 1, Dim: 256}, spans: packed(all, 100, 30)},
		{name: "all see all", heads: kernels.Heads{Query: 2, KV: 1, Dim: 16}, spans: alike(200, 0, 200, 0, 0)},
		{name: "all see both", heads: h, spans: alike(64, 130, 300, 0, 129), keys: 300},
		{name: "all but the edges of tiles", heads: h, spans: alike(64, 129, 255, 1, 127), keys: 256},
		{name: "starts apart", heads: h, spans: slices.Concat(alike(16, 0, 100, 100, 230), alike(16, 1, 100, 101, 230)), keys: 230},
		{name: "second of a tile", heads: h, spans: packed(all, 2, 130)},
		{name: "blind among seers", heads: h, spans: slices.Concat(alike(20, 0, 130, 0, 0), alike(12, 0, 0, 0, 0), alike(70, 0, 130, 0, 0)), keys: 130},
		{name: "tiles of the blind", heads: h, spans: slices.Concat(packed(all, 70), alike(150, 0, 0, 0, 0), alike(5, 0, 70, 0, 0)), keys: 70},
		{
			name: "tiles of the blind in large heads", heads: kernels.Heads{Query: 2, KV: 2, Dim: 128},
			spans: slices.Concat(alike(140, 0, 0, 0, 0), alike(64, 3, 140, 150, 200)), keys: 204,
		},
		{
			name: "seers in far tiles", heads: kernels.Heads{Query: 2, KV: 1, Dim: 40}, keys: 150, // more tiles between than a warp has lanes
			spans: slices.Concat(packed(all, 70), alike(64*33, 130, 150, 0, 0), packed(all, 20), alike(20, 60, 70, 0, 9)),
		},
		{name: "low scores behind a hidden tile", heads: h, spans: steps(64, 4, 2), keys: 256, sharp: true},
		{name: "one query", heads: kernels.Heads{Query: 3, KV: 1, Dim: 128}, spans: alike(1, 3, 450, 0, 0), keys: 500},
		{name: "decoded together", heads: kernels.Heads{Query: 4, KV: 2, Dim: 128}, spans: decoded(300, 300, 33, 65, 0, 299, 64), keys: 1800},
		{name: "64 decoded together", heads: h, spans: decoded(9, slices.Repeat([]int{9, 0, 3, 1}, 16)...), keys: 576},
		{name: "decoded at odd addresses", heads: kernels.Heads{Query: 3, KV: 1, Dim: 24}, spans: decoded(70, 70, 1, 66), keys: 210, odd: true},
		{name: "odd addresses", heads: h, spans: packed(all, 70, 64), odd: true},
		{name: "odd size", heads: kernels.Heads{Query: 2, KV: 1, Dim: 97}, spans: packed(all, 70)},
		{
			name: "later half", heads: kernels.Heads{Query: 1, KV: 1, Dim: 8},
			spans: slices.Concat(alike(64*40, 0, 0, 0, 0), packed(all, 20)), // more tiles than a warp has lanes
		},
		{
			name: "outside", heads: h, keys: 8, // seen are the rows that there are
			spans: ranges{-5, 3, 0, 0, 2, 1e9, 0, 0, -9, -5, 0, 0, 20, 30, 0, 1, -1 << 31, math.MaxInt32, 0, 0},
		},
	}
	for _, plant := range []string{"q", "k", "v", "do"} {
		spans := slices.Concat(packed(all, 5, 1, 70), alike(3, 0, 0, 0, 0), packed(all, 9))
		for t := 79; t < 88; t++ {
			spans[4*t], spans[4*t+1] = spans[4*t]+79, spans[4*t+1]+79
		}
		for _, row := range []int{2, 40, 77} { // the last sees nothing, and nobody sees it
			tests = append(tests, attentionTest{
				name: fmt.Sprintf("NaN in %s %d", plant, row), heads: h, spans: spans, plant: plant, row: row,
			})
		}
	}
	for _, plant := range []string{"q", "k", "v", "do"} {
		tests = append(tests, attentionTest{
			name: "NaN in " + plant + " of heads of 128", heads: kernels.Heads{Query: 2, KV: 1, Dim: 128}, spans: packed(all, 70, 20), plant: plant, row: 75,
		})
	}
	tests = append(tests, attentionTest{
		name: "NaN in v of large heads", heads: kernels.Heads{Query: 1, KV: 1, Dim: 200}, spans: packed(all, 70), plant: "v", row: 33,
	})
	return tests
}

// TestAttention compares with the CPU in float64.
func TestAttention(t *testing.T) {
	reference, err := cpu.New(cpu.Options{Float64: true, Matrix: "go"})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range testgpu.All() {
		for _, float32Mode := range []bool{false, true} {
			for _, n := range attentionTests() {
				t.Run(fmt.Sprintf("%s/float32 %v/%s", g.Name, float32Mode, n.name), func(t *testing.T) {
					n.check(t, g.Open(t, float32Mode), reference)
				})
			}
		}
	}
}

func (n *attentionTest) check(t *testing.T, b, reference kernels.Backend) {
	share := map[kernels.Type]float64{kernels.BF16: 0.03, kernels.F32: 3e-5}[b.Float()]
	if n.sharp { // rounding a score changes its weight by as much
		share = max(share, 0.01)
	}
	n.fill(b.Float())
	got := n.run(t, b, b.Float(), nil)
	inside := *n
	inside.spans = slices.Clone(n.spans)
	for i := range inside.spans { // the CPU panics
		inside.spans[i] = min(max(inside.spans[i], 0), float64(n.count))
	}
	want := inside.run(t, reference, kernels.F64, &got)
	wide, narrow := n.heads.Query*n.heads.Dim, n.heads.KV*n.heads.Dim
	n.compare(t, "o", got.o, want.o, wide, share)
	n.compare(t, "lse", got.lse, want.lse, n.heads.Query, share)
	n.compare(t, "dq", got.dq, want.dq, wide, share)
	n.compare(t, "dk", got.dk, want.dk, narrow, share)
	n.compare(t, "dv", got.dv, want.dv, narrow, share)
}

// TestAttentionHeadSize asks for heads that no kernel in bf16 is made for.
func TestAttentionHeadSize(t *testing.T) {
	b := openEmulated(t, false)
	n := attentionTest{heads: kernels.Heads{Query: 1, KV: 1, Dim: 257}, spans: packed(1, 2)}
	n.fill(kernels.BF16)
	defer func() {
		if p := fmt.Sprint(recover()); !strings.Contains(p, "257") {
			t.Errorf("the panic is %q, expected one that names the 257 elements", p)
		}
	}()
	n.run(t, b, kernels.BF16, nil)
}

// TestAttentionRepeats wants the same bits of the same call, with what others left in the workspace between.
func TestAttentionRepeats(t *testing.T) {
	for _, g := range testgpu.All() {
		t.Run(g.Name, func(t *testing.T) {
			b := g.Open(t, false)
			n := attentionTest{heads: kernels.Heads{Query: 2, KV: 1, Dim: 64}, spans: sharing(70, 33, 1)}
			n.fill(kernels.BF16)
			first := n.run(t, b, kernels.BF16, nil)
			other := attentionTest{heads: kernels.Heads{Query: 3, KV: 3, Dim: 32}, spans: packed(3, 90)}
			other.fill(kernels.BF16)
			other.run(t, b, kernels.BF16, nil)
			second := n.run(t, b, kernels.BF16, nil)
			for name, x := range map[string][2][]float64{
				"o": {first.o, second.o}, "lse": {first.lse, second.lse},
				"dq": {first.dq, second.dq}, "dk": {first.dk, second.dk}, "dv": {first.dv, second.dv},
			} {
				if !slices.Equal(x[0], x[1]) {
					t.Errorf("%s is another when the call is repeated", name)
				}
			}
		})
	}
}
