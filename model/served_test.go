package model

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/checkpoints"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

func TestSpecOf(t *testing.T) {
	c := checkpoints.Config{Granularity: "block", Experts: 6, Rank: 3, SharedRank: 9, Alpha: 1.5, Targets: []string{"k_proj", "up_proj"}}
	want := AdapterSpec{Granularity: router.Block, Experts: 6, Rank: 3, Shared: 9, Alpha: 1.5, Targets: []Target{KProj, UpProj}}
	if got, err := SpecOf(c); err != nil || !cmp.Equal(got, want) || got.Scale() != 0.5 || got.Columns() != 27 {
		t.Errorf("%+v, %v with scale %g and %d columns, want %+v with 0.5 and 27", got, err, got.Scale(), got.Columns(), want)
	}
	c.Targets = append(c.Targets, "lm_head")
	const refusal = "unknown linear layer \"lm_head\"\nthere are [q_proj k_proj v_proj o_proj gate_proj up_proj down_proj]"
	if _, err := SpecOf(c); fmt.Sprint(err) != refusal {
		t.Errorf("error %v, want %s", err, refusal)
	}
}

// Where memory or placing fails, Serve says so and takes nothing; a base that a shared expert is merged into is a copy, which
// Close gives back, once.
func TestServeGivesBack(t *testing.T) {
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		m, b := adapted(t, "llama", cpu.Options{}, spec, false)
		_, e := served(t, m)
		held := len(b.held)
		for _, limit := range []*int{&b.left, &b.places} {
			for n := 0; ; n++ {
				*limit = n
				s, err := Serve(m.Placed, e)
				if err == nil {
					s.Close()
					s.Close()
					break
				}
				if !errors.Is(err, errNoMemory) || err.Error()[:9] != "adapter: " {
					t.Fatalf("error %v", err)
				}
				if len(b.held) != held {
					t.Fatalf("%d tensors are not given back after %v", len(b.held)-held, err)
				}
			}
			*limit = -1
		}
		if len(b.held) != held {
			t.Errorf("%d tensors are not given back by Close", len(b.held)-held)
		}
	})
}

func TestPlaceRefuses(t *testing.T) {
	m, b := adapted(t, "qwen3", cpu.Options{}, specOf(router.None, 0), false)
	for n := 0; ; n++ {
		b.places = n
		_, err := Place(b, m.Base.Arch, m.Base.Weights, 4)
		if err == nil {
			break
		}
		if err.Error() != "weights: no memory" {
			t.Fatalf("error %v", err)
		}
	}
}

// A pass that looks the experts up and one that computes the router choose the same, and give back what they took.
func TestPassTabledAndRouted(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 2), false)
	s, _ := served(t, m)
	held := len(b.held)
	x := graph.NewImmediate(b)
	ids := randomIDs(12, m.Base.Arch.Vocab, 30)
	var hidden [2][]float64
	var chosen [2][][]int32
	for i, tabled := range []bool{true, false} {
		err := graph.Catch(b, func() {
			ad := s.Pass(x, ids, tabled)
			h := hiddenOf(x, s.Base.Bind(x), ad, ids)
			host := kernels.NewHost(h.Type, h.Shape...)
			b.Read(host, h.Tensor())
			for k, get := 0, getter(host); k < host.Len(); k++ {
				hidden[i] = append(hidden[i], get(k))
			}
			chosen[i] = ad.(*servedPass).choicesOf(b, len(ids)-1)
			ad.Release(x)
			x.Done(h)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	agree(t, "hidden states, computed against looked up", hidden[1], hidden[0], 1e-5)
	if diff := cmp.Diff(chosen[0], chosen[1]); diff != "" {
		t.Errorf("experts (-table +router):\n%s", diff)
	}
	x.Close()
	if len(b.held) != held {
		t.Errorf("%d tensors are not given back", len(b.held)-held)
	}
}

// Of packed sequences each token's state is that of its sequence alone: with prompts that several continuations share, padding
// between them, within a window, and for every granularity.
func TestPackedIsAlone(t *testing.T) {
	for _, model := range []string{"llama", "mistral"} {
		eachKind(t, func(t *testing.T, spec AdapterSpec) {
			m, b := adapted(t, model, exact, spec, true)
			vocab := m.Base.Arch.Vocab
			prompt, one, two, other := randomIDs(1, vocab, 7), randomIDs(2, vocab, 6), randomIDs(3, vocab, 3), randomIDs(4, vocab, 8)
			var ids, pos, seq []int32
			var visible []Visible
			add := func(text []int32, number, first int, prefix Visible) (from int) {
				from = len(ids)
				for i, id := range text {
					prefix.OwnFrom = int32(from)
					visible = append(visible, prefix)
					ids, pos, seq = append(ids, id), append(pos, int32(first+i)), append(seq, int32(number))
				}
				return from
			}
			add(other, 0, 0, Visible{})
			start := add(prompt, 1, 0, Visible{})
			shared := Visible{PrefixFrom: int32(start), PrefixTo: int32(start + len(prompt))}
			add([]int32{0, 0}, -1, 0, Visible{})
			first := add(one, 2, len(prompt), shared)
			next := add(two, 3, len(prompt), shared)
			add([]int32{0, 0, 0}, -1, 0, Visible{})

			x, n := graph.NewImmediate(b), len(ids)
			defer x.Close()
			width := m.Base.Arch.Width
			states := func(in Inputs) (rows []float64) {
				ad, _ := m.Bank.Bind(x, m.Params, Dropout{})
				h := Hidden(x, m.Placed.Bind(x), ad, in)
				host := kernels.NewHost(h.Type, h.Shape...)
				b.Read(host, h.Tensor())
				ad.Release(x)
				x.Done(h, in.IDs, in.Pos, in.Spans)
				return kernels.Slice[float64](host)
			}
			together := states(Inputs{IDs: x.Ints(ids, n), Pos: x.Ints(pos, n), Spans: x.Ints(m.Base.Arch.Spans(visible, pos, seq), n, 4)})
			for _, c := range []struct {
				what string
				text []int32
				rows []int // where its tokens lie
			}{
				{"a sequence", other, rows(0, len(other))},
				{"the prompt", prompt, rows(start, len(prompt))},
				{"the first continuation", slices.Concat(prompt, one), slices.Concat(rows(start, len(prompt)), rows(first, len(one)))},
				{"the second continuation", slices.Concat(prompt, two), slices.Concat(rows(start, len(prompt)), rows(next, len(two)))},
			} {
				n := len(c.text)
				at, seqs := make([]int32, n), make([]int32, n)
				for i := range at {
					at[i] = int32(i)
				}
				alone := states(Inputs{
					IDs: x.Ints(c.text, n), Pos: x.Ints(at, n), Spans: x.Ints(m.Base.Arch.Spans(make([]Visible, n), at, seqs), n, 4),
				})
				for i, row := range c.rows {
					agree(t, fmt.Sprintf("%s, token %d", c.what, i), together[row*width:(row+1)*width], alone[i*width:(i+1)*width], 1e-10)
				}
			}
		})
	}
}

// rows is n rows from a first one.
func rows(first, n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = first + i
	}
	return list
}
