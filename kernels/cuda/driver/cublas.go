//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/ebitengine/purego"
	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// blasWorkspace is the memory that cuBLAS is given for its sums; NVIDIA advises 32 MiB from Hopper on.
const blasWorkspace = 32 << 20

// blasLibrary is the functions of an open library that are used, or why there are none.
type blasLibrary struct {
	create, destroy, setStream, setWorkspace, setMath, gemm uintptr
	err                                                     error
}

// openBLAS opens cuBLAS of CUDA 13 or 12, from where the system looks for libraries or from a toolkit.
func openBLAS() (lib blasLibrary) {
	folders := []string{""}
	if home := os.Getenv("CUDA_HOME"); home != "" {
		folders = append(folders, filepath.Join(home, "lib64"), filepath.Join(home, "lib"))
	}
	folders = append(folders, "/usr/local/cuda/lib64")
	var why []error
	for _, name := range []string{"libcublas.so.13", "libcublas.so.12"} {
		for _, folder := range folders {
			handle, err := purego.Dlopen(filepath.Join(folder, name), purego.RTLD_LAZY|purego.RTLD_LOCAL)
			if err != nil {
				why = append(why, err)
				continue
			}
			return bindBLAS(handle)
		}
	}
	lib.err = fmt.Errorf("no cuBLAS: %w\n"+
		"install the CUDA toolkit, or pip install nvidia-cublas and put the folder of its libcublas.so.13 into LD_LIBRARY_PATH", why[0])
	return lib
}

func bindBLAS(handle uintptr) (lib blasLibrary) {
	for _, f := range []struct {
		to   *uintptr
		name string
	}{
		{&lib.create, "cublasCreate_v2"},
		{&lib.destroy, "cublasDestroy_v2"},
		{&lib.setStream, "cublasSetStream_v2"},
		{&lib.setWorkspace, "cublasSetWorkspace_v2"},
		{&lib.setMath, "cublasSetMathMode"},
		{&lib.gemm, "cublasGemmEx"},
	} {
		var err error
		if *f.to, err = purego.Dlsym(handle, f.name); err != nil {
			lib.err = fmt.Errorf("cuBLAS: %w\ninstall the one of CUDA 12 or 13", err)
			return lib
		}
	}
	return lib
}

// blas is cuBLAS on one device.
type blas struct {
	lib    blasLibrary
	handle unsafe.Pointer
}

func (d *device) startBLAS(lib blasLibrary) (*blas, error) {
	if lib.err != nil {
		return nil, lib.err
	}
	workspace, err := d.alloc(blasWorkspace)
	if err != nil {
		return nil, fmt.Errorf("workspace of cuBLAS: %w", err)
	}
	b := &blas{lib: lib}
	var status C.int
	err = result(C.queue_open_blas(d.q, function(lib.create), function(lib.setStream), function(lib.setWorkspace), function(lib.setMath),
		C.CUdeviceptr(workspace), blasWorkspace, &b.handle, &status))
	if err == nil && status != 0 {
		err = blasStatus(status)
	}
	if err != nil {
		return nil, fmt.Errorf("cuBLAS does not start: %w\nit must be of CUDA 12 or 13 and not newer than the driver", err)
	}
	return b, nil
}

func (d *device) stopBLAS() {
	if d.blas != nil {
		C.queue_close_blas(d.q, function(d.blas.lib.destroy), d.blas.handle)
	}
}

// function is the address of a C function as cgo passes it.
func function(at uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&at)) }

// dataTypes are those of library_types.h.
var dataTypes = map[kernels.Type]C.int{kernels.F32: 0, kernels.BF16: 14}

// Multiply queues a product.
func (d *device) Multiply(p cuda.Product) {
	if d.fault != nil {
		return
	}
	g, err := gemmOf(p)
	if err != nil {
		panic("kernels/cuda/driver: Multiply: " + err.Error())
	}
	g.handle = d.blas.handle
	d.queue(nameOf(p), func() error {
		var status C.int
		if r := C.queue_multiply(d.q, function(d.blas.lib.gemm), &g, &status); r != C.CUDA_SUCCESS {
			return code(r)
		}
		if status != 0 {
			return blasStatus(status)
		}
		return nil
	})
}

// sides are the dimensions of m, turned if it is transposed.
func sides(m cuda.Matrix) (rows, cols int) {
	if m.Transposed {
		return m.Cols, m.Rows
	}
	return m.Rows, m.Cols
}

// nameOf is the shape of a product, C's rows and columns and the length of its sums, as profiles and errors show it.
func nameOf(p cuda.Product) string {
	m, n := sides(p.C)
	_, k := sides(p.A)
	letter := map[bool]string{false: "", true: "ᵀ"}
	return fmt.Sprintf("A%s·B%s %v→%v %dx%dx%d", letter[p.A.Transposed], letter[p.B.Transposed], p.A.Type, p.C.Type, m, n, k)
}

// gemmOf is p for cublasGemmEx, whose matrices are column by column: what it multiplies are the transposes, Cᵀ = Bᵀ·Aᵀ.
func gemmOf(p cuda.Product) (C.gemm, error) {
	if p.C.Transposed {
		p.C, p.A, p.B = p.C.T(), p.B.T(), p.A.T()
	}
	m, n := sides(p.C)
	am, ak := sides(p.A)
	bk, bn := sides(p.B)
	_, known := dataTypes[p.A.Type]
	switch {
	case am != m || bn != n || ak != bk:
		return C.gemm{}, fmt.Errorf("%d x %d times %d x %d into %d x %d", am, ak, bk, bn, m, n)
	case !known || p.A.Type != p.B.Type || p.C.Type != p.A.Type && p.C.Type != kernels.F32:
		return C.gemm{}, fmt.Errorf("%v times %v into %v", p.A.Type, p.B.Type, p.C.Type)
	}
	for _, x := range []cuda.Matrix{p.A, p.B, p.C} {
		if x.Rows < 1 || x.Cols < 1 || x.Stride < x.Cols || max(x.Rows, x.Stride) > 1<<31-1 {
			return C.gemm{}, errors.New("a matrix of " + fmt.Sprintf("%d x %d with rows %d apart", x.Rows, x.Cols, x.Stride))
		}
	}
	turned := map[bool]C.int{true: 1}
	return C.gemm{
		transpose_a: turned[p.B.Transposed], transpose_b: turned[p.A.Transposed], m: C.int(n), n: C.int(m), k: C.int(ak),
		a: C.CUdeviceptr(p.B.At), b: C.CUdeviceptr(p.A.At), c: C.CUdeviceptr(p.C.At),
		type_a: dataTypes[p.B.Type], type_b: dataTypes[p.A.Type], type_c: dataTypes[p.C.Type],
		lda: C.int(p.B.Stride), ldb: C.int(p.A.Stride), ldc: C.int(p.C.Stride), alpha: C.float(p.Alpha), beta: C.float(p.Beta),
	}, nil
}
