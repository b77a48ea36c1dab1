package graph

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"loratrain/kernels"
)

// Gradient is where the gradient of a trainable tensor is added up.
type Gradient struct {
	Of   V
	Into kernels.Tensor
}

// backward is the state of one reverse pass.
type backward struct {
	*Recorder
	need  map[*G.Node]bool           // on a way from the loss to a trainable tensor
	leaf  map[*G.Node]kernels.Tensor // where the gradients of trainable tensors are added up
	terms map[*G.Node][]V            // what has arrived at a node and is not part of a later term
	place map[*G.Node]int            // of nodes in the forward pass
	waits map[*G.Node][]waiting      // what is made when a node's uses have been gone through
}

// waiting is a gradient of a node that is made later.
type waiting struct {
	of   *G.Node
	make func() V
}

// Gradients adds the backward pass of loss, a value of one element, to the graph: reverse mode over the operations'
// SymDiff, for the gradients that are needed only. Gradients that meet at a value are added by the operations that make them
// (Ask.Take), or else by a Sum. seed (1) is the gradient of loss itself. A trainable tensor must be used by operations whose
// gradient towards it adds to memory (Op.Adds), so that nothing is summed or copied twice. The values it returns must be among
// the roots of Compile.
func (r *Recorder) Gradients(loss, seed V, grads []Gradient) ([]V, error) {
	w := backward{
		Recorder: r, need: map[*G.Node]bool{}, leaf: map[*G.Node]kernels.Tensor{}, terms: map[*G.Node][]V{loss.node: {seed}},
		place: map[*G.Node]int{}, waits: map[*G.Node][]waiting{},
	}
	for _, g := range grads {
		w.need[g.Of.node] = true
		w.leaf[g.Of.node] = g.Into
	}
	forward := r.made
	for i, n := range forward {
		w.mark(n)
		w.place[n] = i
	}
	r.findUsers()
	var roots []V
	for i := len(forward) - 1; i >= 0; i-- {
		n := forward[i]
		for _, g := range w.waits[n] {
			if err := w.arrive(g.of, g.make()); err != nil {
				return nil, err
			}
		}
		delete(w.waits, n)
		ts := w.terms[n]
		if !w.need[n] || len(ts) == 0 {
			continue
		}
		if into, ok := w.leaf[n]; ok {
			if err := bindSums(n, ts, into); err != nil {
				return nil, err
			}
			roots = append(roots, ts...)
			continue
		}
		dy := ts[0]
		if len(ts) > 1 {
			dy = Sum(r, ts...)
		}
		if err := w.propagate(n, dy); err != nil {
			return nil, err
		}
	}
	for _, g := range grads {
		if len(w.terms[g.Of.node]) == 0 {
			return nil, fmt.Errorf("no gradient reaches %s", g.Of.node.Name())
		}
	}
	return roots, nil
}

// bindSums lets the operations that give the gradient of n add it to into.
func bindSums(n *G.Node, terms []V, into kernels.Tensor) error {
	for _, t := range terms {
		o, ok := t.node.Op().(*node)
		if !ok || !o.Adds {
			return fmt.Errorf("the gradient of %s comes from %v, which does not add to memory", n.Name(), t.node.Op())
		}
		o.results = []kernels.Tensor{into}
	}
	return nil
}

// arrive notes a gradient of n. It fails if n is no trainable tensor and the gradient would be added to memory that nothing has
// cleared.
func (w *backward) arrive(n *G.Node, term V) error {
	o, ok := term.node.Op().(*node)
	if _, trainable := w.leaf[n]; ok && o.Adds && !trainable {
		return fmt.Errorf("%v adds its gradient to memory, but %v is no trainable tensor", o, n.Op())
	}
	w.terms[n] = append(w.terms[n], term)
	return nil
}

// take hands out what arrived last at n, if there is anything. Trainable tensors have memory where it is all added.
func (w *backward) take(n *G.Node) V {
	ts := w.terms[n]
	if _, trainable := w.leaf[n]; trainable || len(ts) == 0 {
		return V{}
	}
	w.terms[n] = ts[:len(ts)-1]
	return ts[len(ts)-1]
}

// wait lets f make a gradient of a node when the pass has come to another, unless it needs the gradient before.
func (w *backward) wait(of, until *G.Node, f func() V) bool {
	if w.place[of] >= w.place[until] {
		return false
	}
	w.waits[until] = append(w.waits[until], waiting{of, f})
	return true
}

// mark says whether a gradient must pass through n.
func (w *backward) mark(n *G.Node) {
	op, ok := n.Op().(G.SDOp)
	if !ok {
		return
	}
	kids := w.kids[n]
	for k, d := range op.DiffWRT(len(kids)) {
		if d && w.need[kids[k]] {
			w.need[n] = true
		}
	}
}

// propagate brings the gradient dy of n to those inputs that need one.
func (w *backward) propagate(n *G.Node, dy V) error {
	op, kids := n.Op().(G.SDOp), w.kids[n]
	diff := op.DiffWRT(len(kids))
	waits := map[*G.Node]bool{} // what n gives later
	if o, ok := op.(*node); ok {
		o.ask = Ask{need: make([]bool, len(o.in)), take: func(i int) V { return w.take(o.in[i].node) }}
		o.ask.later = func(i, after int, f func() V) bool {
			of := o.in[i].node
			if !w.wait(of, o.in[after].node, f) {
				return false
			}
			waits[of] = true
			return true
		}
		for k, i := range o.present {
			o.ask.need[i] = diff[k] && w.need[kids[k]]
		}
	}
	given, err := op.SymDiff(kids, n, dy.node)
	if err != nil {
		return err
	}
	for k, kid := range kids {
		if !diff[k] || !w.need[kid] {
			continue
		}
		if given[k] == nil && waits[kid] {
			continue
		}
		if given[k] == nil {
			return fmt.Errorf("%v gives no gradient for input %d", op, k)
		}
		if err := w.arrive(kid, w.value(given[k])); err != nil {
			return err
		}
	}
	return nil
}

// value is the V of a node.
func (r *Recorder) value(n *G.Node) V {
	switch o := n.Op().(type) {
	case *node:
		return o.out[0]
	case *item:
		return o.of.out[o.i]
	default:
		t := n.Value().(*value).ts[0]
		return V{Spec: Spec{Type: t.Type, Shape: t.Shape}, node: n}
	}
}
