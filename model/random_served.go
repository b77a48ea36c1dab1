package model

import (
	"fmt"
	"math/rand/v2"

	"loratrain/kernels"
	"loratrain/router"
)

// ServeRandom is an adapter that nobody trained, for measuring: experts in BF16 and routers of normal numbers of deviation 0.02, and with
// router.Token a table that gives every token two experts at random. A shared rank is refused: what it takes is done on loading. Close gives all of
// its memory back.
func ServeRandom(base *Placed, spec AdapterSpec, seed uint64) (*Served, error) {
	if spec.Shared > 0 {
		return nil, fmt.Errorf("a random adapter with a shared rank of %d, there are those without one", spec.Shared)
	}
	s := &Served{Spec: spec, Base: base, layers: make([]servedLayer, base.Arch.Layers)}
	err := s.fillRandom(seed)
	if err == nil && prefersDense(base.Backend, spec) {
		err = s.placeDense()
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("a random adapter: %w", err)
	}
	return s, base.Backend.Sync()
}

func (s *Served) fillRandom(seed uint64) error {
	noise, err := NewNoise(s.Base.Backend, kernels.BF16, seed)
	if err != nil {
		return err
	}
	defer noise.Close()
	r := rand.New(rand.NewPCG(seed, 0))
	experts := func(shape ...int) (t kernels.Tensor) {
		if err == nil {
			t, err = noise.Tensor(shape...)
			s.owns(t)
		}
		return t
	}
	routes := func(width int) kernels.Tensor {
		host := kernels.NewHost(s.Base.Backend.Param(), s.Spec.Experts, width)
		for i, set := 0, setter(host); i < host.Len(); i++ {
			set(i, noiseDeviation*r.NormFloat64())
		}
		t, failed := s.take(host)
		if err == nil {
			err = failed
		}
		return t
	}
	for l := range s.layers {
		if s.Spec.Granularity == router.Block {
			s.layers[l].router = routes(s.Base.Arch.Width)
		}
		for _, t := range s.Spec.Targets {
			in, out := s.Base.Arch.Shape(t)
			e := servedLinear{a: experts(s.Spec.Experts, s.Spec.Rank, in), b: experts(s.Spec.Experts, s.Spec.Rank, out)}
			if s.Spec.Granularity == router.Layer {
				e.router = routes(in)
			}
			s.layers[l].linears[t] = e
		}
		if err != nil {
			return err
		}
	}
	if s.Spec.Granularity == router.Token {
		s.router = routes(s.Base.Arch.Width)
		if err == nil {
			err = s.randomTable(r)
		}
	}
	return err
}

// randomTable gives every token two experts, each pair as likely as any other.
func (s *Served) randomTable(r *rand.Rand) error {
	n := s.Spec.Experts
	for range s.Base.Arch.Vocab {
		first := r.IntN(n)
		second := (first + 1 + r.IntN(n-1)) % n
		w := 0.5 + r.Float32()/2
		s.tableIDs, s.tableW = append(s.tableIDs, int32(first), int32(second)), append(s.tableW, w, 1-w)
	}
	rows := s.Base.Arch.Vocab
	var err error
	if s.ids, err = s.take(kernels.FromSlice(s.tableIDs, rows, router.Top)); err == nil {
		s.gates, err = s.take(inType(kernels.FromSlice(s.tableW, rows, router.Top), s.Base.Backend.Param()))
	}
	return err
}

// take is a tensor of host memory in memory that Close gives back.
func (s *Served) take(host kernels.Tensor) (kernels.Tensor, error) {
	t, err := s.Base.Backend.Alloc(host.Type, host.Shape...)
	if err == nil {
		s.owns(t)
		s.Base.Backend.Write(t, host)
	}
	return t, err
}

func (s *Served) owns(t kernels.Tensor) {
	if !t.None() {
		s.own = append(s.own, t)
	}
}
