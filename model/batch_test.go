package model

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"loratrain/kernels"
)

// packed is a batch as it is meant: each token's sequence and position, and the prompt that its sequence goes on from.
type packed struct {
	visible  []Visible
	pos, seq []int32
	prompt   []int32 // sequence number; -1: none
}

// drawBatch lays sequences, prompts with several continuations, and padding end to end in any order.
func drawBatch(t *rapid.T) packed {
	var b packed
	add := func(n, first, seq, prompt int, prefixFrom, prefixTo int32) {
		own := int32(len(b.pos))
		for i := range n {
			b.visible = append(b.visible, Visible{PrefixFrom: prefixFrom, PrefixTo: prefixTo, OwnFrom: own})
			b.pos, b.seq = append(b.pos, int32(first+i)), append(b.seq, int32(seq))
			b.prompt = append(b.prompt, int32(prompt))
		}
	}
	seq := 0
	for range rapid.IntRange(1, 4).Draw(t, "parts") {
		switch rapid.IntRange(0, 2).Draw(t, "kind") {
		case 0:
			add(rapid.IntRange(1, 12).Draw(t, "length"), 0, seq, -1, 0, 0)
			seq++
		case 1: // a prompt and its continuations, with other things between
			from, n, prompt := int32(len(b.pos)), rapid.IntRange(1, 9).Draw(t, "prompt"), seq
			first := rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "first position")
			add(n, first, seq, -1, 0, 0)
			seq++
			for range rapid.IntRange(1, 3).Draw(t, "options") {
				add(rapid.IntRange(0, 2).Draw(t, "padding"), 0, -1, -1, 0, 0)
				add(rapid.IntRange(1, 6).Draw(t, "option"), first+n, seq, prompt, from, from+int32(n))
				seq++
			}
		default: // whatever padding says of itself does not count
			add(rapid.IntRange(1, 3).Draw(t, "padding"), 5, -1, -1, 0, int32(len(b.pos)))
		}
	}
	return b
}

// A token sees the row j if j is of its sequence or of the prompt that this goes on from, is not after it, and lies within the window.
func TestSpansByDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, window := drawBatch(t), rapid.IntRange(0, 14).Draw(t, "window")
		spans := Arch{Window: window}.Spans(b.visible, b.pos, b.seq)
		if len(spans) != 4*len(b.pos) {
			t.Fatalf("%d numbers for %d tokens", len(spans), len(b.pos))
		}
		for i := range b.pos {
			var want, got []int32
			for j := range b.pos {
				related := b.seq[j] >= 0 && (b.seq[j] == b.seq[i] || b.seq[j] == b.prompt[i])
				back := b.pos[i] - b.pos[j]
				if b.seq[i] >= 0 && related && back >= 0 && (window == 0 || back < int32(window)) {
					want = append(want, int32(j))
				}
			}
			s := spans[4*i : 4*i+4]
			if s[0] > s[1] || s[2] > s[3] || s[0] < 0 || s[2] < 0 || int(max(s[1], s[3])) > len(b.pos) {
				t.Fatalf("token %d has the spans %v, which are no ranges of %d rows", i, s, len(b.pos))
			}
			for _, span := range [][]int32{s[:2], s[2:]} {
				for j := span[0]; j < span[1]; j++ {
					got = append(got, j)
				}
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Fatalf("window %d: token %d (sequence %d, position %d) sees %v, want %v", window, i, b.seq[i], b.pos[i], got, want)
			}
		}
	})
}

// A row holds cos(p·θ^(-2i/d)) for each i and then the sines, as far as its type can tell.
func TestRopeTable(t *testing.T) {
	a := Arch{HeadDim: 6, Theta: 10000}
	for typ, tol := range map[kernels.Type]float64{kernels.F64: 1e-12, kernels.F32: 1e-7} {
		table := ropeTable(a, typ, 2000)
		if !slices.Equal(table.Shape, []int{2000, 6}) || table.Type != typ {
			t.Fatalf("table of %v is %v", typ, table)
		}
		get := getter(table)
		for p := range 2000 {
			for i := range 3 {
				angle := float64(p) * math.Pow(10000, -float64(i)/3)
				if c, s := get(6*p+i), get(6*p+3+i); math.Abs(c-math.Cos(angle)) > tol || math.Abs(s-math.Sin(angle)) > tol {
					t.Fatalf("%v: position %d, pair %d: (%g, %g), want (%g, %g)", typ, p, i, c, s, math.Cos(angle), math.Sin(angle))
				}
			}
		}
	}
}
