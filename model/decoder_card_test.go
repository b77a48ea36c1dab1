package model

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"loratrain/internal/graph"
	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// Decoding on a card is decoding on the processor. In float32 each mode chooses the tokens that the processor chooses; in bf16 the modes
// agree; and what is repeated has the same bits. LORA_PROMPTS is the number of prompts.
func TestDecodingOnCards(t *testing.T) {
	list, cards := tinyTrials(t), slices.ContainsFunc(testgpu.All(), func(g testgpu.Backend) bool { return !g.Emulated() })
	if cards {
		if c := smolTrial(t); c != nil {
			list = append(list, c)
		}
	}
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) {
			reference := c.reference(t)
			c.matters(t, reference)
			for _, g := range testgpu.All() {
				if g.Emulated() && !c.emulated {
					continue
				}
				t.Run(g.Name+"/float32", func(t *testing.T) {
					s := c.on(t, g.Open(t, true))
					c.compareTokens(t, s, reference)
					c.compareRuns(t, s)
				})
				t.Run(g.Name+"/bf16", func(t *testing.T) {
					s := c.on(t, g.Open(t, false))
					c.compareModes(t, s, reference)
					c.compareRuns(t, s)
				})
			}
		})
	}
}

// choice is a token that the processor chose, and by how much its logit was above the next.
type choice struct {
	id    int32
	ahead float64
}

// reference is what the processor makes of each prompt in float32.
func (c *trial) reference(t *testing.T) [][]choice {
	t.Helper()
	s := c.on(t, newCounter(t, cpu.Options{}))
	list := make([][]choice, len(c.prompts))
	d := c.decoder(t, s, Fused)
	c.greedy(t, d, func(text, seq int, id int32) {
		first, second := math.Inf(-1), math.Inf(-1)
		for _, x := range d.Logits(seq) {
			if x > first {
				first, second = x, first
			} else {
				second = max(second, x)
			}
		}
		list[text] = append(list[text], choice{id, first - second})
	})
	d.Close()
	return list
}

// matters wants the adapter to change logits by more than modes may differ.
func (c *trial) matters(t *testing.T, reference [][]choice) {
	s := c.on(t, newCounter(t, cpu.Options{}))
	prompts, chosen := c.texts(reference)
	with := c.logits(t, c.decoder(t, s, Fused), prompts, chosen)
	without := c.logits(t, mustDecoderOf(t, s.Base, nil, Fused, c.context(), c.places), prompts, chosen)
	sum := 0.0
	for i := range with {
		for k := range with[i] {
			sum += apart(without[i][k], with[i][k]) / float64(len(with)*c.tokens)
		}
	}
	if !(sum > 2*c.apart) {
		t.Errorf("without the adapter logits are %.3g of their size apart: too little to tell whether modes differ by %.3g", sum, c.apart)
	}
	t.Logf("without the adapter logits are %.3g of their size apart", sum)
}

// greedy continues all prompts, as many at once as a decoder has places, and tells of each token that is chosen for a text.
func (c *trial) greedy(t *testing.T, d *Decoder, tell func(text, seq int, id int32)) {
	t.Helper()
	places := len(d.lengths)
	for from := 0; from < len(c.prompts); from += places {
		batch := c.prompts[from:min(from+places, len(c.prompts))]
		for seq := range places {
			if d.Stop(seq); seq < len(batch) {
				must(t, d.Start(seq, 0, batch[seq]...))
			}
		}
		for k := range c.tokens {
			if k > 0 {
				must(t, d.Step())
			}
			ids, err := d.Tokens()()
			must(t, err)
			for seq := range batch {
				tell(from+seq, seq, ids[seq])
			}
		}
	}
}

// nearTie is how near the two best logits are where float32 may choose either.
const nearTie = 1e-3

// compareTokens wants the processor's tokens in each mode.
func (c *trial) compareTokens(t *testing.T, s *Served, reference [][]choice) {
	for _, mode := range Modes(s.Spec.Granularity) {
		d := c.decoder(t, s, mode)
		got := make([][]int32, len(c.prompts))
		c.greedy(t, d, func(text, _ int, id int32) { got[text] = append(got[text], id) })
		d.Close()
		same, ties := 0, 0
		for i, want := range reference {
			for k, x := range want {
				if got[i][k] == x.id {
					same++
					continue
				}
				if ties++; !(x.ahead <= nearTie) {
					t.Errorf("%s: token %d of prompt %d is %d, on the processor %d, whose logit is ahead by %.4g", mode, k, i, got[i][k], x.id, x.ahead)
				}
				break // what follows is another text
			}
		}
		all := len(reference) * c.tokens
		if t.Logf("%s: %d prompts, %d of %d tokens are the processor's; %d texts part at a near tie", mode, len(reference), same, all, ties); 10*same < 9*all {
			t.Errorf("%s: only %d of %d tokens were compared", mode, same, all)
		}
	}
}

// few are the prompts of which all logits are compared.
func (c *trial) few() int { return min(len(c.prompts), 8) }

// compareModes wants the modes' logits near each other when they decode a few texts, and those of steps as one operation near those of steps in
// parts. The texts are the processor's, but for tokens that mode layerwise gives other experts than the rest.
func (c *trial) compareModes(t *testing.T, s *Served, reference [][]choice) {
	prompts, chosen := c.steady(t, s, reference)
	parts, err := newDecoder(s.Base, s, Fused, c.context(), c.places, nil)
	must(t, err)
	want := c.logits(t, parts, prompts, chosen)
	parts.Close()
	for _, mode := range Modes(s.Spec.Granularity) {
		d := c.decoder(t, s, mode)
		how := "one operation"
		if err := d.InParts(); err != nil {
			how = fmt.Sprintf("operations for its parts: %v", err)
			if c.whole && mode != Layerwise && !strings.Contains(err.Error(), "Hopper") {
				t.Errorf("%s: a step is %s", mode, how)
			}
		}
		got := c.logits(t, d, prompts, chosen)
		d.Close()
		most, sum := 0.0, 0.0
		for i := range want {
			for k := range want[i] {
				x := apart(got[i][k], want[i][k])
				if !(x <= c.most) {
					t.Errorf("%s: the logits of prompt %d, token %d are %.3g of their size from those of fused steps in parts, at most %.3g is allowed",
						mode, i, k, x, c.most)
				}
				most, sum = max(most, x), sum+x
			}
		}
		mean := sum / float64(c.few()*c.tokens)
		if t.Logf("%s: a step is %s; logits are %.3g apart, at most %.3g", mode, how, mean, most); !(mean <= c.apart) {
			t.Errorf("%s: logits are %.3g of their size from those of fused steps in parts, %.3g is allowed", mode, mean, c.apart)
		}
	}
}

// apart is how far two lists of logits are from each other, compared with how far they are from their mean.
func apart(got, want []float64) float64 {
	mean := 0.0
	for _, x := range want {
		mean += x / float64(len(want))
	}
	var off, size float64
	for i, x := range want {
		off += (got[i] - x) * (got[i] - x)
		size += (x - mean) * (x - mean)
	}
	return math.Sqrt(off / size)
}

// logits is those after each chosen token behind a few prompts.
func (c *trial) logits(t *testing.T, d *Decoder, prompts, chosen [][]int32) [][][]float64 {
	t.Helper()
	list, places := make([][][]float64, c.few()), len(d.lengths)
	for from := 0; from < len(list); from += places {
		batch := min(places, len(list)-from)
		for seq := range places {
			if d.Stop(seq); seq < batch {
				must(t, d.Start(seq, 0, prompts[from+seq]...))
			}
		}
		for k := range c.tokens {
			for seq := range batch {
				must(t, d.Put(seq, chosen[from+seq][k]))
			}
			must(t, d.Step())
			for seq := range batch {
				list[from+seq] = append(list[from+seq], d.Logits(seq))
			}
		}
	}
	return list
}

// texts is a few prompts and the tokens that the processor chose behind them.
func (c *trial) texts(reference [][]choice) (prompts, chosen [][]int32) {
	for i, p := range c.prompts[:c.few()] {
		ids := make([]int32, c.tokens)
		for k := range ids {
			ids[k] = reference[i][k].id
		}
		prompts, chosen = append(prompts, slices.Clone(p)), append(chosen, ids)
	}
	return prompts, chosen
}

// steady is texts, but for each token to which the router, computed in bf16, gives other experts than the routing table does, which is the next
// one that keeps its experts: mode layerwise computes something else for such tokens.
func (c *trial) steady(t *testing.T, s *Served, reference [][]choice) (prompts, chosen [][]int32) {
	t.Helper()
	prompts, chosen = c.texts(reference)
	if s.Spec.Granularity != router.Token {
		return prompts, chosen
	}
	changed, all := 0, 0
	for i := range prompts {
		ids := append(slices.Clone(prompts[i]), chosen[i]...)
		moved := c.moved(t, s, ids)
		changed, all = changed+len(moved), all+len(ids)
		for tries := 0; len(moved) > 0; moved = c.moved(t, s, ids) {
			if tries++; tries > 100 {
				t.Fatalf("text %d: of 100 tokens in a row none keeps its experts at %d", i, moved)
			}
			for _, k := range moved {
				ids[k] = (ids[k] + 1) % int32(c.base.Arch.Vocab)
			}
		}
		n := len(prompts[i])
		prompts[i], chosen[i] = ids[:n], ids[n:]
	}
	if t.Logf("%d of %d tokens of %d texts are others, which keep their experts in bf16", changed, all, len(prompts)); 5*changed > all {
		t.Errorf("the router, computed in bf16, gives %d of %d tokens other experts than the table does", changed, all)
	}
	return prompts, chosen
}

// moved is where among ids tokens are that get other experts from the router, computed in the backend's type, than from the table.
func (c *trial) moved(t *testing.T, s *Served, ids []int32) []int {
	t.Helper()
	b := s.Base.Backend
	x := graph.NewImmediate(b)
	defer x.Close()
	var list []int
	must(t, graph.Catch(b, func() {
		p, in := s.pass(x, ids, false), x.Ints(ids, len(ids))
		h := RouterInput(x, s.Base.Bind(x), in)
		p.EnterBlock(x, 0, h)
		for k, id := range ids {
			want, _ := s.Table(id)
			got := p.choicesOf(b, k)[0]
			slices.Sort(got)
			slices.Sort(want[:])
			if !slices.Equal(got, want[:]) {
				list = append(list, k)
			}
		}
		p.Release(x)
		x.Done(h, in)
	}))
	return list
}

// compareRuns wants the same bits from every decoder, of several sequences at once too.
func (c *trial) compareRuns(t *testing.T, s *Served) {
	var list []text
	for i, p := range c.prompts[:c.few()] {
		list = append(list, text{p, PromptKey(3, i), c.tokens - i%3})
	}
	for _, mode := range Modes(s.Spec.Granularity) {
		var first []*told
		for range 2 {
			d := c.decoder(t, s, mode)
			d.SetRule(kernels.Sampling{Temperature: 0.7, TopK: 50})
			got := together(t, d, list)
			d.Close()
			if first == nil {
				first = got
				continue
			}
			sameTold(t, string(mode)+" once more", got, first, 0)
		}
	}
}
