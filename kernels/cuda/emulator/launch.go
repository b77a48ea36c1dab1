//go:build linux && (amd64 || arm64)

package emulator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// The limits of CUDA.
const (
	maxThreads   = 1024
	maxThreadsZ  = 64
	maxBlocks    = 1<<31 - 1
	maxBlocksYZ  = 1<<16 - 1
	maxShared    = 227 << 10
	maxArguments = 4096 // bytes
)

// Launch implements [cuda.Device].
func (d *Device) Launch(name string, l cuda.Launch, args ...any) {
	what := "kernel " + name
	k, ok := d.known[name]
	if !ok {
		err := d.broken
		if err == nil {
			err = errors.New("no file has it\nwrite KERNEL(name) behind it")
		}
		d.fail(what, err)
		return
	}
	r, packed, err := k.request(l, args)
	if err != nil {
		d.fail(what, err)
		return
	}
	r.order = uint64(d.order)
	d.queue(name, func() {
		k.launched.Store(true)
		message := make([]byte, messageBytes)
		r := *r
		r.message = unsafe.Pointer(unsafe.SliceData(message))
		// A kernel may change its arguments.
		private := append([]byte(nil), packed...)
		r.args = unsafe.Pointer(unsafe.SliceData(private))
		if d.lib.launch(&r) == 0 {
			d.fail(what, d.refused(message, r.fault))
		}
		d.fail(what, d.checkAround(packed))
	})
}

// refused is a failure that runtime reports.
func (d *Device) refused(message []byte, fault uintptr) error {
	text, _, _ := bytes.Cut(message, []byte{0})
	if fault != 0 {
		return fmt.Errorf("%s: %s", text, d.heap.where(cuda.Address(fault)))
	}
	return errors.New(string(text))
}

// checkAround looks for what was written around the memory that arguments point to.
func (d *Device) checkAround(packed []byte) error {
	for i := 0; i+8 <= len(packed); i += 8 {
		if b := d.heap.find(cuda.Address(binary.NativeEndian.Uint64(packed[i:]))); b != nil {
			if err := b.check(); err != nil {
				return err
			}
		}
	}
	return nil
}

// request is a launch of k, and its arguments, each from a multiple of 8 bytes on.
func (k *kernel) request(l cuda.Launch, args []any) (*launchRequest, []byte, error) {
	r := &launchRequest{kernels: k.kernels, anchor: k.anchor, kernel: k.index, shared: uint64(max(l.Shared, 0))}
	for i := range 3 {
		blocks, threads := max(l.Grid[i], 1), max(l.Block[i], 1)
		if blocks > maxBlocks || i > 0 && blocks > maxBlocksYZ || l.Grid[i] < 0 || threads > maxThreads || l.Block[i] < 0 {
			return nil, nil, fmt.Errorf("%v blocks of %v threads", l.Grid, l.Block)
		}
		r.blocks[i], r.threads[i] = uint32(blocks), uint32(threads)
	}
	if n := uint64(r.threads[0]) * uint64(r.threads[1]) * uint64(r.threads[2]); n > maxThreads || r.threads[2] > maxThreadsZ {
		return nil, nil, fmt.Errorf("%d threads in a block, %v, expected at most %d", n, l.Block, maxThreads)
	}
	if l.Shared < 0 || l.Shared > maxShared {
		return nil, nil, fmt.Errorf("%d bytes of shared memory, expected at most %d", l.Shared, maxShared)
	}
	if len(args) != len(k.params) {
		return nil, nil, fmt.Errorf("%d arguments, expected %d", len(args), len(k.params))
	}
	var packed []byte
	for i, a := range args {
		data, p := bytesOf(a), paramOf(a)
		if want := k.params[i]; p != want {
			return nil, nil, fmt.Errorf("argument %d is %T, %v, expected %v", i, a, p, want)
		}
		packed = append(packed, data...)
		packed = append(packed, make([]byte, (8-len(data)%8)%8)...)
	}
	if len(packed) > maxArguments {
		return nil, nil, fmt.Errorf("%d bytes of arguments, expected at most %d", len(packed), maxArguments)
	}
	return r, append(packed, make([]byte, 8)...), nil
}

// paramOf is what an argument is to a kernel. What Launch does not allow is a kind that no kernel expects.
func paramOf(a any) param {
	switch a.(type) {
	case cuda.Address:
		return param{'p', 8}
	case int32, uint32:
		return param{'i', 4}
	case int64, uint64:
		return param{'i', 8}
	case float32:
		return param{'f', 4}
	}
	if t := reflect.TypeOf(a); t != nil && t.Kind() == reflect.Struct {
		return param{'s', int(t.Size())}
	}
	return param{}
}

// bytesOf is a value as it lies in memory.
func bytesOf(a any) []byte {
	if a == nil {
		return nil
	}
	v := reflect.New(reflect.TypeOf(a))
	v.Elem().Set(reflect.ValueOf(a))
	return append([]byte(nil), unsafe.Slice((*byte)(v.UnsafePointer()), int(v.Elem().Type().Size()))...)
}

// Multiply implements [cuda.Device].
func (d *Device) Multiply(p cuda.Product) {
	what := describe(p)
	if err := d.checkProduct(p); err != nil {
		d.fail(what, err)
		return
	}
	d.queue(what, func() {
		message := make([]byte, messageBytes)
		r := &productRequest{
			c: matrixOf(p.C), a: matrixOf(p.A), b: matrixOf(p.B), alpha: p.Alpha, beta: p.Beta,
			message: unsafe.Pointer(unsafe.SliceData(message)),
		}
		if d.lib.multiply(r) == 0 {
			d.fail(what, d.refused(message, r.fault))
		}
	})
}

// shape is the rows and columns of m as it is used.
func shape(m cuda.Matrix) (rows, cols int) {
	if m.Transposed {
		return m.Cols, m.Rows
	}
	return m.Rows, m.Cols
}

func describe(p cuda.Product) string {
	rows, cols := shape(p.C)
	_, n := shape(p.A)
	return fmt.Sprintf("product (%d, %d, %d) %v·%v→%v", rows, n, cols, p.A.Type, p.B.Type, p.C.Type)
}

func (d *Device) checkProduct(p cuda.Product) error {
	rows, cols := shape(p.C)
	aRows, n := shape(p.A)
	bRows, bCols := shape(p.B)
	switch {
	case aRows != rows || bRows != n || bCols != cols:
		return fmt.Errorf("(%d, %d) times (%d, %d) is (%d, %d)", aRows, n, bRows, bCols, rows, cols)
	case p.A.Type != p.B.Type || p.C.Type != p.A.Type && p.C.Type != kernels.F32:
		return errors.New("types that do not go together")
	}
	for _, m := range []cuda.Matrix{p.C, p.A, p.B} {
		if m.Type != kernels.F32 && m.Type != kernels.BF16 || m.Rows < 1 || m.Cols < 1 || m.Stride < m.Cols {
			return fmt.Errorf("matrix %+v", m)
		}
		if int(m.At)%m.Type.Size() != 0 {
			return fmt.Errorf("matrix %+v is not aligned", m)
		}
		if _, err := d.heap.at(m.At, extent(m)); err != nil {
			return err
		}
	}
	for _, m := range []cuda.Matrix{p.A, p.B} {
		if m.At < p.C.At+cuda.Address(extent(p.C)) && p.C.At < m.At+cuda.Address(extent(m)) {
			return errors.New("the result lies where a factor does")
		}
	}
	return nil
}

// extent is the bytes from a matrix's first element to its last.
func extent(m cuda.Matrix) int { return ((m.Rows-1)*m.Stride + m.Cols) * m.Type.Size() }

func matrixOf(m cuda.Matrix) matrixRequest {
	rows, cols := shape(m)
	r := matrixRequest{at: uintptr(m.At), rows: int64(rows), cols: int64(cols), stride: int64(m.Stride)}
	if m.Type == kernels.BF16 {
		r.isBF16 = 1
	}
	if m.Transposed {
		r.transposed = 1
	}
	return r
}
