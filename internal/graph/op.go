package graph

import (
	"fmt"
	"hash"
	"hash/fnv"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"loratrain/kernels"
)

// Exec runs or records the operations of a forward pass.
type Exec interface {
	// Backend is what computes, or will.
	Backend() kernels.Backend
	// Bind makes a value of a tensor that stays where it is: a weight, a trainable tensor, an input.
	Bind(name string, t kernels.Tensor) V
	// Apply is one operation on values, of which some may be left out; its results in order.
	Apply(op *Op, in ...V) []V
	// Done says that values will not be used again.
	Done(vs ...V)
}

// Op is one operation with its parameters.
type Op struct {
	Name string
	// Out is the results.
	Out []Spec
	// Run computes out from in; a value that was left out is the zero Tensor.
	Run func(b kernels.Backend, out, in []kernels.Tensor)
	// Diff lists the inputs that Grad gives a gradient of.
	Diff []int
	// Grad is the gradients towards the inputs, given dy, that of the first result, the only one that may have any. It may
	// leave out those that are not asked for.
	Grad func(x Exec, in, out []V, dy V, ask Ask) []V
	// Adds says that Run adds to its result, the gradient of a trainable tensor, instead of overwriting it.
	Adds bool
	// Cheap says that Run takes next to no time: what the backward pass needs of the results is computed again there, from
	// inputs that it needs anyway, instead of being kept.
	Cheap bool
	// Linear says that Grad looks at no number of the inputs and results.
	Linear bool
}

// Ask is what a backward pass wants of Grad.
type Ask struct {
	need  []bool
	take  func(i int) V
	later func(i, after int, f func() V) bool
}

// Needs reports whether the gradient towards input i is needed.
func (a Ask) Needs(i int) bool { return a.need[i] }

// Take is a gradient towards input i that came from another use of the input, or none. The gradient that Grad gives must then
// hold it too: this is for kernels that add as they compute, so that no Sum has to.
func (a Ask) Take(i int) V {
	if a.take == nil {
		return V{}
	}
	return a.take(i)
}

// Later makes the gradient towards input i when all uses of the input `after` have been gone through, if the pass can wait: f is what makes it, and
// V is none then. So operations that read the same large input run one after the other and find it in a cache.
func (a Ask) Later(i, after int, f func() V) V {
	if a.later != nil && a.later(i, after, f) {
		return V{}
	}
	return f()
}

// node is an Op as an operation of Gorgonia, at one place of the graph.
type node struct {
	*Op
	rec     *Recorder
	serial  int
	in      []V              // as applied, with those left out
	present []int            // which of in are children
	out     []V              // as Apply returned them
	block   int              // the number of the Block that it is in, from 1; 0: none
	again   []V              // the results, computed again in the backward pass
	ask     Ask              // what Grad is asked for; the zero Ask: all gradients
	results []kernels.Tensor // where the program's plan put them
	run     *Program         // whose step this is
}

var _ G.SDOp = (*node)(nil)

// Arity implements gorgonia.Op.
func (n *node) Arity() int { return len(n.present) }

// Type implements gorgonia.Op. It must be a fresh one at each call: Gorgonia returns it to a pool.
func (n *node) Type() hm.Type {
	ts := make([]hm.Type, 0, len(n.present)+1)
	for _, i := range n.present {
		ts = append(ts, n.in[i].hmType())
	}
	return hm.NewFnType(append(ts, n.Out[0].hmType())...)
}

// InferShape implements gorgonia.Op.
func (n *node) InferShape(...G.DimSizer) (tensor.Shape, error) {
	return tensor.Shape(n.Out[0].Shape).Clone(), nil
}

// ReturnsPtr, CallsExtern and OverwritesInput keep Gorgonia from allocating memory for results.
func (n *node) ReturnsPtr() bool     { return true }
func (n *node) CallsExtern() bool    { return false }
func (n *node) OverwritesInput() int { return -1 }

// WriteHash implements gorgonia.Op. The serial number keeps nodes apart that only look alike.
func (n *node) WriteHash(h hash.Hash) { fmt.Fprintf(h, "%s#%d", n.Name, n.serial) }

// Hashcode implements gorgonia.Op.
func (n *node) Hashcode() uint32 {
	h := fnv.New32a()
	n.WriteHash(h)
	return h.Sum32()
}

func (n *node) String() string { return n.Name }

// Do implements gorgonia.Op: it runs the kernel on the values that the machine brings, into the place that the plan gave. A
// panic here would end the process, since the machine runs operations in a goroutine of its own.
func (n *node) Do(args ...G.Value) (result G.Value, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: %v", n.Name, r)
		}
	}()
	if n.run == nil {
		return nil, fmt.Errorf("%s is not part of a program", n.Name)
	}
	if err := n.run.enter(n); err != nil {
		return nil, err
	}
	if n.run.ordering {
		return &value{ts: n.placeholders()}, nil
	}
	in := make([]kernels.Tensor, len(n.in))
	for k, i := range n.present {
		in[i] = args[k].(*value).ts[0]
	}
	n.Run(n.rec.b, n.results, in)
	return &value{ts: n.results}, nil
}

func (n *node) placeholders() []kernels.Tensor {
	ts := make([]kernels.Tensor, len(n.Out))
	for i, s := range n.Out {
		ts[i] = kernels.Tensor{Shape: s.Shape, Type: s.Type}
	}
	return ts
}

// DiffWRT implements gorgonia.SDOp.
func (n *node) DiffWRT(int) []bool {
	d := make([]bool, len(n.present))
	for k, i := range n.present {
		for _, j := range n.Diff {
			d[k] = d[k] || i == j
		}
	}
	return d
}

// SymDiff implements gorgonia.SDOp: the nodes of the gradients towards the children, given that of the first result.
// Unless Gradients asked for some of them only, all that there are.
func (n *node) SymDiff(_ G.Nodes, _, grad *G.Node) (gradients G.Nodes, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("gradient of %s: %v", n.Name, r)
		}
	}()
	if n.Grad == nil {
		return nil, fmt.Errorf("%s has no gradient", n.Name)
	}
	ask := n.ask
	if ask.need == nil {
		ask.need = make([]bool, len(n.in))
		for _, i := range n.Diff {
			ask.need[i] = !n.in[i].None()
		}
	}
	in, out := n.rec.alive(n)
	given := n.Grad(n.rec, in, out, V{Spec: n.Out[0], node: grad}, ask)
	for _, i := range n.present {
		if i < len(given) && ask.need[i] {
			gradients = append(gradients, given[i].node)
		} else {
			gradients = append(gradients, nil)
		}
	}
	return gradients, nil
}

// item picks one of several results but the first, which is the operation's own node; it moves no memory.
type item struct {
	of     *node
	i      int
	serial int
}

var _ G.Op = (*item)(nil)

// Arity implements gorgonia.Op.
func (*item) Arity() int { return 1 }

// Type implements gorgonia.Op.
func (o *item) Type() hm.Type { return hm.NewFnType(o.of.Out[0].hmType(), o.of.Out[o.i].hmType()) }

// InferShape implements gorgonia.Op.
func (o *item) InferShape(...G.DimSizer) (tensor.Shape, error) {
	return tensor.Shape(o.of.Out[o.i].Shape).Clone(), nil
}

// ReturnsPtr, CallsExtern and OverwritesInput keep Gorgonia from allocating memory for results.
func (*item) ReturnsPtr() bool     { return true }
func (*item) CallsExtern() bool    { return false }
func (*item) OverwritesInput() int { return -1 }

// WriteHash implements gorgonia.Op.
func (o *item) WriteHash(h hash.Hash) { fmt.Fprintf(h, "%s.%d#%d", o.of.Name, o.i, o.serial) }

// Hashcode implements gorgonia.Op.
func (o *item) Hashcode() uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}

func (o *item) String() string { return fmt.Sprintf("%s.%d", o.of.Name, o.i) }

// Do implements gorgonia.Op.
func (o *item) Do(args ...G.Value) (G.Value, error) {
	return &value{ts: args[0].(*value).ts[o.i : o.i+1]}, nil
}
