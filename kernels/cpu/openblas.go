//go:build darwin || freebsd || linux || netbsd

package cpu

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// openBLAS is the library of that name (https://www.openblas.net), opened while the program runs.
type openBLAS struct {
	file         string
	version      string
	sgemm, dgemm uintptr
}

func (l *openBLAS) String() string { return fmt.Sprintf("OpenBLAS %s (%s)", l.version, l.file) }

// libraryFiles are the names that distributions give it, tried in this order.
func libraryFiles() []string {
	if runtime.GOOS == "darwin" {
		return []string{
			"libopenblas.dylib", "/opt/homebrew/opt/openblas/lib/libopenblas.dylib", "/usr/local/opt/openblas/lib/libopenblas.dylib",
		}
	}
	return []string{"libopenblas.so.0", "libopenblas.so", "libopenblasp.so.0"}
}

var loadOpenBLAS = sync.OnceValues(func() (*openBLAS, error) {
	var errs []error
	for _, file := range libraryFiles() {
		handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_LOCAL)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		lib, err := bindOpenBLAS(file, handle)
		if err == nil {
			return lib, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
})

func bindOpenBLAS(file string, handle uintptr) (*openBLAS, error) {
	lib := &openBLAS{file: file}
	var setThreads, getConfig uintptr
	for _, s := range []struct {
		name string
		at   *uintptr
	}{
		{"sgemm_", &lib.sgemm},
		{"dgemm_", &lib.dgemm},
		{"openblas_set_num_threads", &setThreads},
		{"openblas_get_config", &getConfig},
	} {
		var err error
		if *s.at, err = purego.Dlsym(handle, s.name); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	var config func() string
	purego.RegisterFunc(&config, getConfig)
	words := strings.Fields(config()) // OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH …
	for i, word := range words {
		switch {
		case word == "USE64BITINT":
			return nil, fmt.Errorf("%s: built for 64-bit dimensions", file)
		case i == 1:
			lib.version = word
		}
	}
	// Its threads would compete with ours: two libraries' worth of them halve the speed.
	purego.SyscallN(setThreads, 1)
	return lib, nil
}

// fortran multiplies by BLAS's gemm in its Fortran form, where all arguments are addresses: such a call needs
// neither C nor reflection.
type fortran[E float] struct{ lib *openBLAS }

// fortranCall holds the arguments of a call on the heap.
type fortranCall[E float] struct {
	transA, transB         byte
	m, n, k, lda, ldb, ldc int32
	alpha, beta            E
}

// multiply turns everything: Fortran's arrays are column by column, and cᵀ = bᵀ·aᵀ.
func (f fortran[E]) multiply(w *worker[E], c, a, b matrix[E], alpha, beta E) {
	p := &w.blas
	*p = fortranCall[E]{
		transA: letter(b.turned), transB: letter(a.turned),
		m: int32(c.cols), n: int32(c.rows), k: int32(a.cols),
		lda: int32(b.stride), ldb: int32(a.stride), ldc: int32(c.stride), alpha: alpha, beta: beta,
	}
	gemm := f.lib.sgemm
	if unsafe.Sizeof(alpha) == 8 {
		gemm = f.lib.dgemm
	}
	purego.SyscallN(gemm,
		uintptr(unsafe.Pointer(&p.transA)), uintptr(unsafe.Pointer(&p.transB)),
		uintptr(unsafe.Pointer(&p.m)), uintptr(unsafe.Pointer(&p.n)), uintptr(unsafe.Pointer(&p.k)),
		uintptr(unsafe.Pointer(&p.alpha)), uintptr(unsafe.Pointer(unsafe.SliceData(b.data))), uintptr(unsafe.Pointer(&p.lda)),
		uintptr(unsafe.Pointer(unsafe.SliceData(a.data))), uintptr(unsafe.Pointer(&p.ldb)), uintptr(unsafe.Pointer(&p.beta)),
		uintptr(unsafe.Pointer(unsafe.SliceData(c.data))), uintptr(unsafe.Pointer(&p.ldc)),
		1, 1) // the lengths of the two strings, which Fortran compilers append
}

func letter(turned bool) byte {
	if turned {
		return 'T'
	}
	return 'N'
}
