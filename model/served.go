package model

import (
	"fmt"
	"slices"
	"strings"

	"loratrain/checkpoints"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// Served is an exported adapter where a backend can read it, and the base with the shared expert merged into it.
type Served struct {
	Spec AdapterSpec
	Base *Placed

	layers   []servedLayer
	router   kernels.Tensor // (E, D), with router.Token
	tableIDs []int32        // (V, 2), with router.Token
	tableW   []float32      // (V, 2)
	ids      kernels.Tensor // the same where the backend can read it
	gates    kernels.Tensor
	dense    bool             // every layer has its experts' dense form
	own      []kernels.Tensor // what Close gives back: merged weights, and all of a random adapter
}

// servedLayer is one block's part of an export.
type servedLayer struct {
	router  kernels.Tensor // (E, D), with router.Block
	linears [targets]servedLinear
}

// servedLinear is A (E, R, D_in) and B (E, R, D_out) of one linear layer, or none, and its router (E, D_in) with router.Layer.
type servedLinear struct {
	a, b, router kernels.Tensor
	dense        denseLinear // the same in another layout, if prompts want that
}

// DimsOf is the sizes by which an export knows its base.
func DimsOf(a Arch) checkpoints.Dims {
	return checkpoints.Dims{
		Layers: a.Layers, Width: a.Width, MLPWidth: a.MLP, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Vocabulary: a.Vocab,
	}
}

// SpecOf is what an export says its adapter is made of.
func SpecOf(c checkpoints.Config) (AdapterSpec, error) {
	s := AdapterSpec{
		Granularity: router.Granularity(c.Granularity), Experts: c.Experts, Rank: c.Rank, Shared: c.SharedRank, Alpha: c.Alpha,
	}
	for _, name := range c.Targets {
		t, err := ParseTarget(name)
		if err != nil {
			return s, err
		}
		s.Targets = append(s.Targets, t)
	}
	return s, nil
}

// Serve places an export beside its base, which must be the one it was made for. The shared expert is merged into copies of the
// weights it belongs to. The export must stay open until after Close: its mapped tensors are used where they lie if the backend
// can read them there.
func Serve(base *Placed, e *checkpoints.Serving) (*Served, error) {
	spec, err := SpecOf(e.Config)
	if err != nil {
		return nil, err
	}
	s := &Served{Spec: spec, Base: base, layers: make([]servedLayer, base.Arch.Layers)}
	get := func(name string) kernels.Tensor {
		t, ok := e.Tensor(name)
		if !ok || err != nil {
			return kernels.Tensor{}
		}
		var host, placed kernels.Tensor
		if host, err = fromFile(t); err == nil {
			if strings.HasSuffix(name, ".router") { // routers are of the type that training gives them
				host = inType(host, base.Backend.Param())
			}
			placed, err = base.Backend.Place(host)
		}
		return placed
	}
	for l := range s.layers {
		for _, t := range spec.Targets {
			m := Module(l, t)
			s.layers[l].linears[t] = servedLinear{a: get(m + ".lora_A"), b: get(m + ".lora_B"), router: get(m + ".router")}
		}
		s.layers[l].router = get(blockRouter(l))
	}
	s.router = get(tokenRouter)
	shared := make([][targets]servedLinear, len(s.layers))
	if spec.Shared > 0 {
		for l := range shared {
			for _, t := range spec.Targets {
				shared[l][t] = servedLinear{a: get(Module(l, t) + ".shared_A"), b: get(Module(l, t) + ".shared_B")}
			}
		}
	}
	if err == nil && spec.Granularity == router.Token {
		err = s.readTable(e)
	}
	if err == nil && spec.Shared > 0 {
		err = s.mergeShared(shared)
	}
	if err == nil && prefersDense(base.Backend, spec) {
		err = s.placeDense()
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("adapter: %w", err)
	}
	return s, nil
}

func (s *Served) readTable(e *checkpoints.Serving) error {
	ids, _ := e.Tensor(checkpoints.TableIDs)
	weights, _ := e.Tensor(checkpoints.TableWeights)
	hostIDs, err := fromFile(ids)
	if err != nil {
		return err
	}
	hostW, err := fromFile(weights)
	if err != nil {
		return err
	}
	s.tableIDs, s.tableW = kernels.Slice[int32](hostIDs), kernels.Slice[float32](hostW)
	b := s.Base.Backend
	if s.ids, err = b.Place(hostIDs); err == nil {
		s.gates, err = b.Place(inType(hostW, b.Param()))
	}
	return err
}

// mergeShared makes the base one whose weights hold the shared expert.
func (s *Served) mergeShared(shared [][targets]servedLinear) error {
	pair := func(l int, t Target) servedLinear {
		p := shared[l][t]
		// One expert with gate 1 is the shared expert's form.
		p.a = p.a.Reshape(append([]int{1}, p.a.Shape...)...)
		p.b = p.b.Reshape(append([]int{1}, p.b.Shape...)...)
		return p
	}
	merged, jobs, err := s.Base.copyTargets(s.Spec.Targets, pair)
	if err != nil {
		return fmt.Errorf("the shared expert: %w\nfree memory or use a machine with more, or train an adapter with a shared rank of 0", err)
	}
	for _, j := range jobs {
		s.own = append(s.own, j.Dst)
	}
	s.Base = merged
	x := graph.NewImmediate(merged.Backend)
	defer x.Close()
	m, err := x.Backend().PrepareMerge(jobs)
	if err != nil {
		return fmt.Errorf("the shared expert: %w", err)
	}
	defer m.Close()
	return s.merge(x, m, []int32{0}, []float32{1})
}

// copyTargets is the model with memory of its own for the weights of some linear layers, and the jobs that fill them. Where the
// memory is too small nothing is taken, and the error is of one line: only the caller knows how to do without a copy.
func (p *Placed) copyTargets(list []Target, pair func(layer int, t Target) servedLinear) (*Placed, []kernels.Merge, error) {
	const what = "a copy of the weights to merge experts into"
	need := CopyBytes(p.Backend.Float(), p.Arch, list)
	// Asked for as a whole: what is allocated a matrix at a time may be there as long as nobody writes to it.
	if err := Enough(p.Backend, what, need); err != nil {
		return nil, nil, err
	}
	c := *p
	c.weights.Layers = slices.Clone(p.weights.Layers)
	var jobs []kernels.Merge
	for l := range c.weights.Layers {
		for _, t := range list {
			src := p.weights.Layers[l].W[t]
			dst, err := p.Backend.Alloc(p.Backend.Float(), src.Shape...)
			if err != nil {
				freeCopies(p.Backend, jobs)
				return nil, nil, fmt.Errorf("%s, %s in all: %w", what, inBytes(need), headline{err})
			}
			c.weights.Layers[l].W[t] = dst
			e := pair(l, t)
			jobs = append(jobs, kernels.Merge{Dst: dst, Src: src, A: e.a, B: e.b})
		}
	}
	return &c, jobs, nil
}

func freeCopies(b kernels.Backend, jobs []kernels.Merge) {
	for _, j := range jobs {
		b.Free(j.Dst)
	}
}

// merge merges one choice of experts.
func (s *Served) merge(x *graph.Immediate, m kernels.Merging, ids []int32, weights []float32) error {
	return graph.Catch(x.Backend(), func() {
		i, w := x.Ints(ids, len(ids)), x.Floats(weights, len(ids))
		x.Backend().Merge(m, i.Tensor(), w.Tensor(), kernels.Tensor{}, s.Spec.Scale())
		x.Done(i, w)
	})
}

// Table is what the routing table says of a token: two experts and their weights. Only with router.Token.
func (s *Served) Table(id int32) (experts [router.Top]int32, weights [router.Top]float32) {
	copy(experts[:], s.tableIDs[router.Top*id:])
	copy(weights[:], s.tableW[router.Top*id:])
	return experts, weights
}

// chosen is how many experts each token has, if they are the same in the whole model; else 0, as without an adapter.
func (s *Served) chosen() int {
	switch {
	case s == nil:
		return 0
	case s.Spec.Granularity == router.Token:
		return router.Top
	case s.Spec.Granularity == router.None:
		return 1
	}
	return 0
}

// Close gives back the memory of weights that the shared expert was merged into, and that of a random adapter.
func (s *Served) Close() {
	for _, t := range s.own {
		s.Base.Backend.Free(t)
	}
	s.own = nil
}
