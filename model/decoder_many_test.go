package model

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/kernels/cuda"
	"loratrain/router"
)

// told is what a decoder says of one sequence: each token that was chosen, and what it was chosen by.
type told struct {
	ids    []int32
	logits [][]float64
}

// observe notes what was chosen last for the places of some sequences.
func observe(t *testing.T, d *Decoder, places map[int]*told) {
	t.Helper()
	ids, err := d.Tokens()()
	if err != nil {
		t.Fatal(err)
	}
	for seq, s := range places {
		s.ids = append(s.ids, ids[seq])
		s.logits = append(s.logits, d.Logits(seq))
	}
}

// text is a prompt, and how much is made of it.
type text struct {
	prompt []int32
	key    uint64
	tokens int
}

// texts are prompts of several lengths; the second fills a context of 24.
func texts(vocab int) []text {
	var list []text
	for i, n := range []struct{ prompt, tokens int }{{1, 6}, {20, 5}, {7, 9}, {13, 1}, {3, 12}, {9, 4}, {2, 2}} {
		list = append(list, text{randomIDs(uint64(20+i), vocab, n.prompt), PromptKey(5, i), n.tokens})
	}
	return list
}

// alone decodes a text with nobody beside it.
func alone(t *testing.T, d *Decoder, x text) *told {
	t.Helper()
	got := &told{}
	must(t, d.Start(0, x.key, x.prompt...))
	observe(t, d, map[int]*told{0: got})
	for range x.tokens - 1 {
		must(t, d.Step())
		observe(t, d, map[int]*told{0: got})
	}
	return got
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// together decodes texts in a decoder of fewer places: one that ends makes place for the next, after a step without it.
func together(t *testing.T, d *Decoder, list []text) []*told {
	t.Helper()
	all := make([]*told, len(list))
	places, next := map[int]*told{}, 0
	left := map[int]int{}
	for next < len(list) || len(places) > 0 {
		for seq := range d.lengths {
			if places[seq] != nil || next == len(list) {
				continue
			}
			must(t, d.Start(seq, list[next].key, list[next].prompt...))
			all[next] = &told{}
			places[seq], left[seq] = all[next], list[next].tokens
			observe(t, d, map[int]*told{seq: all[next]})
			left[seq]--
			next++
		}
		for seq, n := range left {
			if n == 0 {
				d.Stop(seq)
				delete(places, seq)
				delete(left, seq)
			}
		}
		must(t, d.Step())
		observe(t, d, places)
		for seq := range left {
			left[seq]--
		}
	}
	return all
}

func sameTold(t *testing.T, what string, got, want []*told, tol float64) {
	t.Helper()
	for i := range want {
		if !slices.Equal(got[i].ids, want[i].ids) {
			t.Fatalf("%s: text %d is %v, alone %v", what, i, got[i].ids, want[i].ids)
		}
		for k := range want[i].logits {
			agree(t, fmt.Sprintf("%s: text %d, token %d", what, i, k), got[i].logits[k], want[i].logits[k], tol)
		}
	}
}

// Sequences that are decoded together, started and stopped at different times, are what each is by itself.
func TestManyAreLikeOne(t *testing.T) {
	rule := kernels.Sampling{Temperature: 0.9, TopK: 20, TopP: 0.95}
	for _, model := range []string{"llama", "mistral", "qwen2", "qwen3"} {
		eachKind(t, func(t *testing.T, spec AdapterSpec) {
			t.Run(model, func(t *testing.T) {
				for _, o := range []cpu.Options{exact, {}} {
					tol := 2e-4
					if o.Float64 {
						tol = 1e-10
					}
					m, _ := adapted(t, model, o, spec, true)
					s, _ := served(t, m)
					list := texts(m.Base.Arch.Vocab)
					for _, mode := range Modes(spec.Granularity) {
						one := mustDecoder(t, m.Placed, s, mode, 24)
						one.SetRule(rule)
						var want []*told
						for _, x := range list {
							want = append(want, alone(t, one, x))
						}
						for _, n := range []int{1, 2, 4, 7, MaxSequences} {
							if n > 1 && one.switches() {
								continue
							}
							d := mustDecoderOf(t, m.Placed, s, mode, 24, n)
							d.SetRule(rule)
							sameTold(t, fmt.Sprintf("%s, %d at once", mode, n), together(t, d, list), want, tol)
						}
					}
				}
			})
		})
	}
}

// The experts reported of a sequence are its own, in a step and after a prompt, whoever is beside it.
func TestExpertsOfMany(t *testing.T) {
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		m, _ := adapted(t, "llama", exact, spec, true)
		s, e := served(t, m)
		for _, mode := range Modes(spec.Granularity) {
			const n = 3
			ids := [n][]int32{}
			d, places := mustDecoder(t, m.Placed, s, mode, 20), 1
			if !d.switches() {
				d, places = mustDecoderOf(t, m.Placed, s, mode, 20, n), n
			}
			check := func(what string) {
				t.Helper()
				for seq := range places {
					ref := newNaive(m, e, mode != Layerwise)
					ref.logits(ids[seq])
					sameExperts(t, fmt.Sprintf("%s, sequence %d, %s", mode, seq, what), d.Experts(seq), ref.experts(len(ids[seq])-1))
				}
			}
			for seq := range places {
				ids[seq] = randomIDs(uint64(seq), m.Base.Arch.Vocab, 2+3*seq)
				must(t, d.Start(seq, 0, ids[seq]...))
			}
			check("after the prompt")
			for range 2 {
				chosen, err := d.Tokens()()
				must(t, err)
				must(t, d.Step())
				for seq := range places {
					ids[seq] = append(ids[seq], chosen[seq])
				}
				check("after a step")
			}
			more := randomIDs(9, m.Base.Arch.Vocab, 4)
			must(t, d.Extend(0, more...))
			ids[0] = append(ids[0], more...)
			check("when one is extended")
		}
	})
}

// A prompt of several pieces is what it is in one pass.
func TestLongPrompts(t *testing.T) {
	for _, model := range []string{"llama", "mistral"} {
		base := mustOpen(t, goldenModel(model))
		b := newCounter(t, cpu.Options{})
		n := 2*prefillTokens(b) + 3
		p, err := Place(b, base.Arch, base.Weights, n+1)
		must(t, err)
		ids := randomIDs(1, base.Arch.Vocab, n)
		d := mustDecoderOf(t, p, nil, Fused, n+1, 2)
		all := immediate(t, b, p, ids)
		want := make([]float64, all.Shape[1])
		for i, get := 0, getter(all); i < len(want); i++ {
			want[i] = get((n-1)*len(want) + i)
		}
		must(t, d.Start(1, 0, ids...))
		must(t, d.Start(0, 0, ids[:5]...))
		must(t, d.Extend(0, ids[5:n-1]...))
		must(t, d.Put(0, ids[n-1]))
		agree(t, model+", at once", d.Logits(1), want, 1e-4)
		must(t, d.Step())
		agree(t, model+", with the last token in a step", d.Logits(0), want, 1e-4)
		if d.Room(0) != 1 || d.Room(1) != 0 {
			t.Errorf("%s: room for %d and %d tokens, want 1 and 0", model, d.Room(0), d.Room(1))
		}
	}
}

// What is stopped or full does no harm and changes nothing, and empty places do not disturb.
func TestStoppedAndFull(t *testing.T) {
	m, b := adapted(t, "llama", exact, specOf(router.Token, 0), true)
	s, _ := served(t, m)
	_, whole := onWholes(t, b, s)
	for mode, d := range map[string]*Decoder{
		"fused": mustDecoderOf(t, m.Placed, s, Fused, 6, 3), "layerwise": mustDecoderOf(t, m.Placed, s, Layerwise, 6, 3),
		"whole steps": mustDecoderOf(t, m.Placed, whole, Fused, 6, 3),
	} {
		must(t, d.Step()) // of nobody
		for _, err := range []error{d.Extend(1, 3), d.Put(1, 3)} {
			if fmt.Sprint(err) != "sequence 1 is stopped" {
				t.Errorf("%s: error %v", mode, err)
			}
		}
		must(t, d.Start(1, 7))
		if err := d.Step(); fmt.Sprint(err) != "sequence 1 has no token to run" {
			t.Errorf("%s: a step of an empty sequence: error %v", mode, err)
		}
		must(t, d.Start(1, 7, 5, 6))
		must(t, d.Start(2, 8, 1, 2, 3, 4, 5, 6)) // full
		cached := func(seq int) (rows []float64) {
			for _, v := range append(slices.Clone(d.cache.k), d.cache.v...) {
				width := v.Shape[1]
				part := v.Tensor().View(seq*6*width, 6, width)
				for i, get := 0, getter(part); i < part.Len(); i++ {
					rows = append(rows, get(i))
				}
			}
			return rows
		}
		first, last := cached(0), cached(2)
		d.Stop(0)
		for i := range 9 {
			must(t, d.Step())
			if want := max(4-1-i, 0); d.Room(1) != want || d.Room(2) != 0 || d.Room(0) != 6 {
				t.Errorf("%s: after step %d there is room for %d, %d and %d, want 6, %d and 0", mode, i+1, d.Room(0), d.Room(1), d.Room(2), want)
			}
		}
		if !slices.Equal(first, cached(0)) || !slices.Equal(last, cached(2)) {
			t.Errorf("%s: steps change the cache of a stopped or a full sequence", mode)
		}
		if x := d.Logits(0); slices.ContainsFunc(x, func(f float64) bool { return math.IsNaN(f) }) {
			t.Errorf("%s: an empty place computes NaN", mode)
		}
		if got := d.Experts(0); got != nil {
			t.Errorf("%s: a stopped sequence uses experts %v", mode, got)
		}
	}
}

// plain is a backend that cannot record.
type plain struct{ kernels.Backend }

// counts is a backend that counts recordings.
type counts struct {
	*cuda.Backend
	captures, open int
}

func (c *counts) Capture(f func()) (kernels.Recording, error) {
	c.captures++
	c.open++
	r, err := c.Backend.Capture(f)
	return counted{r, c}, err
}

type counted struct {
	kernels.Recording
	of *counts
}

func (r counted) Close() {
	r.of.open--
	r.Recording.Close()
}

// Steps that are recorded once and repeated are those that run at once, bit for bit, in bf16 and float32.
func TestRecordedSteps(t *testing.T) {
	for _, g := range testgpu.All() {
		for _, c := range []struct {
			granularity router.Granularity
			float32     bool
		}{{router.Token, true}, {router.Token, false}, {router.Layer, true}, {router.None, true}} {
			t.Run(fmt.Sprintf("%s, %s, float32 %v", g.Name, c.granularity, c.float32), func(t *testing.T) {
				b := &counts{Backend: g.Open(t, c.float32).(*cuda.Backend)}
				m := adaptedOn(t, goldenModel("mistral"), b, specOf(c.granularity, 0), true)
				s, _ := served(t, m)
				at := *s
				at.Base = s.Base.On(plain{b})
				list := texts(m.Base.Arch.Vocab)
				for _, mode := range Modes(c.granularity) {
					n := 3
					if mode == Merged && c.granularity == router.Token {
						n, list = 1, list[:3]
					}
					rule := kernels.Sampling{Temperature: 0.8, TopK: 30}
					once := mustDecoderOf(t, m.Placed, &at, mode, 24, n)
					once.SetRule(rule)
					want := together(t, once, list)
					d, err := NewDecoder(m.Placed, s, mode, 24, n)
					must(t, err)
					d.SetRule(rule)
					b.captures = 0
					sameTold(t, string(mode), together(t, d, list), want, 0)
					if b.captures != 1 {
						t.Errorf("%s: a step was recorded %d times", mode, b.captures)
					}
					d.SetRule(kernels.Sampling{})
					once.SetRule(kernels.Sampling{})
					sameTold(t, string(mode)+" with another rule", together(t, d, list[:2]), together(t, once, list[:2]), 0)
					if b.captures != 2 || b.open != 1 {
						t.Errorf("%s: another rule makes %d recordings, want 1; %d are open, want 1", mode, b.captures-1, b.open)
					}
					if d.Close(); b.open != 0 {
						t.Errorf("%s: after Close a recording is open", mode)
					}
				}
			})
		}
	}
}
