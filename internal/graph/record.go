package graph

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"loratrain/kernels"
)

// Recorder is an Exec that makes a node of every operation.
type Recorder struct {
	b      kernels.Backend
	g      *G.ExprGraph
	serial int
	made   []*G.Node // in the order of making: children before parents
	kids   map[*G.Node]G.Nodes
	hashes map[uint32]bool // of made

	recompute bool
	block     int // the number of the Block that is recorded, 0: none
	blocks    int
	users     map[*node][]*node // of the first results, in the forward pass
}

var _ Exec = (*Recorder)(nil)

// NewRecorder is an empty graph to be run by b.
func NewRecorder(b kernels.Backend) *Recorder {
	return &Recorder{b: b, g: G.NewGraph(), kids: map[*G.Node]G.Nodes{}, hashes: map[uint32]bool{}}
}

// Backend implements [Exec].
func (r *Recorder) Backend() kernels.Backend { return r.b }

// Done implements [Exec]; a Program knows by itself when a value is used for the last time.
func (r *Recorder) Done(...V) {}

// Bind implements [Exec].
func (r *Recorder) Bind(name string, t kernels.Tensor) V {
	s := Spec{Type: t.Type, Shape: slices.Clone(t.Shape)}
	for {
		// Gorgonia takes inputs of one name, or none, for one node: the serial number keeps them apart.
		r.serial++
		n := G.NewTensor(r.g, dtypes[s.Type], len(s.Shape), G.WithShape(s.Shape...),
			G.WithName(fmt.Sprintf("%s#%d", name, r.serial)), G.WithValue(&value{ts: []kernels.Tensor{t}}))
		if r.keep(n, nil) {
			return V{Spec: s, node: n}
		}
	}
}

// Apply implements [Exec].
func (r *Recorder) Apply(op *Op, in ...V) []V {
	n := &node{Op: op, rec: r, in: in, block: r.block}
	var kids G.Nodes
	for i, v := range in {
		if !v.None() {
			n.present = append(n.present, i)
			kids = append(kids, v.node)
		}
	}
	made := r.add(n, &n.serial, kids)
	n.out = []V{{Spec: op.Out[0], node: made}}
	for i, s := range op.Out[1:] {
		part := &item{of: n, i: i + 1}
		n.out = append(n.out, V{Spec: s, node: r.add(part, &part.serial, G.Nodes{made})})
	}
	return n.out
}

// add makes a node that is not merged with another: Gorgonia's compiler tells nodes apart by a hash of 32 bits alone and
// would compute the first of two that collide for both.
func (r *Recorder) add(op G.Op, serial *int, kids G.Nodes) *G.Node {
	for {
		r.serial++
		*serial = r.serial
		n, err := G.ApplyOp(op, kids...)
		if err != nil {
			panic(fmt.Sprintf("graph: %v: %v", op, err))
		}
		if r.keep(n, kids) {
			return n
		}
	}
}

// keep notes a new node; false says that it is an old one or has the hash of one. Such a node stays in Gorgonia's graph,
// where nothing leads to it.
func (r *Recorder) keep(n *G.Node, kids G.Nodes) bool {
	hash := n.Hashcode()
	if r.hashes[hash] {
		return false
	}
	r.hashes[hash], r.kids[n] = true, kids
	r.made = append(r.made, n)
	return true
}
