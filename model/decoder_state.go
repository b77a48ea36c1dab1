package model

import (
	"slices"

	"loratrain/internal/graph"
	"loratrain/kernels"
)

// state is where a decoder's sequences stand, on its backend.
type state struct {
	kernels.Sequences
	pack   graph.Pack
	force  kernels.Tensor // as Merge's, of what is merged into the serving copy
	logits kernels.Tensor // (S, V): those that Tokens were chosen by
	keys   []uint64       // as in Keys
}

// newState is that of stopped sequences.
func newState(p *Placed, ad *Served, sequences, room int) (s state, err error) {
	s.Room, s.Window = room, p.Arch.Window
	ints := func(shape ...int) graph.Spec { return graph.Of(kernels.I32, shape...) }
	parts := []struct {
		to *kernels.Tensor
		graph.Spec
	}{
		{&s.Tokens, ints(sequences)},
		{&s.Length, ints(sequences)},
		{&s.Keys, ints(sequences, 2)},
		{&s.Pos, ints(sequences)},
		{&s.Live, ints(sequences)},
		{&s.Rows, ints(sequences)},
		{&s.Spans, ints(sequences, 4)},
		{&s.U, graph.Of(p.Backend.Param(), sequences)},
		{&s.Experts, ints(sequences, ad.chosen())},
		{&s.Weights, graph.Of(p.Backend.Param(), sequences, ad.chosen())},
		{&s.force, ints(2 * ad.chosen())},
	}
	var specs []graph.Spec
	for _, part := range parts {
		specs = append(specs, part.Spec)
	}
	if s.pack, err = graph.NewPack(p.Backend, specs...); err != nil {
		return s, err
	}
	for i, part := range parts {
		if kernels.Len(part.Shape...) > 0 {
			*part.to = s.pack.Parts[i]
		}
	}
	if s.logits, err = p.Backend.Alloc(p.Backend.Param(), sequences, p.Arch.Vocab); err != nil {
		return s, err
	}
	s.keys = make([]uint64, sequences)
	p.Backend.Write(s.Length, kernels.FromSlice(slices.Repeat([]int32{stopped}, sequences), sequences))
	if !s.Weights.None() {
		ones := kernels.NewHost(s.Weights.Type, s.Weights.Shape...)
		for i, set := 0, setter(ones); i < ones.Len(); i++ {
			set(i, 1) // the one expert of granularity none
		}
		p.Backend.Write(s.Weights, ones)
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
