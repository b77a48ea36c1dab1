package model

import (
	"errors"
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// randomAdapter is a random adapter of the tiny shape on a backend that counts.
func randomAdapter(t *testing.T, g router.Granularity, experts, rank int) (*Served, *counter) {
	t.Helper()
	b := newCounter(t, cpu.Options{Threads: 2})
	a, err := ShapeOf("tiny")
	must(t, err)
	base, err := PlaceRandom(b, a, 1, 16)
	must(t, err)
	spec := AdapterSpec{Granularity: g, Experts: experts, Rank: rank, Alpha: 2 * float64(rank), Targets: AllTargets()}
	s, err := ServeRandom(base, spec, 2)
	must(t, err)
	t.Cleanup(func() { // before the counter's
		s.Close()
		for _, x := range append(base.weights.matrices(), base.weights.Embed) {
			b.Free(x)
		}
	})
	return s, b
}

// matrices are the weights that PlaceRandom allocates for the tiny shape, but for the embedding.
func (w *Weights) matrices() (list []kernels.Tensor) {
	for _, l := range w.Layers {
		list = append(list, l.W[:]...)
	}
	return list
}

// TestServeRandom looks at every expert, router and row of the table.
func TestServeRandom(t *testing.T) {
	for _, g := range []router.Granularity{router.Token, router.Block, router.Layer, router.None} {
		t.Run(string(g), func(t *testing.T) {
			experts := 5
			if g == router.None {
				experts = 1
			}
			s, _ := randomAdapter(t, g, experts, 3)
			seen := map[float64]string{}
			check := func(name string, x kernels.Tensor, typ kernels.Type, shape ...int) {
				t.Helper()
				if x.Type != typ || !slices.Equal(x.Shape, shape) {
					t.Fatalf("%s is %v, want %v%v", name, x, typ, shape)
				}
				get, sum, squares := getter(x), 0.0, 0.0
				for i := range x.Len() {
					sum, squares = sum+get(i), squares+get(i)*get(i)
				}
				n := float64(x.Len())
				if mean, deviation := sum/n, math.Sqrt(squares/n); math.Abs(mean) > 0.02*6/math.Sqrt(n) || math.Abs(deviation-0.02) > 0.02*6/math.Sqrt(2*n) {
					t.Errorf("%s has mean %g and deviation %g, want 0 and 0.02", name, mean, deviation)
				}
				if other, ok := seen[sum]; ok {
					t.Errorf("%s has the numbers of %s", name, other)
				}
				seen[sum] = name
			}
			routes := func(name string, x kernels.Tensor, there bool, width int) {
				t.Helper()
				if x.None() == there {
					t.Errorf("%s: router %v, expected one: %v", name, x, there)
				} else if there {
					check(name+".router", x, kernels.F32, experts, width)
				}
			}
			arch := s.Base.Arch
			for l, layer := range s.layers {
				routes(blockRouter(l), layer.router, g == router.Block, arch.Width)
				for _, target := range AllTargets() {
					in, out := arch.Shape(target)
					name, e := Module(l, target), layer.linears[target]
					check(name+".A", e.a, kernels.BF16, experts, 3, in)
					check(name+".B", e.b, kernels.BF16, experts, 3, out)
					routes(name, e.router, g == router.Layer, in)
				}
			}
			routes(tokenRouter, s.router, g == router.Token, arch.Width)
			if g != router.Token {
				if !s.ids.None() || s.tableIDs != nil {
					t.Error("there is a routing table")
				}
				return
			}
			times := make([]int, experts)
			placed, gates := kernels.Slice[int32](s.ids), getter(s.gates)
			for id := range int32(arch.Vocab) {
				e, w := s.Table(id)
				if e[0] == e[1] || min(e[0], e[1]) < 0 || max(e[0], e[1]) >= 5 || w[0] < w[1] || w[1] < 0 || w[0]+w[1] != 1 {
					t.Fatalf("token %d has experts %v with %v", id, e, w)
				}
				for k := range router.Top {
					times[e[k]]++
					if placed[2*id+int32(k)] != e[k] || gates(int(2*id)+k) != float64(w[k]) {
						t.Fatalf("token %d: the backend's table has expert %d with %v, the host's %d with %v",
							id, placed[2*id+int32(k)], gates(int(2*id)+k), e[k], w[k])
					}
				}
			}
			for e, n := range times { // of 3,165 tokens, 2 of 5 each
				if n < 1100 || n > 1430 {
					t.Errorf("expert %d serves %d of %d tokens", e, n, arch.Vocab)
				}
			}
		})
	}
}

// TestServeRandomDecodes in every mode, where fused and merged mean the same.
func TestServeRandomDecodes(t *testing.T) {
	for _, g := range []router.Granularity{router.Token, router.Layer} {
		s, _ := randomAdapter(t, g, 4, 2)
		ids := randomIDs(3, s.Base.Arch.Vocab, 6)
		bare := mustFeed(t, mustDecoder(t, s.Base, nil, Fused, 8), ids...)
		var first []float64
		for _, mode := range Modes(g) {
			d := mustDecoder(t, s.Base, s, mode, 8)
			got := mustFeed(t, d, ids...)
			if distance(got, bare) < 1e-3 {
				t.Errorf("%s, %s: the experts change the logits by %g", g, mode, distance(got, bare))
			}
			if first == nil {
				first = got
			} else if mode == Merged {
				agree(t, string(mode), got, first, 1e-4)
			}
		}
	}
}

// TestServeRandomRefuses what it cannot make, and keeps nothing of it.
func TestServeRandomRefuses(t *testing.T) {
	s, b := randomAdapter(t, router.Token, 2, 1)
	held := len(b.held)
	spec := s.Spec
	spec.Shared = 1
	if _, err := ServeRandom(s.Base, spec, 1); err == nil || err.Error() != "a random adapter with a shared rank of 1, there are those without one" {
		t.Errorf("a shared rank: %v", err)
	}
	// The pool, 28 matrices of experts, the router and two tensors of the table.
	for _, n := range []int{0, 1, 2, 15, 28, 29, 30, 31} {
		b.left = n
		if _, err := ServeRandom(s.Base, s.Spec, 1); !errors.Is(err, errNoMemory) {
			t.Errorf("with %d allocations: %v", n, err)
		}
		if len(b.held) != held {
			t.Fatalf("with %d allocations, %d tensors are not given back", n, len(b.held)-held)
		}
	}
	b.left = 32
	other, err := ServeRandom(s.Base, s.Spec, 1)
	must(t, err)
	b.left = -1
	if slices.Equal(elements16(other.layers[1].linears[UpProj].a), elements16(s.layers[1].linears[UpProj].a)) || slices.Equal(other.tableIDs, s.tableIDs) {
		t.Error("another seed gives the same adapter")
	}
	other.Close()
	if len(b.held) != held {
		t.Errorf("%d tensors are not given back by Close", len(b.held)-held)
	}
}
