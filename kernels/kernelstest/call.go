package kernelstest

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
)

// role is what an operation does with an operand.
type role uint8

const (
	reads      role = iota
	isWeight        // reads, from a place for frozen weights
	overwrites      // without a look at what was there
	adds            // to what was there, or changes a part of it
)

// The numbers of guard elements on either side of an operand. Operands take turns, so that some lie at an odd
// element: nothing in the contract aligns a tensor further than its type.
var guards = []int{64, 61}

// call is one call of an operation: its operands, and the checks on what becomes of them.
type call struct {
	t    testing.TB
	b    kernels.Backend
	rand *rand.Rand
	args []*operand
	// aligned: every operand lies at a round place, as whole tensors do, for ways that a backend has only there
	aligned bool
}

func newCall(t testing.TB, b kernels.Backend) *call {
	seed := fnv.New64a()
	seed.Write([]byte(strings.Join(strings.Split(t.Name(), "/")[1:], "/")))
	return &call{t: t, b: b, rand: rand.New(rand.NewPCG(seed.Sum64(), 1))}
}

// operand is one tensor of a call, in the middle of a guarded buffer.
type operand struct {
	name   string
	role   role
	view   kernels.Tensor // what the operation gets
	whole  kernels.Tensor // with the guards
	guard  int
	before kernels.Tensor // host: what whole starts as
	after  kernels.Tensor // host: what it is after the call
	ref    matrix
	idle   bool // the operation has no use for it
}

// tensor is what the operation gets; none for no operand.
func (o *operand) tensor() kernels.Tensor {
	if o == nil {
		return kernels.Tensor{}
	}
	return o.view
}

// matrix is what the operand holds at first, as rows of its last dimension.
func (o *operand) matrix() matrix {
	if o == nil {
		return matrix{}
	}
	return o.ref
}

func (c *call) operand(name string, r role, typ kernels.Type, values []float64, guard float64, shape ...int) *operand {
	c.t.Helper()
	if len(values) != kernels.Len(shape...) {
		c.t.Fatalf("%s: %d values for shape %v", name, len(values), shape)
	}
	o := &operand{name: name, role: r, guard: guards[len(c.args)%len(guards)]}
	if c.aligned {
		o.guard = guards[0]
	}
	around := slices.Repeat([]float64{guard}, o.guard)
	o.before = encode(slices.Concat(around, values, around), typ)
	o.after = kernels.NewHost(typ, o.before.Len())
	var err error
	if r == isWeight {
		o.whole, err = c.b.Place(o.before)
	} else if o.whole, err = c.b.Alloc(typ, o.before.Len()); err == nil {
		whole := o.whole
		c.t.Cleanup(func() { c.b.Free(whole) })
		c.b.Write(o.whole, o.before)
	}
	if err != nil {
		c.t.Fatalf("memory for %s: %v", name, err)
	}
	o.view = o.whole.View(o.guard, shape...)
	o.ref = c.reference(o, typ, shape)
	c.args = append(c.args, o)
	return o
}

// reference is the operand as rows of its last dimension, with the values that its type can hold. What is wider
// than Float may be rounded to it before it is used, if it is a frozen weight.
func (c *call) reference(o *operand, typ kernels.Type, shape []int) matrix {
	stored := decode(o.before)[o.guard : o.guard+kernels.Len(shape...)]
	m := matrix{rows: 1, cols: 1}
	if n := len(shape); n > 0 && len(stored) > 0 {
		m.cols = shape[n-1]
		m.rows = len(stored) / m.cols
	}
	for _, v := range stored {
		x := exact(v)
		if o.role == isWeight && roundoff(typ) < roundoff(c.b.Float()) {
			x = x.stored()
		}
		m.elems = append(m.elems, x)
	}
	return m
}

// in is an operand that the operation only reads.
func (c *call) in(name string, typ kernels.Type, values []float64, shape ...int) *operand {
	c.t.Helper()
	return c.operand(name, reads, typ, values, math.NaN(), shape...)
}

// weight is in for a frozen weight of any type.
func (c *call) weight(name string, typ kernels.Type, values []float64, shape ...int) *operand {
	c.t.Helper()
	return c.operand(name, isWeight, typ, values, math.NaN(), shape...)
}

// ids is in for ids, positions and ranges. Those around them point nowhere.
func (c *call) ids(name string, values []int32, shape ...int) *operand {
	c.t.Helper()
	wide := make([]float64, len(values))
	for i, v := range values {
		wide[i] = float64(v)
	}
	return c.operand(name, reads, kernels.I32, wide, math.MaxInt32-1000, shape...)
}

// out is an operand that the operation overwrites: NaN before.
func (c *call) out(name string, typ kernels.Type, shape ...int) *operand {
	c.t.Helper()
	poison, guard := math.NaN(), math.NaN()
	if typ == kernels.I32 {
		poison, guard = -7777, -8888
	}
	return c.operand(name, overwrites, typ, slices.Repeat([]float64{poison}, kernels.Len(shape...)), guard, shape...)
}

// adds is an operand that the operation adds to.
func (c *call) adds(name string, typ kernels.Type, values []float64, shape ...int) *operand {
	c.t.Helper()
	return c.operand(name, adds, typ, values, math.NaN(), shape...)
}

// run does op twice, from the same state, and checks all that must hold whatever op computes.
func (c *call) run(op func()) {
	c.t.Helper()
	c.once(op)
	var first [][]byte
	for _, o := range c.args {
		c.b.Read(o.after, o.whole)
		c.untouched(o)
		first = append(first, slices.Clone(hostBytes(o.after)))
		if o.role == overwrites || o.role == adds {
			c.b.Write(o.whole, o.before)
		}
	}
	c.once(op)
	for i, o := range c.args {
		c.b.Read(o.after, o.whole)
		if at := differs(first[i], hostBytes(o.after)); at >= 0 {
			c.t.Errorf("%s%v has other bits when the operation is repeated", o.name, o.index(at/o.view.Type.Size()-o.guard))
		}
	}
}

// once does op; a panic fails the test but not those after it.
func (c *call) once(op func()) {
	c.t.Helper()
	if p, stack := caught(op); p != nil {
		c.t.Fatalf("panic: %v\n%s", p, stack)
	}
	if err := c.b.Sync(); err != nil {
		c.t.Fatalf("Sync: %v", err)
	}
}

func caught(op func()) (p any, stack []byte) {
	defer func() {
		if p = recover(); p != nil {
			stack = debug.Stack()
		}
	}()
	op()
	return nil, nil
}

// untouched checks that the guards of o, and all of it if it is only read, are as they were.
func (c *call) untouched(o *operand) {
	c.t.Helper()
	size := o.view.Type.Size()
	from, to := o.guard*size, (o.guard+o.view.Len())*size
	before, after := hostBytes(o.before), hostBytes(o.after)
	if at := differs(before[:from], after[:from]); at >= 0 {
		c.t.Errorf("%s: written %d elements before its start", o.name, o.guard-at/size)
	}
	if at := differs(before[to:], after[to:]); at >= 0 {
		c.t.Errorf("%s: written %d elements behind its end", o.name, at/size+1)
	}
	if o.role == reads || o.role == isWeight {
		if at := differs(before[from:to], after[from:to]); at >= 0 {
			c.t.Errorf("%s%v: an input was modified", o.name, o.index(at/size))
		}
	}
}

// differs is the first byte that differs, or -1.
func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// index is where the i-th element of o is.
func (o *operand) index(i int) []int {
	at := make([]int, len(o.view.Shape))
	for d := len(at) - 1; d >= 0; d-- {
		at[d] = i % o.view.Shape[d]
		i /= o.view.Shape[d]
	}
	return at
}

// got is what the operation left in o.
func (o *operand) got() []float64 {
	return decode(o.after)[o.guard : o.guard+o.view.Len()]
}

// reported is how many wrong elements of one tensor are printed.
const reported = 3

// want compares an output with the reference.
func (c *call) want(o *operand, want matrix) {
	c.t.Helper()
	got := o.got()
	if len(got) != len(want.elems) {
		c.t.Fatalf("%s has %d elements, the reference %d", o.name, len(got), len(want.elems))
	}
	var wrong []string
	for i, w := range want.elems {
		tol := tolerance(w, o.view.Type, c.b.Float(), c.b.Param())
		if !agree(got[i], w.v, tol) {
			wrong = append(wrong, fmt.Sprintf("%s%v is %v, want %v ± %.3g", o.name, o.index(i), got[i], w.v, tol))
		}
	}
	if len(wrong) > 0 {
		c.t.Errorf("%d of %d elements of %s are wrong:\n\t%s", len(wrong), len(got), o.name,
			strings.Join(wrong[:min(reported, len(wrong))], "\n\t"))
	}
}

// agree says that a NaN is right where a NaN is due, and an infinity where that infinity is.
func agree(got, want, tol float64) bool {
	switch {
	case math.IsInf(tol, 1):
		return true
	case math.IsNaN(want) || math.IsNaN(got):
		return math.IsNaN(want) && math.IsNaN(got)
	case math.IsInf(want, 0):
		return got == want
	}
	return math.Abs(got-want) <= tol
}

// wantValues is want for numbers worked by hand.
func (c *call) wantValues(o *operand, want ...float64) {
	c.t.Helper()
	c.want(o, matrix{1, len(want), numbers(want)})
}

// wantIDs compares an output of ids.
func (c *call) wantIDs(o *operand, want ...int32) {
	c.t.Helper()
	for i, got := range o.got() {
		if int32(got) != want[i] {
			c.t.Errorf("%s%v is %v, want %d", o.name, o.index(i), got, want[i])
		}
	}
}

func numbers(values []float64) []number {
	x := make([]number, len(values))
	for i, v := range values {
		x[i] = exact(v)
	}
	return x
}
