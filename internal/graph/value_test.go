package graph

import (
	"fmt"
	"slices"
	"testing"

	"loratrain/kernels"
)

// remote is memory that Go cannot reach: bytes of a device by number.
type remote struct {
	of       *device
	from, to int
}

func (m remote) Slice(from, to int) kernels.Memory { return remote{m.of, m.from + from, m.from + to} }

// device computes on such memory; whoever takes it for a [kernels.Host] panics.
type device struct {
	kernels.Backend
	numbers []float64
}

func (d *device) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	from := 8 * len(d.numbers)
	d.numbers = append(d.numbers, make([]float64, kernels.Len(shape...)+alignment/8)...)
	return kernels.Tensor{Type: t, Shape: shape, Mem: remote{d, from, from + 8*kernels.Len(shape...)}}, nil
}

func (d *device) Free(kernels.Tensor) {}
func (d *device) Sync() error         { return nil }

func (d *device) slice(t kernels.Tensor) []float64 {
	m := t.Mem.(remote)
	return d.numbers[m.from/8 : m.to/8]
}

func (d *device) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	for i := range d.slice(y) {
		sum := 0.0
		for _, x := range xs {
			sum += d.slice(x)[i]
		}
		d.slice(y)[i] = sum
	}
}

func (d *device) Scale(y, x, factor kernels.Tensor) {
	for i, v := range d.slice(x) {
		d.slice(y)[i] = v * d.slice(factor)[0]
	}
}

// TestMemoryIsTheBackendsAlone runs forward and backward on memory that is not in this process's reach.
func TestMemoryIsTheBackendsAlone(t *testing.T) {
	d := &device{Backend: newBackend(t, true)}
	place := func(xs ...float64) kernels.Tensor {
		p, _ := d.Alloc(kernels.F64, len(xs))
		copy(d.slice(p), xs)
		return p
	}
	r := NewRecorder(d)
	into := place(100, 200)
	w := r.Bind("w", place(2, 3))
	add := &Op{
		Name: "lift", Out: []Spec{w.Spec}, Diff: []int{0},
		Run: func(_ kernels.Backend, out, in []kernels.Tensor) { copy(d.slice(out[0]), d.slice(in[0])) },
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "gradient of lift", Out: []Spec{in[0].Spec}, Adds: true,
				Run: func(_ kernels.Backend, out, in []kernels.Tensor) {
					for i, g := range d.slice(in[0]) {
						d.slice(out[0])[i] += g
					}
				},
			}, dy)
		},
	}
	v := r.Apply(add, w)[0]
	y := Sum(r, v, Scale(r, v, r.Bind("factor", place(10))))
	sums, err := r.Gradients(y, r.Bind("seed", place(1, -1)), []Gradient{{Of: w, Into: into}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Compile(NewArena(d), []V{y}, sums)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, p)
	if got := d.slice(p.Kept(0)); !slices.Equal(got, []float64{22, 33}) {
		t.Errorf("w + 10·w is %v, want [22 33]", got)
	}
	if got := d.slice(into); !slices.Equal(got, []float64{111, 189}) {
		t.Errorf("the gradient added to [100 200] is %v, want [111 189]", got)
	}
}

// forbidden is memory that nobody may touch.
type forbidden struct{}

func (forbidden) Slice(int, int) kernels.Memory { panic("memory was touched") }

func TestValueHidesItsMemory(t *testing.T) {
	v := &value{ts: []kernels.Tensor{
		{Type: kernels.BF16, Shape: []int{3, 5}, Mem: forbidden{}}, {Type: kernels.I32, Shape: []int{2}, Mem: forbidden{}},
	}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%3.3g", "%q"} {
		if got, want := fmt.Sprintf(verb, v), "[bf16[3 5] i32[2]]"; got != want {
			t.Errorf("%s prints %s, want %s", verb, got, want)
		}
	}
	if v.Uintptr() != 0 {
		t.Errorf("Uintptr is %#x, which something may follow", v.Uintptr())
	}
	panics(t, "belongs to its backend", func() { v.Data() })
	if v.Size() != 15 || v.MemSize() != 30 || !v.Shape().Eq([]int{3, 5}) || v.Dtype() != dtypes[kernels.BF16] {
		t.Errorf("size %d, %d bytes, shape %v, dtype %v, want 15, 30, (3, 5), %v", v.Size(), v.MemSize(), v.Shape(), v.Dtype(),
			dtypes[kernels.BF16])
	}
	v.Shape()[0] = 9
	if !v.Shape().Eq([]int{3, 5}) {
		t.Errorf("a caller changed the value's shape to %v", v.Shape())
	}
}

// TestTypesOfNodes: Gorgonia pools the types it is given, so each call needs a new one.
func TestTypesOfNodes(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x := bound(r, "x", normal("x", 6), 2, 3)
	res := r.Apply(weave(1, 4, 5), x)
	for _, v := range append(res, x) {
		if v.Type != kernels.F64 || !v.node.Shape().Eq(v.Shape) {
			t.Errorf("a value %v%v has a node of shape %v", v.Type, v.Shape, v.node.Shape())
		}
	}
	hashes := map[uint32]bool{}
	for _, n := range r.made {
		op := n.Op()
		if op == nil { // an input
			continue
		}
		if h := op.Hashcode(); hashes[h] {
			t.Errorf("%v has the hash %#x of another operation", op, h)
		} else {
			hashes[h] = true
		}
		if a, b := op.Type(), op.Type(); a == b {
			t.Errorf("%v gives the same type %p twice", op, a)
		}
		if op.CallsExtern() || !op.ReturnsPtr() || op.OverwritesInput() != -1 {
			t.Errorf("%v lets Gorgonia allocate or overwrite", op)
		}
	}
	for typ, dtype := range dtypes {
		if int(dtype.Size()) != typ.Size() {
			t.Errorf("%v has %d bytes, for Gorgonia %v of %d", typ, typ.Size(), dtype, dtype.Size())
		}
	}
}
