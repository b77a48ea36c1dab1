package model

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/router"
)

// TestStepBytes counts what a step moves by hand: the tiny shape in bf16, and copies that experts are merged into in float32.
func TestStepBytes(t *testing.T) {
	const (
		linears = 2 * (2*128*128 + 2*64*128 + 3*128*384)
		rest    = (2*2+1)*128 + 3165*128                               // norms, and the output projection
		rank3   = 2 * 3 * 2 * (2*(128+128) + 2*(128+64) + 3*(128+384)) // bytes of an expert of all linear layers
	)
	weights := func(sequences int) int { return 2 * (linears + rest + sequences*128) }
	tokens := []int32{3, 3164, 77, 3}
	s, _ := randomAdapter(t, router.Token, 6, 3)
	byTable := func(ids ...int32) int {
		used := map[int32]bool{}
		for _, id := range ids {
			e, _ := s.Table(id)
			used[e[0]], used[e[1]] = true, true
		}
		return len(used)
	}
	for _, c := range []struct {
		mode             Mode
		adapter          bool
		ids              []int32
		weights, experts int
	}{
		{Fused, false, tokens[:1], weights(1), 0},
		{Fused, false, tokens, weights(4), 0},
		{Fused, true, tokens[:1], weights(1), 2 * rank3},
		{Fused, true, tokens, weights(4), byTable(tokens...) * rank3},
		{Merged, true, tokens[:1], weights(1) + 2*4*linears, 2 * rank3},
	} {
		t.Run(fmt.Sprintf("%s %v %d", c.mode, c.adapter, len(c.ids)), func(t *testing.T) {
			ad := s
			if !c.adapter {
				ad = nil
			}
			d := stepped(t, s.Base, ad, c.mode, c.ids)
			if w, e := d.StepBytes(); w != c.weights || e != c.experts {
				t.Errorf("%d bytes of weights and %d of experts, want %d and %d", w, e, c.weights, c.experts)
			}
		})
	}
	d := stepped(t, s.Base, s, Layerwise, tokens) // one router computed
	if w, e := d.StepBytes(); w != weights(4) || e != distinct(d, 4, 0)*rank3+6*128*4 {
		t.Errorf("layerwise: %d bytes of weights and %d of experts, %d are in use", w, e, distinct(d, 4, 0))
	}

	none, _ := randomAdapter(t, router.None, 1, 3)
	for mode, want := range map[Mode][2]int{Fused: {weights(1), rank3}, Merged: {weights(1) + 2*linears, 0}} {
		d := stepped(t, none.Base, none, mode, tokens[:1])
		if w, e := d.StepBytes(); w != want[0] || e != want[1] {
			t.Errorf("none, %s: %d bytes of weights and %d of experts, want %v", mode, w, e, want)
		}
	}
	for _, g := range []router.Granularity{router.Block, router.Layer} {
		s, _ := randomAdapter(t, g, 6, 3)
		d := stepped(t, s.Base, s, Layerwise, tokens)
		want, at := 0, 0
		for range 2 {
			if g == router.Block {
				want += 6*128*4 + distinct(d, 4, at)*rank3/2
				at++
				continue
			}
			for _, target := range AllTargets() { // which is the order in which they are computed
				in, out := s.Base.Arch.Shape(target)
				want += 6*in*4 + distinct(d, 4, at)*2*3*(in+out)
				at++
			}
		}
		if w, e := d.StepBytes(); w != weights(4) || e != want || len(d.Experts(0)) != at {
			t.Errorf("%s: %d bytes of weights and %d of experts of %d routers, want %d and %d of %d", g, w, e, len(d.Experts(0)), weights(4), want, at)
		}
	}
}

// stepped is a decoder that has run a token of each sequence.
func stepped(t *testing.T, base *Placed, s *Served, mode Mode, ids []int32) *Decoder {
	t.Helper()
	d := mustDecoderOf(t, base, s, mode, 4, len(ids))
	for seq := range ids {
		must(t, d.Start(seq, 0))
	}
	must(t, d.PutEach(ids))
	must(t, d.Step())
	return d
}

// distinct counts the experts that sequences chose at a router.
func distinct(d *Decoder, sequences, at int) int {
	used := map[int32]bool{}
	for seq := range sequences {
		for _, e := range d.Experts(seq)[at] {
			used[e] = true
		}
	}
	return len(used)
}

// TestPutEach is Put of every place, refuses what Put does, and then changes nothing.
func TestPutEach(t *testing.T) {
	s, _ := randomAdapter(t, router.Token, 3, 2)
	ids, vocab := []int32{9, 0, 3000}, int32(s.Base.Arch.Vocab)
	start := func() *Decoder {
		d := mustDecoderOf(t, s.Base, s, Fused, 3, 3)
		must(t, d.Start(0, 1, 5, 6))
		must(t, d.Start(2, 1, 7))
		return d
	}
	one, each := start(), start()
	for seq, id := range ids {
		if seq != 1 { // which is stopped
			must(t, one.Put(seq, id))
		}
	}
	for _, c := range []struct {
		ids  []int32
		want string
	}{
		{ids[:2], "2 tokens for 3 sequences"},
		{[]int32{9, vocab, 3}, fmt.Sprintf("token %d, the model has ids below", vocab)},
		{[]int32{9, 3, -1}, "token -1, the model has ids below"},
	} {
		before, _ := each.Tokens()()
		if err := each.PutEach(c.ids); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.ids, err, c.want)
		}
		if after, _ := each.Tokens()(); !slices.Equal(before, after) {
			t.Errorf("%v were refused, and tokens are %v, were %v", c.ids, after, before)
		}
	}
	must(t, each.PutEach(ids))
	must(t, one.Step())
	must(t, each.Step())
	for _, seq := range []int{0, 2} {
		if !slices.Equal(one.Logits(seq), each.Logits(seq)) {
			t.Errorf("sequence %d has other logits than after Put", seq)
		}
	}
	if err := each.PutEach(ids); err == nil || !strings.Contains(err.Error(), "do not fit a context of 3") {
		t.Errorf("a full sequence: %v", err)
	}
	empty := mustDecoderOf(t, s.Base, s, Fused, 3, 1)
	must(t, empty.Start(0, 1))
	must(t, empty.PutEach(ids[:1]))
	must(t, empty.Step())
	if err := empty.PutEach(ids[:1]); err != nil {
		t.Error(err)
	}
}

// TestRecorded tells steps that are recorded from those that are not.
func TestRecorded(t *testing.T) {
	s, _ := randomAdapter(t, router.Token, 2, 1)
	d := stepped(t, s.Base, s, Fused, []int32{1})
	must(t, d.Step())
	if d.Recorded() {
		t.Error("the processor has recorded a step")
	}
	b := testgpu.All()[0].Open(t, false)
	a := s.Base.Arch
	base, err := PlaceRandom(b, a, 1, 4)
	must(t, err)
	d = stepped(t, base, nil, Fused, []int32{1})
	if d.Recorded() {
		t.Error("the first step was recorded, before its memory was there")
	}
	must(t, d.Step())
	if !d.Recorded() {
		t.Error("the second step was not recorded")
	}
}
