package model

import (
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// state is where a decoder's sequences stand, on its backend.
type state struct {
	kernels.Sequences
	pack   graph.Pack
	logits kernels.Tensor // (S, V): those that Tokens were chosen by
	keys   []uint64       // as in Keys
}

// newState is that of stopped sequences.
func newState(p *Placed, ad *Served, sequences, room int) (s state, err error) {
	b := p.Backend
	specs := []graph.Spec{
		graph.Of(kernels.I32, sequences), graph.Of(kernels.I32, sequences), graph.Of(kernels.I32, sequences, 2),
		graph.Of(kernels.I32, sequences), graph.Of(kernels.I32, sequences), graph.Of(kernels.I32, sequences, 4),
		graph.Of(b.Param(), sequences),
	}
	n := 0 // experts of a token
	switch {
	case ad != nil && ad.Spec.Granularity == router.Token:
		n = router.Top
	case ad != nil && ad.Spec.Granularity == router.None:
		n = 1
	}
	if n > 0 {
		specs = append(specs, graph.Of(kernels.I32, sequences, n), graph.Of(b.Param(), sequences, n))
	}
	if s.pack, err = graph.NewPack(b, specs...); err != nil {
		return s, err
	}
	if s.logits, err = b.Alloc(b.Float(), sequences, p.Arch.Vocab); err != nil {
		return s, err
	}
	s.keys = make([]uint64, sequences)
	t := s.pack.Parts
	s.Sequences = kernels.Sequences{
		Tokens: t[0], Length: t[1], Keys: t[2], Room: room, Window: p.Arch.Window, Pos: t[3], Rows: t[4], Spans: t[5], U: t[6],
	}
	lengths := make([]int32, sequences)
	for i := range lengths {
		lengths[i] = stopped
	}
	b.Write(s.Length, kernels.FromSlice(lengths, sequences))
	if n > 0 {
		s.Experts, s.Weights = t[7], t[8]
		ones := kernels.NewHost(b.Param(), sequences, n)
		for i, set := 0, setter(ones); i < ones.Len(); i++ {
			set(i, 1) // the one expert of granularity none
		}
		b.Write(s.Weights, ones)
	}
	return s, nil
}

func (s *state) free(b kernels.Backend) {
	for _, t := range []kernels.Tensor{s.pack.Whole, s.logits} {
		if !t.None() {
			b.Free(t)
		}
	}
	*s = state{}
}

// setLength changes how many tokens a sequence has.
func (d *Decoder) setLength(seq, n int) {
	d.lengths[seq] = n
	d.base.Backend.Write(d.state.Length.View(seq, 1), kernels.FromSlice([]int32{int32(n)}, 1))
}

// setLengths puts back what is known of all, after a step that failed.
func (d *Decoder) setLengths() {
	list := make([]int32, len(d.lengths))
	for i, n := range d.lengths {
		list[i] = int32(n)
	}
	d.base.Backend.Write(d.state.Length, kernels.FromSlice(list, len(list)))
}
