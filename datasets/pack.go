package datasets

import (
	"cmp"
	"fmt"
	"slices"
)

// NoTarget marks a token whose successor is not learned or scored.
const NoTarget = -100

// Batch is T tokens, sequences laid end to end and then padding. The slices named by T have that length.
//
// A token sees the keys PrefixFrom ≤ j < PrefixTo, a prefix it shares with other branches of its group and otherwise
// an empty range, and OwnFrom[t] ≤ j ≤ t. These ranges do not meet, and every key in them has the token's Seq.
// Padding has id 0, position 0, Seq -1, no target, an empty prefix, and OwnFrom[t] = t+1: it sees nothing.
type Batch struct {
	IDs     []int32 // T
	Pos     []int32 // T: position in the sequence; a branch goes on where its prefix ends
	Seq     []int32 // T: number of the sequence or group in this batch, from 0
	Targets []int32 // T: the id that must follow, or NoTarget

	PrefixFrom, PrefixTo, OwnFrom []int32 // T

	Tokens      int      // without padding
	TargetCount int      // how many targets there are
	Items       []int    // what was packed, as indices into Pack's or PackGroups' argument, in the order of Seq
	Answers     []Answer // where the targets lie, in the order of rows
}

// Answer is a run of rows that have targets: those of one sequence, or of one branch of a group.
type Answer struct {
	Item     int // index into Pack's or PackGroups' argument
	Branch   int // 0 for a sequence
	From, To int // rows From ≤ t < To of the batch
}

// Sizes are sixteen steps up to limit: the token counts that batches are padded to, few enough to compile a program
// for each and fine enough that padding stays around three hundredths of the limit.
func Sizes(limit int) []int {
	const steps = 16
	var sizes []int
	for i := 1; i <= steps; i++ {
		if n := (limit*i + steps - 1) / steps; n > 0 {
			sizes = append(sizes, n)
		}
	}
	return slices.Compact(sizes)
}

// run is tokens that see a shared prefix and their own predecessors.
type run struct {
	ids, targets []int32
	branch       int
}

// piece is what must lie in one batch: a sequence, or a prefix and some of its branches.
type piece struct {
	item   int
	prefix []int32
	runs   []run
}

func (p piece) length() int {
	n := len(p.prefix)
	for _, r := range p.runs {
		n += len(r.ids)
	}
	return n
}

// Pack lays sequences into batches of at most limit tokens, padded to the next of sizes, the largest of which is at
// least limit. No sequence is split. The same arguments give the same batches: first fit in order of decreasing
// length, and within a batch the order of seqs.
func Pack(seqs []Sequence, limit int, sizes []int) ([]Batch, error) {
	pieces := make([]piece, len(seqs))
	for i, s := range seqs {
		if s.Prompt < 1 || s.Prompt >= len(s.IDs) {
			return nil, invalid(s.Source, "give every sequence a prompt and an answer", "the answer starts at token %d of %d", s.Prompt, len(s.IDs))
		}
		if len(s.IDs) > limit {
			return nil, tooLarge(s.Source, len(s.IDs), limit)
		}
		targets := make([]int32, len(s.IDs))
		for t := range targets {
			targets[t] = NoTarget
		}
		copy(targets[s.Prompt-1:], s.IDs[s.Prompt:])
		pieces[i] = piece{item: i, runs: []run{{ids: s.IDs, targets: targets}}}
	}
	return pack(pieces, limit, sizes)
}

// PackGroups lays groups into batches as Pack does sequences: the prefix once, then the branches, each of which sees
// the prefix and itself. A group larger than limit is split between branches and its prefix repeated; an error names a
// group of which not even one branch fits. The log-likelihood of a branch is the sum over its Answer's rows.
func PackGroups(groups []Group, limit int, sizes []int) ([]Batch, error) {
	var pieces []piece
	for i, g := range groups {
		p := piece{item: i, prefix: g.Prefix}
		for k, b := range g.Branches {
			if n := len(g.Prefix) + len(b.IDs); n > limit {
				return nil, tooLarge(g.Source, n, limit)
			}
			if len(p.runs) > 0 && p.length()+len(b.IDs) > limit {
				pieces = append(pieces, p)
				p.runs = nil
			}
			p.runs = append(p.runs, run{b.IDs, b.Targets, k})
		}
		if len(p.runs) > 0 {
			pieces = append(pieces, p)
		}
	}
	return pack(pieces, limit, sizes)
}

func tooLarge(source string, n, limit int) error {
	return invalid(source, "raise the tokens of a batch or lower the maximum length", "%s do not fit a batch of %d", count(n, "token"), limit)
}

// pack is first fit decreasing; every piece fits limit.
func pack(pieces []piece, limit int, sizes []int) ([]Batch, error) {
	sizes = slices.Sorted(slices.Values(sizes))
	if len(sizes) == 0 || sizes[0] < 1 || sizes[len(sizes)-1] < limit {
		return nil, fmt.Errorf("batch sizes %v, expected at least 1 and one of at least %d\ngive sizes up to the tokens of a batch", sizes, limit)
	}
	order := make([]int, len(pieces))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(pieces[b].length(), pieces[a].length()) })
	var bins [][]int
	var used []int
	for _, i := range order {
		n := pieces[i].length()
		bin := slices.IndexFunc(used, func(u int) bool { return u+n <= limit })
		if bin < 0 {
			bin = len(bins)
			bins, used = append(bins, nil), append(used, 0)
		}
		bins[bin], used[bin] = append(bins[bin], i), used[bin]+n
	}
	batches := make([]Batch, len(bins))
	for b, bin := range bins {
		slices.Sort(bin)
		size, _ := slices.BinarySearch(sizes, used[b])
		for _, i := range bin {
			batches[b].add(pieces[i])
		}
		batches[b].pad(sizes[size])
	}
	return batches, nil
}

// add lays a piece behind what the batch holds.
func (b *Batch) add(p piece) {
	seq, from := int32(len(b.Items)), len(b.IDs)
	b.Items = append(b.Items, p.item)
	for i, id := range p.prefix {
		b.token(id, NoTarget, seq, i, 0, 0, from)
	}
	to := len(b.IDs)
	if to == from {
		from, to = 0, 0
	}
	for _, r := range p.runs {
		own := len(b.IDs)
		a := Answer{Item: p.item, Branch: r.branch, From: own, To: own}
		for i, id := range r.ids {
			if r.targets[i] >= 0 {
				if a.From == a.To {
					a.From = own + i
				}
				a.To = own + i + 1
				b.TargetCount++
			}
			b.token(id, r.targets[i], seq, len(p.prefix)+i, from, to, own)
		}
		b.Answers = append(b.Answers, a)
	}
	b.Tokens = len(b.IDs)
}

// pad fills the batch up to size tokens.
func (b *Batch) pad(size int) {
	for t := len(b.IDs); t < size; t++ {
		b.token(0, NoTarget, -1, 0, 0, 0, t+1)
	}
}

func (b *Batch) token(id, target, seq int32, pos, prefixFrom, prefixTo, ownFrom int) {
	b.IDs = append(b.IDs, id)
	b.Targets = append(b.Targets, target)
	b.Seq = append(b.Seq, seq)
	b.Pos = append(b.Pos, int32(pos))
	b.PrefixFrom = append(b.PrefixFrom, int32(prefixFrom))
	b.PrefixTo = append(b.PrefixTo, int32(prefixTo))
	b.OwnFrom = append(b.OwnFrom, int32(ownFrom))
}
