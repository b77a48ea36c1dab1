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
	offsets [][]int // of each operation's results in the arena; -1: elsewhere
	bytes   int
	kept    []kernels.Tensor

	ordering bool // this run only finds the order
	at       int  // operations done in this run
	placed   int  // the arena's count when results were last bound
}

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
// their own and can be read with Kept after a run; all others lie in the arena while they are needed. A Recorder can be
// compiled once.
func (r *Recorder) Compile(arena *Arena, keep, sums []V) (*Program, error) {
	roots := make(G.Nodes, 0, len(keep)+len(sums))
	for _, v := range append(append([]V{}, keep...), sums...) {
		roots = append(roots, v.node)
	}
	program, places, err := G.CompileFunction(r.g, r.inputs(roots), roots)
	if err != nil {
		return nil, err
	}
	p := &Program{rec: r, arena: arena, placed: -1}
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
	return p.arena.grow(p.bytes)
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
func (p *Program) keep(vs []V) error {
	for _, v := range vs {
		res, ok := resultOf(v)
		if !ok {
			return errors.New("a bound tensor cannot be kept: it is kept anyway")
		}
		if res.of.results == nil {
			res.of.results = make([]kernels.Tensor, len(res.of.Out))
		}
		if !res.of.results[res.i].None() {
			return fmt.Errorf("a result of %v cannot be kept: it is already, or it is the gradient of a trainable tensor", res.of)
		}
		t, err := p.rec.b.Alloc(v.Type, v.Shape...)
		if err != nil {
			return err
		}
		res.of.results[res.i] = t
		p.kept = append(p.kept, t)
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
	type piece struct{ from, bytes int }
	ends := make([][]piece, len(p.order))
	var memory planner
	p.offsets = make([][]int, len(p.order))
	for k, n := range p.order {
		if n.results == nil {
			n.results = make([]kernels.Tensor, len(n.Out))
		}
		for i, s := range n.Out {
			if !n.results[i].None() { // kept, or a sum
				p.offsets[k] = append(p.offsets[k], -1)
				continue
			}
			from := memory.take(s.bytes())
			p.offsets[k] = append(p.offsets[k], from)
			end := lastUse[result{n, i}]
			ends[end] = append(ends[end], piece{from, s.bytes()})
		}
		for _, e := range ends[k] {
			memory.give(e.from, e.bytes)
		}
	}
	p.bytes = memory.end
}

// bind gives the operations the addresses of their results.
func (p *Program) bind() {
	if p.placed == p.arena.placed {
		return
	}
	for k, n := range p.order {
		for i, offset := range p.offsets[k] {
			if offset >= 0 {
				n.results[i] = p.arena.at(offset, n.Out[i])
			}
		}
	}
	p.placed = p.arena.placed
}

// Bytes is the memory of the arena that the program needs.
func (p *Program) Bytes() int { return p.bytes }

// Operations is how many operations a run has.
func (p *Program) Operations() int { return len(p.order) }

// Kept is the tensor of the i-th value of Compile's keep, as the last run left it.
func (p *Program) Kept(i int) kernels.Tensor { return p.kept[i] }

// Run computes everything once, from the bound tensors as they are.
func (p *Program) Run() error {
	p.bind()
	if err := p.run(); err != nil {
		return err
	}
	if p.at != len(p.order) {
		return fmt.Errorf("the machine ran %d of %d operations", p.at, len(p.order))
	}
	return p.rec.b.Sync()
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

// Close frees what the program kept.
func (p *Program) Close() error {
	for _, t := range p.kept {
		p.rec.b.Free(t)
	}
	p.kept = nil
	return p.machine.Close()
}
