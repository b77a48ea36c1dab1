package graph

import (
	"fmt"

	"loratrain/kernels"
)

// Immediate is an Exec that runs each operation's kernel at once. The memory of a value is used again after Done.
type Immediate struct {
	b    kernels.Backend
	free map[int][]kernels.Tensor // by bytes
	all  []kernels.Tensor
}

// buffer is the memory of a V.
type buffer struct {
	t      kernels.Tensor
	whole  kernels.Tensor // what it was cut from; none if bound
	pooled int            // bytes of whole
}

var _ Exec = (*Immediate)(nil)

// NewImmediate runs operations on b.
func NewImmediate(b kernels.Backend) *Immediate {
	return &Immediate{b: b, free: map[int][]kernels.Tensor{}}
}

// Backend implements [Exec].
func (x *Immediate) Backend() kernels.Backend { return x.b }

// Bytes is the memory that values took at the worst moment.
func (x *Immediate) Bytes() int {
	n := 0
	for _, t := range x.all {
		n += t.Bytes()
	}
	return n
}

// Bind implements [Exec].
func (x *Immediate) Bind(_ string, t kernels.Tensor) V {
	return V{Spec: Spec{Type: t.Type, Shape: t.Shape}, buf: &buffer{t: t}}
}

// Apply implements [Exec]. If memory runs out it ends the pass, see [Catch].
func (x *Immediate) Apply(op *Op, in ...V) []V {
	ins := make([]kernels.Tensor, len(in))
	for i, v := range in {
		if !v.None() {
			ins[i] = v.Tensor()
		}
	}
	vs, outs := make([]V, len(op.Out)), make([]kernels.Tensor, len(op.Out))
	for i, s := range op.Out {
		vs[i] = x.take(s)
		outs[i] = vs[i].buf.t
		if op.Adds {
			x.b.Zero(outs[i])
		}
	}
	op.Run(x.b, outs, ins)
	return vs
}

// Ints brings whole numbers to the backend, as a value that Done gives back like any other.
func (x *Immediate) Ints(data []int32, shape ...int) V {
	v := x.take(Of(kernels.I32, shape...))
	x.b.Write(v.buf.t, kernels.FromSlice(data, shape...))
	return v
}

// Floats brings numbers to the backend as elements of its Param type, as Ints does.
func (x *Immediate) Floats(data []float32, shape ...int) V {
	v := x.take(params(x, shape...))
	host := kernels.FromSlice(data, shape...)
	if v.Type == kernels.F64 {
		wide := make([]float64, len(data))
		for i, f := range data {
			wide[i] = float64(f)
		}
		host = kernels.FromSlice(wide, shape...)
	}
	x.b.Write(v.buf.t, host)
	return v
}

// Done implements [Exec]. A later use panics.
func (x *Immediate) Done(vs ...V) {
	for _, v := range vs {
		if v.None() || v.buf.whole.None() {
			continue
		}
		x.free[v.buf.pooled] = append(x.free[v.buf.pooled], v.buf.whole)
		v.buf.whole, v.buf.t = kernels.Tensor{}, kernels.Tensor{}
	}
}

// take finds memory for a value. Sizes are rounded up, so that batches of nearly one size share it.
func (x *Immediate) take(s Spec) V {
	size := 256
	for size < s.bytes() {
		size += max(size/4/256*256, 256)
	}
	var whole kernels.Tensor
	if list := x.free[size]; len(list) > 0 {
		whole, x.free[size] = list[len(list)-1], list[:len(list)-1]
	} else {
		var err error
		if whole, err = x.b.Alloc(kernels.F64, size/8); err != nil {
			Fail(err)
		}
		x.all = append(x.all, whole)
	}
	t := kernels.Tensor{Type: s.Type, Shape: s.Shape, Mem: whole.Mem.Slice(0, s.bytes())}
	return V{Spec: s, buf: &buffer{t: t, whole: whole, pooled: size}}
}

// Close gives the memory back to the backend, also that of values which a pass that failed left.
func (x *Immediate) Close() {
	for _, t := range x.all {
		x.b.Free(t)
	}
	x.all = nil
	clear(x.free)
}

// failure is an error on its way out of a pass.
type failure struct{ error }

// Fail ends the pass that Catch runs with an error.
func Fail(err error) { panic(failure{err}) }

// Catch runs f, a pass over an Immediate, and returns the error that stopped it, memory that could not be had for
// example, or what the backend's Sync reports.
func Catch(b kernels.Backend, f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
			err = b.Sync()
		case failure:
			err = fmt.Errorf("activations: %w", r.error)
		default:
			panic(r)
		}
	}()
	f()
	return nil
}
