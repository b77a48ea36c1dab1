package model

import (
	"slices"

	"loratrain/internal/graph"
	"loratrain/kernels"
)

// prefill runs tokens of one sequence, [Decoder.PrefillTokens] at a time, each with its own experts, and chooses the token that follows. If it
// fails the sequence is as it was.
func (d *Decoder) prefill(seq int, ids []int32) error {
	if len(ids) == 0 {
		return nil
	}
	d.release(seq)
	n, last := d.lengths[seq], (len(ids)-1)/d.PrefillTokens()
	err := graph.Catch(d.base.Backend, func() {
		i := 0
		for piece := range slices.Chunk(ids, d.PrefillTokens()) {
			d.prefillPiece(seq, n, piece, i == last)
			n += len(piece)
			i++
		}
		d.chooseFirst(seq, n)
	})
	if err != nil {
		return err
	}
	d.setLength(seq, n)
	d.chosen[seq] = true
	return nil
}

// prefillPiece runs tokens behind from others. The last piece leaves the logits of the token that follows.
func (d *Decoder) prefillPiece(seq, from int, ids []int32, last bool) {
	x, n := d.x, len(ids)
	values := d.values
	var ad Adapter
	var p *servedPass
	switch {
	case d.serving != nil && !d.switches(): // its one expert is merged
		values = d.serving
	case d.adapter != nil:
		p = d.adapter.pass(x, ids, d.mode != Layerwise)
		ad = p
	}
	pos, rows, spans := make([]int32, n), make([]int32, n), make([]int32, 0, 4*n)
	begin := int32(seq * d.room)
	for t := range pos {
		pos[t] = int32(from + t)
		rows[t] = begin + pos[t]
		first := int32(0)
		if w := d.base.Arch.Window; w > 0 {
			first = max(0, pos[t]-int32(w)+1)
		}
		spans = append(spans, 0, 0, begin+first, rows[t]+1)
	}
	in := Inputs{IDs: x.Ints(ids, n), Pos: x.Ints(pos, n), Spans: x.Ints(spans, n, 4), Cache: d.cache, Rows: x.Ints(rows, n)}
	hidden := Hidden(x, values, ad, in)
	width, vocab := d.base.Arch.Width, d.base.Arch.Vocab
	if last {
		d.project(d.state.logits.View(seq*vocab, 1, vocab), hidden.Tensor().View((n-1)*width, 1, width))
	}
	x.Done(hidden, in.IDs, in.Pos, in.Spans, in.Rows)
	switch {
	case p == nil:
	case last:
		d.prefilled[seq] = p
	default:
		p.Release(x)
	}
}

// chooseFirst draws the token that follows a sequence's n tokens.
func (d *Decoder) chooseFirst(seq, n int) {
	b, s, vocab := d.base.Backend, &d.state, d.base.Arch.Vocab
	u := kernels.NewHost(s.U.Type, 1)
	setter(u)(0, randomOf(s.keys[seq]).Uniform(n-1))
	b.Write(s.U.View(seq, 1), u)
	b.Sample(s.Tokens.View(seq, 1), s.logits.View(seq*vocab, 1, vocab), s.U.View(seq, 1), d.rule)
}

// randomOf is a sequence's random numbers: the one of position p draws the token that follows it.
func randomOf(key uint64) kernels.Stream { return kernels.Random(int32(key>>32), int32(key), 0) }

// PromptKey is the key for Start of a prompt: that of an index under a seed, whoever is decoded beside it.
func PromptKey(seed uint64, index int) uint64 {
	return kernels.Random(int32(seed>>32), int32(seed), index).At(0)
}

// release gives back what a sequence's last prefill left.
func (d *Decoder) release(seq int) {
	if p := d.prefilled[seq]; p != nil {
		p.Release(d.x)
		d.prefilled[seq] = nil
	}
}
