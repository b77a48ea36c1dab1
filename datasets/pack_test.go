package datasets

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPack(t *testing.T) {
	seqs := []Sequence{
		{IDs: []int32{1, 2, 3}, Prompt: 2},
		{IDs: []int32{4, 5, 6, 7, 8}, Prompt: 3},
		{IDs: []int32{9, 10}, Prompt: 1},
	}
	got, err := Pack(seqs, 8, []int{8, 4})
	if err != nil {
		t.Fatal(err)
	}
	want := []Batch{{
		IDs:        []int32{1, 2, 3, 4, 5, 6, 7, 8},
		Pos:        []int32{0, 1, 2, 0, 1, 2, 3, 4},
		Seq:        []int32{0, 0, 0, 1, 1, 1, 1, 1},
		Targets:    []int32{-100, 3, -100, -100, -100, 7, 8, -100},
		PrefixFrom: make([]int32, 8), PrefixTo: make([]int32, 8),
		OwnFrom: []int32{0, 0, 0, 3, 3, 3, 3, 3},
		Tokens:  8, TargetCount: 3, Items: []int{0, 1},
		Answers: []Answer{{Item: 0, From: 1, To: 2}, {Item: 1, From: 5, To: 7}},
	}, {
		IDs:        []int32{9, 10, 0, 0},
		Pos:        []int32{0, 1, 0, 0},
		Seq:        []int32{0, 0, -1, -1},
		Targets:    []int32{10, -100, -100, -100},
		PrefixFrom: make([]int32, 4), PrefixTo: make([]int32, 4),
		OwnFrom: []int32{0, 0, 3, 4},
		Tokens:  2, TargetCount: 1, Items: []int{2},
		Answers: []Answer{{Item: 2, From: 0, To: 1}},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("batches (-want +got):\n%s", d)
	}
}

func TestPackGroups(t *testing.T) {
	groups := []Group{{Prefix: []int32{1, 2}, Branches: []Branch{
		{IDs: []int32{3}, Targets: []int32{7}},
		{IDs: []int32{3, 4}, Targets: []int32{NoTarget, 8}},
		{IDs: []int32{3, 5}, Targets: []int32{5, 9}},
	}}}
	got, err := PackGroups(groups, 6, []int{6})
	if err != nil {
		t.Fatal(err)
	}
	want := []Batch{{
		IDs:         []int32{1, 2, 3, 3, 4, 0},
		Pos:         []int32{0, 1, 2, 2, 3, 0},
		Seq:         []int32{0, 0, 0, 0, 0, -1},
		Targets:     []int32{-100, -100, 7, -100, 8, -100},
		PrefixFrom:  []int32{0, 0, 0, 0, 0, 0},
		PrefixTo:    []int32{0, 0, 2, 2, 2, 0},
		OwnFrom:     []int32{0, 0, 2, 3, 3, 6},
		Tokens:      5,
		TargetCount: 2, Items: []int{0},
		Answers: []Answer{{0, 0, 2, 3}, {0, 1, 4, 5}},
	}, {
		IDs:         []int32{1, 2, 3, 5, 0, 0},
		Pos:         []int32{0, 1, 2, 3, 0, 0},
		Seq:         []int32{0, 0, 0, 0, -1, -1},
		Targets:     []int32{-100, -100, 5, 9, -100, -100},
		PrefixFrom:  []int32{0, 0, 0, 0, 0, 0},
		PrefixTo:    []int32{0, 0, 2, 2, 0, 0},
		OwnFrom:     []int32{0, 0, 2, 2, 5, 6},
		Tokens:      4,
		TargetCount: 2, Items: []int{0},
		Answers: []Answer{{0, 2, 2, 4}},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("batches (-want +got):\n%s", d)
	}
}

func TestPackErrors(t *testing.T) {
	seq := func(n, prompt int) []Sequence {
		return []Sequence{{IDs: make([]int32, 2), Prompt: 1}, {IDs: make([]int32, n), Prompt: prompt, Source: "f:2"}}
	}
	_, err := Pack(seq(9, 1), 8, []int{8})
	wantError(t, err, "f:2: 9 tokens do not fit a batch of 8", "raise the tokens of a batch")
	for _, prompt := range []int{-1, 0, 4, 5} {
		_, err = Pack(seq(4, prompt), 8, []int{8})
		wantError(t, err, fmt.Sprintf("f:2: the answer starts at token %d of 4", prompt), "a prompt and an answer")
	}
	for _, sizes := range [][]int{{}, {4}, {0, 8}, {-8, 8}} {
		_, err = Pack(seq(4, 1), 8, sizes)
		wantError(t, err, fmt.Sprintf("batch sizes %v, expected at least 1 and one of at least 8", slices.Sorted(slices.Values(sizes))), "give sizes")
	}
	_, err = PackGroups([]Group{{Prefix: make([]int32, 3), Source: "f:4", Branches: []Branch{
		{IDs: make([]int32, 1), Targets: make([]int32, 1)}, {IDs: make([]int32, 2), Targets: make([]int32, 2)},
	}}}, 4, []int{4})
	wantError(t, err, "f:4: 5 tokens do not fit a batch of 4", "raise the tokens of a batch")
}

// TestLongestFirst: in the order given, three batches would be needed.
func TestLongestFirst(t *testing.T) {
	var seqs []Sequence
	for _, n := range []int{3, 4, 6, 7} {
		seqs = append(seqs, Sequence{IDs: make([]int32, n), Prompt: 1})
	}
	batches, err := Pack(seqs, 10, []int{10})
	if err != nil {
		t.Fatal(err)
	}
	var got [][]int
	for _, b := range batches {
		got = append(got, b.Items)
	}
	if d := cmp.Diff([][]int{{0, 3}, {1, 2}}, got); d != "" {
		t.Errorf("items of the batches (-want +got):\n%s", d)
	}
}

func TestPackNothing(t *testing.T) {
	if batches, err := Pack(nil, 8, []int{8}); err != nil || len(batches) != 0 {
		t.Errorf("got %v, %v, want no batches", batches, err)
	}
}

func TestSizes(t *testing.T) {
	for limit, want := range map[int][]int{
		0: nil, 1: {1}, 5: {1, 2, 3, 4, 5},
		2048: {128, 256, 384, 512, 640, 768, 896, 1024, 1152, 1280, 1408, 1536, 1664, 1792, 1920, 2048},
		33:   {3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33},
	} {
		if d := cmp.Diff(want, Sizes(limit)); d != "" {
			t.Errorf("sizes up to %d (-want +got):\n%s", limit, d)
		}
	}
}

// context is what a token with a target sees, itself last, and its target: all that a model's loss depends on.
type context struct {
	IDs, Pos []int32
	Target   int32
}

// contexts reads a batch as attention does and checks what holds for every batch.
func contexts(t *rapid.T, b Batch, limit int, sizes []int) map[Answer][]context {
	n := len(b.IDs)
	for name, s := range map[string][]int32{
		"Pos": b.Pos, "Seq": b.Seq, "Targets": b.Targets, "PrefixFrom": b.PrefixFrom, "PrefixTo": b.PrefixTo, "OwnFrom": b.OwnFrom,
	} {
		if len(s) != n {
			t.Fatalf("%s has %d tokens, IDs %d", name, len(s), n)
		}
	}
	if !slices.Contains(sizes, n) || b.Tokens > limit || b.Tokens < 1 {
		t.Fatalf("%d tokens padded to %d, want at most %d and one of %v", b.Tokens, n, limit, sizes)
	}
	for _, size := range sizes {
		if size >= b.Tokens && size < n {
			t.Fatalf("%d tokens padded to %d, though %d is enough", b.Tokens, n, size)
		}
	}
	owner := map[int]Answer{}
	for _, a := range b.Answers {
		for r := a.From; r < a.To; r++ {
			if _, twice := owner[r]; twice {
				t.Fatalf("row %d belongs to two answers", r)
			}
			owner[r] = a
		}
	}
	got := map[Answer][]context{}
	targets := 0
	for r := range n {
		if r >= b.Tokens {
			if b.IDs[r] != 0 || b.Pos[r] != 0 || b.Seq[r] != -1 || b.Targets[r] != NoTarget || b.PrefixFrom[r] != b.PrefixTo[r] || int(b.OwnFrom[r]) != r+1 {
				t.Fatalf("padding row %d is not empty: %+v", r, b)
			}
			continue
		}
		keys := rows(b.PrefixFrom[r], b.PrefixTo[r])
		if len(keys) > 0 && b.PrefixTo[r] > b.OwnFrom[r] {
			t.Fatalf("row %d: ranges meet", r)
		}
		keys = append(keys, rows(b.OwnFrom[r], int32(r+1))...)
		var c context
		for i, k := range keys {
			if b.Seq[k] != b.Seq[r] || int(b.Pos[k]) != i {
				t.Fatalf("row %d of sequence %d sees row %d of sequence %d at position %d, want position %d", r, b.Seq[r], k, b.Seq[k], b.Pos[k], i)
			}
			c.IDs, c.Pos = append(c.IDs, b.IDs[k]), append(c.Pos, b.Pos[k])
		}
		a, mine := owner[r]
		if (b.Targets[r] != NoTarget) != mine {
			t.Fatalf("row %d has target %d, in an answer: %v", r, b.Targets[r], mine)
		}
		if !mine {
			continue
		}
		if b.Items[b.Seq[r]] != a.Item {
			t.Fatalf("row %d is of item %d, its answer of %d", r, b.Items[b.Seq[r]], a.Item)
		}
		targets++
		c.Target = b.Targets[r]
		key := Answer{Item: a.Item, Branch: a.Branch}
		got[key] = append(got[key], c)
	}
	if targets != b.TargetCount {
		t.Fatalf("%d targets, TargetCount says %d", targets, b.TargetCount)
	}
	return got
}

func rows(from, to int32) []int32 {
	var r []int32
	for ; from < to; from++ {
		r = append(r, from)
	}
	return r
}

// alone is the contexts of a sequence by itself.
func alone(ids []int32, prompt int) []context {
	var cs []context
	for n := prompt; n < len(ids); n++ {
		cs = append(cs, context{IDs: ids[:n], Pos: rows(0, int32(n)), Target: ids[n]})
	}
	return cs
}

var someIDs = rapid.SliceOfN(rapid.Int32Range(0, 5), 1, 12)

func drawSizes(t *rapid.T, limit int) []int {
	if rapid.Bool().Draw(t, "steps") {
		return Sizes(limit)
	}
	return append(rapid.SliceOfN(rapid.IntRange(1, 40), 0, 3).Draw(t, "sizes"), limit+rapid.IntRange(0, 5).Draw(t, "above"))
}

// TestPackedEqualsAlone: a token with a target sees in a batch what it sees alone, and every target is there once.
func TestPackedEqualsAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(13, 40).Draw(t, "limit")
		sizes := drawSizes(t, limit)
		var seqs []Sequence
		want, got := map[Answer][]context{}, map[Answer][]context{}
		tokens := 0
		for i := range rapid.IntRange(0, 12).Draw(t, "sequences") {
			ids := append(someIDs.Draw(t, "ids"), 6)
			prompt := rapid.IntRange(1, len(ids)-1).Draw(t, "prompt")
			seqs = append(seqs, Sequence{IDs: ids, Prompt: prompt})
			want[Answer{Item: i}] = alone(ids, prompt)
			tokens += len(ids)
		}
		batches, err := Pack(seqs, limit, sizes)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batches {
			for a, cs := range contexts(t, b, limit, sizes) {
				got[a] = append(got[a], cs...)
			}
			tokens -= b.Tokens
			for s, item := range b.Items {
				first := slices.Index(b.Seq, int32(s))
				if !slices.Equal(b.IDs[first:first+len(seqs[item].IDs)], seqs[item].IDs) {
					t.Fatalf("sequence %d is not whole in its batch", item)
				}
			}
		}
		if d := cmp.Diff(want, got); d != "" || tokens != 0 {
			t.Fatalf("%d tokens missing (-want +got):\n%s", tokens, d)
		}
		for i := range batches {
			for j := range i {
				if batches[i].Tokens+batches[j].Tokens <= limit {
					t.Fatalf("batches of %d and %d tokens would fit one of %d", batches[j].Tokens, batches[i].Tokens, limit)
				}
			}
		}
		again, _ := Pack(seqs, limit, sizes)
		if d := cmp.Diff(batches, again); d != "" {
			t.Fatalf("packing again differs:\n%s", d)
		}
	})
}

// TestGroupedEqualsAlone: a branch's targets see in a batch what they see when prefix and branch are a sequence.
func TestGroupedEqualsAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(24, 60).Draw(t, "limit")
		sizes := drawSizes(t, limit)
		var groups []Group
		want, got := map[Answer][]context{}, map[Answer][]context{}
		for i := range rapid.IntRange(0, 6).Draw(t, "groups") {
			g := Group{Prefix: someIDs.Draw(t, "prefix")[1:]}
			for k := range rapid.IntRange(1, 6).Draw(t, "branches") {
				ids := append(someIDs.Draw(t, "branch"), 6)
				first := rapid.IntRange(1, len(ids)-1).Draw(t, "first")
				targets := slices.Clone(ids[1:])
				for j := range first - 1 {
					targets[j] = NoTarget
				}
				g.Branches = append(g.Branches, Branch{IDs: ids[:len(ids)-1], Targets: targets})
				want[Answer{Item: i, Branch: k}] = alone(slices.Concat(g.Prefix, ids), len(g.Prefix)+first)
			}
			groups = append(groups, g)
		}
		batches, err := PackGroups(groups, limit, sizes)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batches {
			for a, cs := range contexts(t, b, limit, sizes) {
				got[a] = append(got[a], cs...)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestEvaluationEqualsTraining: of one item, the gold branch is scored on what training teaches.
func TestEvaluationEqualsTraining(t *testing.T) {
	word := rapid.StringMatching(`[a-c]( [a-c]){0,3}`)
	rapid.Check(t, func(t *rapid.T) {
		it := Item{Question: word.Draw(t, "question"), Options: rapid.SliceOfN(word, 2, 4).Draw(t, "options")}
		it.Gold = rapid.IntRange(0, len(it.Options)-1).Draw(t, "gold")
		e := Encoder{Tokenizer: newWords(), Template: rapid.SampledFrom([]Template{Cloze, Choice}).Draw(t, "template"), EOS: eos, MaxLength: 64}
		seqs, _, err := e.Sequences(Task{Items: []Item{it}})
		if err != nil {
			t.Fatal(err)
		}
		groups, _, err := e.Groups([]Item{it})
		if err != nil {
			t.Fatal(err)
		}
		batches, err := PackGroups(groups, 256, []int{256})
		if err != nil || len(batches) != 1 {
			t.Fatal(len(batches), err)
		}
		got := contexts(t, batches[0], 256, []int{256})[Answer{Branch: it.Gold}]
		if d := cmp.Diff(alone(seqs[0].IDs, seqs[0].Prompt), got); d != "" {
			t.Fatalf("(-training +evaluation):\n%s", d)
		}
	})
}

func BenchmarkPackGroups(b *testing.B) {
	groups := make([]Group, 2376)
	for i := range groups {
		groups[i].Prefix = make([]int32, 20+i%37)
		for k := range 4 {
			n := 2 + (i+k)%9
			groups[i].Branches = append(groups[i].Branches, Branch{IDs: make([]int32, n), Targets: make([]int32, n)})
		}
	}
	for b.Loop() {
		if _, err := PackGroups(groups, 2048, Sizes(2048)); err != nil {
			b.Fatal(err)
		}
	}
}
