package model

import (
	"fmt"
	"slices"
	"testing"

	"loratrain/internal/graph"
	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// inDense is a served adapter with the dense form of its experts, whatever its backend prefers.
func inDense(t *testing.T, s *Served) *Served {
	t.Helper()
	at := *s
	at.own, at.layers = nil, slices.Clone(s.layers)
	must(t, at.placeDense())
	t.Cleanup(at.Close)
	return &at
}

// passed is the states and the last token's experts of a pass over tokens.
func passed(t *testing.T, s *Served, ids []int32, tabled, dense bool) (hidden []float64, experts [][]int32) {
	t.Helper()
	b := s.Base.Backend
	x := graph.NewImmediate(b)
	defer x.Close()
	must(t, graph.Catch(b, func() {
		p := s.pass(x, ids, tabled)
		if p.dense != dense {
			t.Errorf("%d tokens: dense %v, want %v", len(ids), p.dense, dense)
		}
		h := hiddenOf(x, s.Base.Bind(x), p, ids)
		host := kernels.NewHost(h.Type, h.Shape...)
		b.Read(host, h.Tensor())
		for i, get := 0, getter(host); i < host.Len(); i++ {
			hidden = append(hidden, get(i))
		}
		experts = p.choicesOf(b, len(ids)-1)
		p.Release(x)
		x.Done(h)
	}))
	return hidden, experts
}

// All experts behind gates are each token's own experts, for every granularity, with routers and tables.
func TestDenseExperts(t *testing.T) {
	for _, model := range []string{"llama", "qwen2"} { // without biases and with
		eachKind(t, func(t *testing.T, spec AdapterSpec) {
			t.Run(model, func(t *testing.T) {
				for _, o := range []cpu.Options{exact, {}} {
					tol := 1e-4
					if o.Float64 {
						tol = 1e-10
					}
					m, b := adapted(t, model, o, spec, true)
					s, _ := served(t, m)
					dense, held := inDense(t, s), len(b.held)
					for _, n := range []int{1, denseTokens, denseTokens + 1, positions} {
						ids := randomIDs(uint64(n), m.Base.Arch.Vocab, n)
						for _, tabled := range []bool{true, false} {
							want, own := passed(t, s, ids, tabled, false)
							got, chosen := passed(t, dense, ids, tabled, n > denseTokens)
							what := fmt.Sprintf("%d tokens, tabled %v", n, tabled)
							agree(t, what, got, want, tol)
							sameExperts(t, what, chosen, own)
						}
					}
					if len(b.held) != held {
						t.Errorf("passes leave %d tensors", len(b.held)-held)
					}
				}
			})
		})
	}
}

// The dense form is made where experts have the type of products and are few, is given back, and is refused where memory ends.
func TestPlaceDense(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 0), false)
	s, _ := served(t, m)
	if s.dense {
		t.Error("the processor has a copy of the experts that it does not need")
	}
	held := len(b.held)
	for n := 0; ; n++ {
		at := *s
		at.own, at.layers = nil, slices.Clone(s.layers)
		b.left = n
		err := at.placeDense()
		b.left = -1
		at.Close()
		if len(b.held) != held {
			t.Fatalf("with %d allocations %d tensors are not given back", n, len(b.held)-held)
		}
		if err == nil {
			break
		}
		if at.dense || err.Error() != "a copy of the experts for prompts: no memory" {
			t.Fatalf("with %d allocations: dense %v, error %v", n, at.dense, err)
		}
	}
	bf16, err := cpu.New(cpu.Options{})
	must(t, err)
	defer bf16.Close()
	for _, c := range []struct {
		typ           kernels.Type
		experts, rank int
		want          bool
	}{
		{kernels.BF16, 8, 8, true},
		{kernels.BF16, 16, denseColumns / 16, true},
		{kernels.BF16, 16, denseColumns/16 + 1, false},
		{kernels.F32, 8, 8, false},
		{kernels.F64, 8, 8, false},
	} {
		if got := prefersDense(typed{bf16, c.typ}, AdapterSpec{Experts: c.experts, Rank: c.rank}); got != c.want {
			t.Errorf("%v, %d experts of rank %d: dense %v, want %v", c.typ, c.experts, c.rank, got, c.want)
		}
	}
}

// The dense form is the export's experts, each number where SwitchLinear looks for it, and no number of them passes through the host.
func TestPlaceDenseOnTheDevice(t *testing.T) {
	for _, o := range []cpu.Options{exact, {}} {
		m, b := adapted(t, "qwen2", o, specOf(router.Token, 0), false)
		s, _ := served(t, m)
		base := *s.Base
		base.Backend = apartFromHost{b, t}
		at := *s
		at.own, at.layers, at.Base = nil, slices.Clone(s.layers), &base
		must(t, at.placeDense())
		t.Cleanup(at.Close)
		experts, rank := s.Spec.Experts, s.Spec.Rank
		for l, layer := range at.layers {
			for _, target := range s.Spec.Targets {
				e := layer.linears[target]
				in, out := e.a.Shape[2], e.b.Shape[2]
				if e.dense.a.Type != b.Float() || e.dense.b.Type != b.Float() {
					t.Fatalf("%s is %v and %v, expected %v", Module(l, target), e.dense.a, e.dense.b, b.Float())
				}
				a, down, up, second := getter(e.dense.a), getter(e.a), getter(e.dense.b), getter(e.b)
				for c := range experts * rank {
					for d := range in {
						if got, want := a(d*experts*rank+c), down(c*in+d); got != want {
							t.Fatalf("%s: A[%d %d] is %v, the export's A[%d %d %d] %v", Module(l, target), d, c, got, c/rank, c%rank, d, want)
						}
					}
					for d := range out {
						if got, want := up(c*out+d), second(c*out+d); got != want {
							t.Fatalf("%s: B[%d %d] is %v, the export's B[%d %d %d] %v", Module(l, target), c, d, got, c/rank, c%rank, d, want)
						}
					}
				}
			}
		}
	}
}

// apartFromHost is a backend between whose memory and the host's nothing may move.
type apartFromHost struct {
	kernels.Backend
	t testing.TB
}

func (b apartFromHost) Read(host, t kernels.Tensor) {
	b.t.Errorf("%v is read", t)
	b.Backend.Read(host, t)
}

func (b apartFromHost) Fetch(host, t kernels.Tensor) func() {
	b.t.Errorf("%v is fetched", t)
	return b.Backend.Fetch(host, t)
}

func (b apartFromHost) Write(t, host kernels.Tensor) {
	b.t.Errorf("%v is written", t)
	b.Backend.Write(t, host)
}

func (b apartFromHost) Place(host kernels.Tensor) (kernels.Tensor, error) {
	b.t.Errorf("%v is placed", host)
	return b.Backend.Place(host)
}

// typed is a backend that says that its activations are of a type.
type typed struct {
	kernels.Backend
	typ kernels.Type
}

func (b typed) Float() kernels.Type { return b.typ }

// On a card in bf16 prompts have their experts in dense form, near what each token's own experts give.
func TestDenseExpertsOnCards(t *testing.T) {
	for _, g := range testgpu.All() {
		for _, granularity := range []router.Granularity{router.Token, router.None} { // whose experts no rounding changes
			t.Run(fmt.Sprintf("%s/%s", g.Name, granularity), func(t *testing.T) {
				spec := specOf(granularity, 0)
				spec.Rank = 8 // rows of whole 16 bytes, and odd ones
				for _, spec := range []AdapterSpec{spec, specOf(granularity, 5)} {
					m, _ := adapted(t, "qwen2", cpu.Options{}, spec, true)
					_, export := served(t, m)
					b := g.Open(t, false)
					placed, err := Place(b, m.Base.Arch, m.Base.Weights, positions)
					must(t, err)
					s, err := Serve(placed, export)
					must(t, err)
					t.Cleanup(s.Close)
					if !s.dense {
						t.Fatal("there is no dense form")
					}
					own := *s
					own.dense = false
					for _, n := range []int{denseTokens, positions} {
						ids := randomIDs(3, m.Base.Arch.Vocab, n)
						want, _ := passed(t, &own, ids, true, false)
						got, _ := passed(t, s, ids, true, n > denseTokens)
						allowed := 0.03
						if n <= denseTokens { // there is no difference
							allowed = 0
						}
						if x := apart(got, want); !(x <= allowed) {
							t.Errorf("rank %d, %d tokens: states are %.3g of their size apart, at most %.3g is allowed", spec.Rank, n, x, allowed)
						}
					}
				}
			})
		}
	}
}
