package model

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"testing"

	diffs "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// Every mode gives the logits and names the experts that the format's description asks for, a token at a time and after a
// prompt, for every granularity. What was trained gives them too, once its routing is computed in the same precision.
func TestDecoderAgainstTheFormat(t *testing.T) {
	for _, model := range []string{"llama", "mistral", "qwen2", "qwen3"} {
		eachKind(t, func(t *testing.T, spec AdapterSpec) {
			t.Run(model, func(t *testing.T) {
				m, _ := adapted(t, model, exact, spec, true)
				s, e := served(t, m)
				ids := randomIDs(1, m.Base.Arch.Vocab, 13)
				byRouter, byTable := newNaive(m, e, false), newNaive(m, e, true)
				routed, looked := byRouter.logits(ids), byTable.logits(ids)
				trained, err := m.logits(prefixes(ids))
				if err != nil {
					t.Fatal(err)
				}
				for i := range ids {
					agree(t, fmt.Sprintf("trained adapter, token %d", i), trained[i], routed[i], 1e-9)
				}
				for _, mode := range Modes(spec.Granularity) {
					ref, want := byTable, looked
					if mode == Layerwise {
						ref, want = byRouter, routed
					}
					for _, prompt := range []int{0, 1, 9} {
						d := mustDecoder(t, m.Placed, s, mode, len(ids))
						what := fmt.Sprintf("%s, prompt of %d", mode, prompt)
						if prompt > 0 {
							agree(t, what, mustFeed(t, d, ids[:prompt]...), want[prompt-1], 1e-9)
							sameExperts(t, what, d.Experts(0), ref.experts(prompt-1))
						}
						for i := prompt; i < len(ids); i++ {
							at := fmt.Sprintf("%s, then token %d", what, i)
							agree(t, at, mustFeed(t, d, ids[i]), want[i], 1e-9)
							sameExperts(t, at, d.Experts(0), ref.experts(i))
						}
					}
				}
			})
		})
	}
}

// prefixes is the sequences that end at each token.
func prefixes(ids []int32) [][]int32 {
	var list [][]int32
	for i := range ids {
		list = append(list, ids[:i+1])
	}
	return list
}

func sameExperts(t *testing.T, what string, got, want [][]int32) {
	t.Helper()
	if diff := diffs.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s: experts (-want +got):\n%s", what, diff)
	}
}

// The base alone decodes in any mode, and reports no experts.
func TestDecoderOfTheBase(t *testing.T) {
	m, _ := adapted(t, "mistral", exact, specOf(router.Token, 0), true)
	ids := randomIDs(2, m.Base.Arch.Vocab, 9)
	want := newNaive(m, nil, false).logits(ids)
	for _, mode := range Modes(router.Token) {
		d := mustDecoder(t, m.Placed, nil, mode, len(ids))
		for i, id := range ids {
			agree(t, fmt.Sprintf("%s, token %d", mode, i), mustFeed(t, d, id), want[i], 1e-9)
		}
		if got := d.Experts(0); got != nil {
			t.Errorf("%s: the base uses experts %v", mode, got)
		}
	}
}

// A serving copy that was switched two hundred times is, bit for bit, one that was merged once.
func TestMergedDoesNotDrift(t *testing.T) {
	for _, shared := range []int{0, 5} {
		m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.Token, shared), false)
		s, _ := served(t, m)
		vocab := m.Base.Arch.Vocab
		worn := mustDecoder(t, m.Placed, s, Merged, positions)
		for i, id := range randomIDs(5, vocab, 200) {
			if i%positions == 0 {
				worn.Stop(0)
			}
			mustFeed(t, worn, id)
		}
		worn.Stop(0)
		fresh := mustDecoder(t, m.Placed, s, Merged, positions)
		for i, id := range randomIDs(6, vocab, 20) {
			if got, want := mustFeed(t, worn, id), mustFeed(t, fresh, id); !slices.Equal(got, want) {
				t.Fatalf("shared %d: the logits after token %d differ from a new decoder's", shared, i)
			}
			once := mustDecoder(t, m.Placed, s, Merged, 1)
			mustFeed(t, once, id)
			for k := range worn.merging.Layers() {
				if !bytes.Equal(worn.merging.Layers()[k].Dst.Mem.(kernels.Host), once.merging.Layers()[k].Dst.Mem.(kernels.Host)) {
					t.Fatalf("shared %d: after token %d, merged weight %d differs from one merged once", shared, i, k)
				}
			}
		}
	}
}

// The weights that a merge starts from stay as they are: the base's file, and the copy that holds the shared expert.
func TestMergedLeavesItsSources(t *testing.T) {
	m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 5), false)
	s, _ := served(t, m)
	digest := digestOf(slotList(m.Base))
	d := mustDecoder(t, m.Placed, s, Merged, 8)
	var before [][]byte
	for _, j := range d.merging.Layers() {
		before = append(before, bytes.Clone(j.Src.Mem.(kernels.Host)))
	}
	for _, id := range randomIDs(8, m.Base.Arch.Vocab, 8) {
		mustFeed(t, d, id)
	}
	for k, j := range d.merging.Layers() {
		if !bytes.Equal(before[k], j.Src.Mem.(kernels.Host)) {
			t.Errorf("the source of merge %d has changed", k)
		}
	}
	if now := digestOf(slotList(m.Base)); now != digest {
		t.Errorf("the base's digest has become %s", now)
	}
}

// slotList is every tensor of a model as digests take them.
func slotList(b *Base) []slot {
	var list []slot
	for name, t := range slotsOf(b) {
		list = append(list, slot{name: name, dst: &t})
	}
	return list
}

// After Stop nothing of the sequence before is seen, though its keys and values are still in the cache.
func TestDecoderStop(t *testing.T) {
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		m, _ := adapted(t, "llama", cpu.Options{}, spec, false)
		s, _ := served(t, m)
		for _, mode := range Modes(spec.Granularity) {
			used, fresh := mustDecoder(t, m.Placed, s, mode, 12), mustDecoder(t, m.Placed, s, mode, 12)
			mustFeed(t, used, randomIDs(3, m.Base.Arch.Vocab, 12)...)
			if room := used.Room(0); room != 0 {
				t.Errorf("%s: room for %d tokens in a full context", mode, room)
			}
			used.Stop(0)
			if room := used.Room(0); room != 12 {
				t.Errorf("%s: room for %d tokens after Stop, want 12", mode, room)
			}
			for i, id := range randomIDs(4, m.Base.Arch.Vocab, 12) {
				if got, want := mustFeed(t, used, id), mustFeed(t, fresh, id); !slices.Equal(got, want) {
					t.Fatalf("%s: after Stop, the logits of token %d are not a new decoder's", mode, i)
				}
			}
		}
	})
}

func TestDecoderRefuses(t *testing.T) {
	m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.Block, 0), false)
	s, _ := served(t, m)
	for _, c := range []struct {
		mode    Mode
		adapter *Served
		context int
		want    string
	}{
		{Fused, s, 4, "mode fused needs one decision per token, this adapter decides per block\nuse --mode layerwise"},
		{Merged, s, 4, "mode merged needs one decision per token, this adapter decides per block\nuse --mode layerwise"},
		{"fast", s, 4, "unknown mode \"fast\"\nuse one of [fused merged layerwise]"},
		{Layerwise, s, positions + 1, "a context of 49 tokens, the model was placed for 48"},
		{Fused, nil, positions + 1, "a context of 49 tokens, the model was placed for 48"},
		{Fused, nil, -1, "a cache of -1 positions: tensor f32[-1 16]: expected dimensions of at least 0"},
	} {
		d, err := NewDecoder(m.Placed, c.adapter, c.mode, c.context, 1)
		if err == nil {
			d.Close()
		}
		if fmt.Sprint(err) != c.want {
			t.Errorf("mode %s, context %d: error %v, want %s", c.mode, c.context, err, c.want)
		}
	}
}

// A token or a prompt that is refused leaves the decoder as it was.
func TestFeedRefuses(t *testing.T) {
	m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 0), false)
	s, _ := served(t, m)
	const advice = "\nuse the tokenizer that belongs to the model"
	for _, mode := range Modes(router.Token) {
		d, undisturbed := mustDecoder(t, m.Placed, s, mode, 4), mustDecoder(t, m.Placed, s, mode, 4)
		for _, c := range []struct {
			ids  []int32
			want string
		}{
			{nil, "no tokens to run\ngive a prompt of at least one token"},
			{[]int32{97}, "token 97, the model has ids below 97" + advice},
			{[]int32{1, -1, 2}, "token -1, the model has ids below 97" + advice},
			{[]int32{1, 2, 3, 4}, "4 tokens after 1 do not fit a context of 4\nshorten the prompt or raise --context"},
		} {
			d.Stop(0)
			undisturbed.Stop(0)
			mustFeed(t, d, 5)
			mustFeed(t, undisturbed, 5)
			before := d.Logits(0)
			if err := feed(d, c.ids...); fmt.Sprint(err) != c.want {
				t.Errorf("%s: feeding %v: error %v, want %s", mode, c.ids, err, c.want)
			}
			if !slices.Equal(d.Logits(0), before) || d.Room(0) != 3 {
				t.Errorf("%s: feeding %v, which is refused, changes the decoder", mode, c.ids)
			}
			if got, want := mustFeed(t, d, 6, 7, 96), mustFeed(t, undisturbed, 6, 7, 96); !slices.Equal(got, want) {
				t.Errorf("%s: after %v, which was refused, the logits differ", mode, c.ids)
			}
		}
	}
}

// A step of a tiny model is what a decoder costs besides arithmetic.
func BenchmarkStep(b *testing.B) {
	for _, spec := range []AdapterSpec{specOf(router.Token, 0), specOf(router.Layer, 0)} {
		for _, mode := range Modes(spec.Granularity) {
			b.Run(fmt.Sprintf("%s/%s", spec.Granularity, mode), func(b *testing.B) {
				m, _ := adapted(b, "llama", cpu.Options{}, spec, false)
				s, _ := served(b, m)
				d := mustDecoder(b, m.Placed, s, mode, positions)
				ids := randomIDs(1, m.Base.Arch.Vocab, positions)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if i%positions == 0 {
						d.Stop(0)
					}
					if err := feed(d, ids[i%positions]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// What follows a prompt, and what follows a token of a step, is drawn by the rule and by the random number of its position.
func TestChosenTokens(t *testing.T) {
	m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.None, 0), false)
	d := mustDecoder(t, m.Placed, nil, Fused, 8)
	drawn := map[int]bool{}
	for _, c := range []struct {
		rule kernels.Sampling
		want func(u float64) int // place of the chosen token, the largest logit first
	}{
		{kernels.Sampling{}, func(float64) int { return 0 }},
		{kernels.Sampling{Temperature: 1e6, TopK: 3}, func(u float64) int { return int(3 * u) }},
		{kernels.Sampling{Temperature: 1, TopP: 1e-6}, func(float64) int { return 0 }},
	} {
		d.SetRule(c.rule)
		for key := range uint64(20) {
			key += key << 40
			check := func(what string, position int) {
				t.Helper()
				ids, err := d.Tokens()()
				if err != nil {
					t.Fatal(err)
				}
				place := c.want(randomOf(key).Uniform(position))
				if c.rule.TopK > 0 {
					drawn[place] = true
				}
				if want := largestFirst(d.Logits(0))[place]; ids[0] != want {
					t.Errorf("%+v, key %d, %s: token %d, want %d", c.rule, key, what, ids[0], want)
				}
			}
			if err := d.Start(0, key, 11, 12); err != nil {
				t.Fatal(err)
			}
			check("after the prompt", 1)
			for i := range 3 {
				if err := d.Step(); err != nil {
					t.Fatal(err)
				}
				check(fmt.Sprintf("after step %d", i+1), 2+i)
			}
		}
	}
	if len(drawn) != 3 {
		t.Errorf("of three tokens only these were drawn: %v", drawn)
	}
}

// largestFirst is ids by their logits, equal ones in order.
func largestFirst(logits []float64) []int32 {
	order := make([]int32, len(logits))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(logits[b], logits[a]) })
	return order
}

func TestParseMode(t *testing.T) {
	for _, g := range router.Granularities() {
		for _, m := range []Mode{Fused, Merged, Layerwise} {
			got, err := ParseMode(string(m), g)
			if slices.Contains(Modes(g), m) {
				if got != m || err != nil {
					t.Errorf("mode %s of granularity %s is %q, %v", m, g, got, err)
				}
				continue
			}
			want := fmt.Sprintf("mode %s needs one decision per token, this adapter decides per %s\nuse --mode layerwise", m, g)
			if fmt.Sprint(err) != want {
				t.Errorf("mode %s of granularity %s: error %v, want %s", m, g, err, want)
			}
		}
	}
}
