//go:build !(darwin || freebsd || linux || netbsd)

package cpu

import (
	"errors"
	"runtime"
)

// openBLAS cannot be opened here.
type openBLAS struct{}

func (l *openBLAS) String() string { return "none" }

func loadOpenBLAS() (*openBLAS, error) { return nil, errors.New("not supported on " + runtime.GOOS) }

type fortran[E float] struct{ lib *openBLAS }

type fortranCall[E float] struct{}

func (f fortran[E]) multiply(w *worker[E], c, a, b matrix[E], alpha, beta E) {
	dots[E]{}.multiply(w, c, a, b, alpha, beta)
}
