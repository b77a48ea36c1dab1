// Package cpu implements the contract of package kernels on the processor.
//
// Start with [New]. One generic source serves float32, the default, and float64, which exists for checks. Files
// are by topic: linear.go, switch.go, attention.go, loss.go and so on hold the operations; matrix.go, openblas.go
// and dots.go multiply matrices; vector.go and exp.go are the loops over slices; parallel.go spreads work.
//
// Caveats. An operation is done when its call returns. Work is cut into parts by fixed rules, so that results are
// the same, bit for bit, whenever the matrix library and the number of threads are the same. Not-a-number and
// infinity in an input reach the output: a diverged run shows. Frozen weights of another type than the
// activations are widened panel by panel as they are needed, never whole.
package cpu

import (
	"errors"
	"fmt"
	"runtime"

	"loratrain/kernels"
)

// Options chooses what computes. The zero Options is float32 with the fastest library there is, on all processors.
type Options struct {
	Float64 bool   // compute in float64, for checks
	Matrix  string // matrix library: "openblas", "go", or "" for the faster one that this machine has
	Threads int    // 0: GOMAXPROCS
}

// New is the CPU backend. Its memory is [kernels.Host], and frozen weights stay where they are.
func New(o Options) (kernels.Backend, error) {
	if o.Threads < 0 {
		return nil, fmt.Errorf("%d threads: expected a positive number\nleave it out to use all processors", o.Threads)
	}
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.Float64 {
		return newEngine(vector64, o)
	}
	return newEngine(vector32, o)
}

// engine implements kernels.Backend for E.
type engine[E float] struct {
	vec     vector[E]
	matrix  multiplier[E]
	library string // of matrix, for people
	workers []*worker[E]
	memory  kernels.Account
}

func newEngine[E float](vec vector[E], o Options) (*engine[E], error) {
	e := &engine[E]{vec: vec}
	switch o.Matrix {
	case "openblas", "":
		lib, err := loadOpenBLAS()
		if err == nil {
			e.matrix, e.library = fortran[E]{lib}, lib.String()
			break
		}
		if o.Matrix != "" {
			return nil, errors.Join(fmt.Errorf("OpenBLAS: %w", err), errors.New(installAdvice))
		}
		e.matrix, e.library = dots[E]{}, simdName()+"; "+installAdvice
	case "go":
		e.matrix, e.library = dots[E]{}, simdName()
	default:
		return nil, fmt.Errorf("matrix library %q: expected openblas or go\nleave it out to take the faster one", o.Matrix)
	}
	for range o.Threads {
		e.workers = append(e.workers, newWorker(e))
	}
	return e, nil
}

const installAdvice = "install libopenblas0 (apt) or openblas (brew, dnf) to be faster"

// Name is what a user types to choose the backend: "cpu" or "cuda".
func (e *engine[E]) Name() string { return "cpu" }

// String says in one line what computes, for people.
func (e *engine[E]) String() string {
	threads := "1 thread"
	if n := len(e.workers); n > 1 {
		threads = fmt.Sprintf("%d threads", n)
	}
	name := map[kernels.Type]string{kernels.F32: "float32", kernels.F64: "float64"}[e.Float()]
	return fmt.Sprintf("CPU, %s, %s, %s", name, threads, e.library)
}

// Float is the type of activations.
func (e *engine[E]) Float() kernels.Type { return kernels.TypeOf[E]() }

// Param is the type of trainable tensors and what belongs to them: the same.
func (e *engine[E]) Param() kernels.Type { return kernels.TypeOf[E]() }
