package graph

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"loratrain/kernels"
)

// collide fails unless the first node of two has the hash that this test expects of both.
func collide(t *testing.T, first *G.Node, a, b uint32) {
	t.Helper()
	if a != b || first.Hashcode() != a {
		t.Fatalf("hashes %#x and %#x, and Gorgonia's is %#x: find two names again that collide", a, b, first.Hashcode())
	}
}

// distinct fails unless every node of a recorder has a hash of its own: compilation takes nodes of one hash for one node.
func distinct(t *testing.T, r *Recorder) {
	t.Helper()
	nodes := map[uint32]*G.Node{}
	for _, n := range r.made {
		if old := nodes[n.Hashcode()]; old != nil {
			t.Errorf("nodes %v and %v both have the hash %#x", old, n, n.Hashcode())
		}
		nodes[n.Hashcode()] = n
	}
}

// nodeHash is Gorgonia's hash of a node that is a vector of one number, from what an operation or the name of an input writes.
func nodeHash(write func(h hash.Hash), kids ...*G.Node) uint32 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v%v", G.TensorType{Dims: 1, Of: tensor.Float64}, tensor.Shape{1})
	write(h)
	h.Write([]byte{byte(len(kids))})
	for _, k := range kids {
		binary.Write(h, binary.LittleEndian, k.Hashcode())
	}
	return h.Sum32()
}

func inputHash(name string, serial int) uint32 {
	return nodeHash(func(h hash.Hash) { fmt.Fprintf(h, "%s#%d", name, serial) })
}

func TestInputsWhoseHashesCollide(t *testing.T) {
	const a, b = "a179243", "b108566" // by trying
	r := NewRecorder(newBackend(t, true))
	three, five := bound(r, a, []float64{3}, 1), bound(r, b, []float64{5}, 1)
	collide(t, three.node, inputHash(a, 1), inputHash(b, 2))
	sum, product := Sum(r, three, five), Scale(r, three, five)
	distinct(t, r)
	p := compiled(t, r, []V{sum, product}, nil)
	mustRun(t, p)
	if s, m := float64s(p.Kept(0))[0], float64s(p.Kept(1))[0]; s != 8 || m != 15 {
		t.Errorf("inputs %q and %q: 3 + 5 = %g and 3·5 = %g, want 8 and 15", a, b, s, m)
	}
}

// plus is an operation on one vector that adds a number to it, under any name.
func plus(name string, number float64) *Op {
	return &Op{
		Name: name, Out: []Spec{Of(kernels.F64, 1)},
		Run: func(_ kernels.Backend, out, in []kernels.Tensor) {
			float64s(out[0])[0] = float64s(in[0])[0] + number
		},
	}
}

func TestOperationsWhoseHashesCollide(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x := bound(r, "x", []float64{10}, 1)
	opHash := func(name string, serial int) uint32 {
		return nodeHash((&node{Op: &Op{Name: name}, serial: serial}).WriteHash, x.node)
	}
	const a, b = "a209066", "b82636" // by trying
	one, two := r.Apply(plus(a, 1), x)[0], r.Apply(plus(b, 2), x)[0]
	collide(t, one.node, opHash(a, 2), opHash(b, 3))
	distinct(t, r)
	p := compiled(t, r, []V{one, two}, nil)
	mustRun(t, p)
	if x, y := float64s(p.Kept(0))[0], float64s(p.Kept(1))[0]; x != 11 || y != 12 {
		t.Errorf("operations %q and %q: 10 + 1 = %g and 10 + 2 = %g, want 11 and 12", a, b, x, y)
	}
}

// TestNothingIsMerged records 20,000 nodes that look alike, more than the graph of a 30-layer model has.
func TestNothingIsMerged(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x, op := bound(r, "x", []float64{1}, 1), plus("same", 1)
	for range 10_000 {
		r.Apply(op, x)
		bound(r, "x", []float64{1}, 1)
	}
	if want := 20_001; len(r.made) != want {
		t.Errorf("%d nodes, want %d", len(r.made), want)
	}
	distinct(t, r)
}

// TestEqualOperationsBothRun is what recomputing activations relies on.
func TestEqualOperationsBothRun(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	ran, op := 0, plus("counted", 1)
	run := op.Run
	op.Run = func(b kernels.Backend, out, in []kernels.Tensor) {
		ran++
		run(b, out, in)
	}
	x := bound(r, "x", []float64{1}, 1)
	p := compiled(t, r, []V{Sum(r, r.Apply(op, x)[0], r.Apply(op, x)[0])}, nil)
	mustRun(t, p)
	if got := float64s(p.Kept(0))[0]; ran != 2 || got != 4 {
		t.Errorf("the operation ran %d times and the sum is %g, want 2 and 4", ran, got)
	}
}

func TestInputsOfOneNameStayApart(t *testing.T) {
	for _, name := range []string{"weight", ""} {
		r := NewRecorder(newBackend(t, true))
		p := compiled(t, r, []V{Sum(r, bound(r, name, []float64{3}, 1), bound(r, name, []float64{5}, 1))}, nil)
		mustRun(t, p)
		if got := float64s(p.Kept(0))[0]; got != 8 {
			t.Errorf("two inputs named %q: 3 + 5 = %g", name, got)
		}
	}
}

// TestBoundShapeIsCopied keeps a caller that changes its shape from changing the graph.
func TestBoundShapeIsCopied(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	tensor := tensorOf([]float64{1, 2}, 2)
	v := r.Bind("x", tensor)
	tensor.Shape[0] = 7
	if v.Shape[0] != 2 {
		t.Errorf("the value's shape is %v, want [2]", v.Shape)
	}
}

func TestRecordedValueHasNoTensor(t *testing.T) {
	v := bound(NewRecorder(newBackend(t, true)), "x", []float64{1}, 1)
	panics(t, "the tensor of a recorded value", func() { v.Tensor() })
}

func TestValuesOfTwoRecordersDoNotMix(t *testing.T) {
	b := newBackend(t, true)
	x, y := bound(NewRecorder(b), "x", []float64{1}, 1), bound(NewRecorder(b), "y", []float64{1}, 1)
	panics(t, "graph: Sum of 2: Not all children have the same graph", func() { Sum(NewRecorder(b), x, y) })
}

// TestTakenHashes records a graph, and again with each of its hashes taken by something else.
func TestTakenHashes(t *testing.T) {
	b := newBackend(t, true)
	record := func(taken map[uint32]bool) []*G.Node {
		r := NewRecorder(b)
		r.hashes = taken
		p := compiled(t, r, []V{Sum(r, r.Apply(weave(1, 1, 1), bound(r, "x", []float64{1}, 1))...)}, nil)
		mustRun(t, p)
		if got := float64s(p.Kept(0))[0]; got != 5 {
			t.Errorf("(1 + 1) + (1 + 2) = %g", got)
		}
		return r.made
	}
	for _, first := range record(map[uint32]bool{}) {
		for _, n := range record(map[uint32]bool{first.Hashcode(): true}) {
			if n.Hashcode() == first.Hashcode() {
				t.Errorf("%v has the hash %#x, which was taken", n, n.Hashcode())
			}
		}
	}
}
