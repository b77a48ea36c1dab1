package graph

import (
	"errors"
	"fmt"

	G "gorgonia.org/gorgonia"

	"loratrain/kernels"
)

// Program is a compiled graph: Gorgonia's tape machine runs it, over memory that was planned before the first run.
type Program struct {
	rec     *Recorder
	arena   *Arena
	machine G.VM
	order   []*node // as the machine runs them
	pieces  []piece // the results that lie in the arena, in that order
	bytes   int
	kept    Pack
	keeps   []Spec

	ordering   bool // this run only finds the order
	at         int  // operations done in this run
	placed     int  // the arena's count when results were last bound
	recordings map[*Frame]kernels.Recording
}

// Frame is what runs before and after a program, as one piece with it. The functions queue operations on tensors that stay
// where they are, and nothing else.
type Frame struct{ Before, After func() }

// result is one of the results of an operation.
type result struct {
	of *node
	i  int
}

// resultOf is where v comes from; ok is false for bound tensors.
func resultOf(v V) (result, bool) {
	switch o := v.node.Op().(type) {
	case *node:
		return result{o, 0}, true
	case *item:
		return result{o.of, o.i}, true
	default:
		return result{}, false
	}
}

// Compile makes a program of what leads to keep and to sums, those of [Recorder.Gradients]. Values in keep get memory of
// their own and can be read with Kept or Fetch after a run; all others lie in the arena while they are needed. A Recorder
// can be compiled once.
func (r *Recorder) Compile(arena *Arena, keep, sums []V) (*Program, error) {
	roots := make(G.Nodes, 0, len(keep)+len(sums))
	for _, v := range append(append([]V{}, keep...), sums...) {
		roots = append(roots, v.node)
	}
	program, places, err := G.CompileFunction(r.g, r.inputs(roots), roots)
	if err != nil {
		return nil, err
	}
	p := &Program{rec: r, arena: arena, placed: -1, recordings: map[*Frame]kernels.Recording{}}
	p.machine = G.NewTapeMachine(r.g, G.WithPrecompiled(program, places))
	for _, n := range r.made {
		if o, ok := n.Op().(*node); ok {
			o.run = p
		}
	}
	if err := p.prepare(keep); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// prepare finds the order in which the machine runs the operations and places their results.
func (p *Program) prepare(keep []V) error {
	p.ordering = true
	if err := p.run(); err != nil {
		return err
	}
	p.ordering = false
	if err := p.keep(keep); err != nil {
		return err
	}
	p.plan()
	p.arena.admit(p)
	return nil
}

// inputs are the bound nodes that roots depend on.
func (r *Recorder) inputs(roots G.Nodes) G.Nodes {
	used := map[*G.Node]bool{}
	for _, n := range roots {
		used[n] = true
	}
	var inputs G.Nodes
	for i := len(r.made) - 1; i >= 0; i-- {
		n := r.made[i]
		if !used[n] {
			continue
		}
		if n.Op() == nil {
			inputs = append(inputs, n)
		}
		for _, k := range r.kids[n] {
			used[k] = true
		}
	}
	return inputs
}

// keep allocates what outlives a run.
func (p *Program) keep(vs []V) (err error) {
	places := make([]*kernels.Tensor, len(vs))
	taken := map[result]bool{}
	for i, v := range vs {
		res, ok := resultOf(v)
		if !ok {
			return errors.New("a bound tensor cannot be kept: it is kept anyway")
		}
		if res.of.results == nil {
			res.of.results = make([]kernels.Tensor, len(res.of.Out))
		}
		if taken[res] || !res.of.results[res.i].None() {
			return fmt.Errorf("a result of %v cannot be kept: it is already, or it is the gradient of a trainable tensor", res.of)
		}
		places[i], taken[res] = &res.of.results[res.i], true
		p.keeps = append(p.keeps, v.Spec)
	}
	if len(vs) == 0 {
		return nil
	}
	if p.kept, err = NewPack(p.rec.b, p.keeps...); err != nil {
		return err
	}
	for i, t := range p.kept.Parts {
		*places[i] = t
	}
	return nil
}

// plan gives every result a place in the arena from the operation that makes it to the last that uses it.
func (p *Program) plan() {
	lastUse := map[result]int{}
	for k, n := range p.order {
		for i := range n.Out {
			lastUse[result{n, i}] = k
		}
		for _, i := range n.present {
			if res, ok := resultOf(n.in[i]); ok {
				lastUse[res] = k
			}
		}
	}
	ends := make([][]piece, len(p.order))
	var memory planner
	for k, n := range p.order {
		if n.results == nil {
			n.results = make([]kernels.Tensor, len(n.Out))
		}
		for i, s := range n.Out {
			if !n.results[i].None() { // kept, or a sum
				continue
			}
			at := piece{result: result{n, i}, from: memory.take(s.bytes()), bytes: s.bytes(), first: k, last: lastUse[result{n, i}]}
			p.pieces = append(p.pieces, at)
			ends[at.last] = append(ends[at.last], at)
		}
		for _, e := range ends[k] {
			memory.give(e.from, e.bytes)
		}
	}
	p.bytes = memory.end
}

// bind gives the operations the addresses of their results.
func (p *Program) bind() error {
	if err := p.arena.grow(p.bytes); err != nil {
		return err
	}
	if p.placed == p.arena.placed {
		return nil
	}
	p.forget()
	for _, at := range p.pieces {
		at.of.results[at.i] = p.arena.at(at.from, at.of.Out[at.i])
	}
	p.placed = p.arena.placed
	return nil
}

// Bytes is the memory of the arena that the program needs, KeptBytes that of the values it keeps.
func (p *Program) Bytes() int     { return p.bytes }
func (p *Program) KeptBytes() int { return PackBytes(p.keeps...) }

// Operations is how many operations a run has.
func (p *Program) Operations() int { return len(p.order) }

// Kept is the tensor of the i-th value of Compile's keep, as the last run left it.
func (p *Program) Kept(i int) kernels.Tensor { return p.kept.Parts[i] }

// Fetch asks for all kept values as the runs queued so far leave them: they are in host memory when wait has returned. What
// a device that failed never sent is NaN.
func (p *Program) Fetch() (kept []kernels.Tensor, wait func()) {
	host := NewHostPack(p.keeps...)
	FillNaN(host.Whole)
	return host.Parts, p.rec.b.Fetch(host.Whole, p.kept.Whole)
}

// FillNaN sets every byte of a tensor in host memory, which makes each floating-point number of any size a NaN.
func FillNaN(t kernels.Tensor) {
	bytes := t.Mem.(kernels.Host)
	for i := range bytes {
		bytes[i] = 0xff
	}
}

// Run queues everything once, on the bound tensors as they then are. What goes wrong in a device shows at its Sync.
func (p *Program) Run() error { return p.RunIn(nil) }

// RunIn is Run with what f, if not nil, puts before and after it. A [kernels.Capturer] records the first run in a frame and
// repeats the recording later, until the arena moves.
func (p *Program) RunIn(f *Frame) error {
	if err := p.bind(); err != nil {
		return err
	}
	capturer, ok := p.rec.b.(kernels.Capturer)
	if !ok {
		return p.once(f)
	}
	if p.recordings[f] == nil {
		r, err := p.record(capturer, f)
		if err != nil {
			return err
		}
		p.recordings[f] = r
	}
	p.recordings[f].Run()
	return nil
}

func (p *Program) record(c kernels.Capturer, f *Frame) (kernels.Recording, error) {
	var failed error
	r, err := c.Capture(func() { failed = p.once(f) })
	if failed == nil {
		return r, err
	}
	if err == nil {
		r.Close()
	}
	return nil, failed
}

// once lets the machine run all operations.
func (p *Program) once(f *Frame) error {
	if f != nil && f.Before != nil {
		f.Before()
	}
	if err := p.run(); err != nil {
		return err
	}
	if p.at != len(p.order) {
		return fmt.Errorf("the machine ran %d of %d operations", p.at, len(p.order))
	}
	if f != nil && f.After != nil {
		f.After()
	}
	return nil
}

func (p *Program) run() error {
	p.at = 0
	p.machine.Reset() // without it RunAll does nothing, silently
	return p.machine.RunAll()
}

// enter counts n, which is about to run. The plan holds for one order only, so another is an error.
func (p *Program) enter(n *node) error {
	if p.ordering {
		p.order = append(p.order, n)
		return nil
	}
	if p.at >= len(p.order) || p.order[p.at] != n {
		return fmt.Errorf("%s ran out of the planned order", n.Name)
	}
	p.at++
	return nil
}

// forget closes the recordings.
func (p *Program) forget() {
	for _, r := range p.recordings {
		r.Close()
	}
	clear(p.recordings)
}

// Close frees what the program kept.
func (p *Program) Close() error {
	p.forget()
	if !p.kept.Whole.None() {
		p.rec.b.Free(p.kept.Whole)
	}
	p.kept = Pack{}
	return p.machine.Close()
}
