//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"unsafe"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// sharedAlways is the dynamic shared memory that every kernel may have without asking: what static shared memory leaves of 48 KiB.
const sharedAlways = 32 << 10

// Launch queues a kernel by name.
func (d *device) Launch(name string, l cuda.Launch, args ...any) {
	if d.fault != nil {
		return
	}
	k, err := d.kernel(name)
	if err != nil {
		d.fail(name, err)
		return
	}
	if l.Shared > k.shared {
		if err := result(C.queue_allow_shared(d.q, k.function, C.int(l.Shared))); err != nil {
			d.fail(fmt.Sprintf("%s with %d bytes of shared memory", name, l.Shared), err)
			return
		}
		k.shared = l.Shared
	}
	shape := shapeOf(l)
	n := d.pack(d.arguments(), k, args)
	if !d.keeps() {
		d.ran(name, d.launch(k, &shape))
		return
	}
	d.keep(k, shape, slices.Clone(d.arguments()[:n]))
}

// keep queues a launch with arguments of its own.
func (d *device) keep(k *kernel, shape C.launch_shape, arguments []byte) {
	d.queue(k.name, func() error {
		copy(d.arguments(), arguments)
		return d.launch(k, &shape)
	})
}

func (d *device) launch(k *kernel, shape *C.launch_shape) error {
	for i, at := range k.offsets {
		d.q.where[i] = unsafe.Pointer(&d.q.arguments[at])
	}
	if r := C.queue_launch(d.q, k.function, shape); r != C.CUDA_SUCCESS {
		if c := code(r); !isFault(c) {
			return fmt.Errorf("launch of %v blocks of %v threads and %d bytes of shared memory: %w", shape.grid, shape.block, shape.shared, c)
		}
		return code(r)
	}
	return nil
}

func shapeOf(l cuda.Launch) (s C.launch_shape) {
	for i := range 3 {
		s.grid[i] = C.uint(max(l.Grid[i], 1))
		s.block[i] = C.uint(max(l.Block[i], 1))
	}
	s.shared = C.uint(l.Shared)
	return s
}

// arguments is the memory from which the next launch takes them.
func (d *device) arguments() []byte {
	return unsafe.Slice((*byte)(&d.q.arguments[0]), C.argument_bytes)
}

// pack lays args out as C does, which is the same at every launch of k, and returns their size.
func (d *device) pack(buf []byte, k *kernel, args []any) int {
	if len(args) != len(k.parameters) {
		panic(fmt.Sprintf("kernels/cuda/driver: kernel %s takes %d arguments, not %d", k.name, len(k.parameters), len(args)))
	}
	if k.offsets == nil {
		k.offsets = make([]int, len(args))
	}
	at := 0
	for i, arg := range args {
		size := 0
		at, size = d.packOne(buf, at, arg)
		if size != k.parameters[i] {
			panic(fmt.Sprintf("kernels/cuda/driver: argument %d of kernel %s has %d bytes, not %d (%T)", i, k.name, k.parameters[i], size, arg))
		}
		k.offsets[i] = at
		at += size
	}
	return at
}

// packOne writes one argument at or after an offset, and returns where it lies and its size.
func (d *device) packOne(buf []byte, at int, arg any) (offset, size int) {
	wide := (at + 7) &^ 7
	narrow := (at + 3) &^ 3
	switch v := arg.(type) {
	case cuda.Address:
		binary.NativeEndian.PutUint64(buf[wide:], uint64(v))
		return wide, 8
	case int64:
		binary.NativeEndian.PutUint64(buf[wide:], uint64(v))
		return wide, 8
	case uint64:
		binary.NativeEndian.PutUint64(buf[wide:], v)
		return wide, 8
	case int32:
		binary.NativeEndian.PutUint32(buf[narrow:], uint32(v))
		return narrow, 4
	case uint32:
		binary.NativeEndian.PutUint32(buf[narrow:], v)
		return narrow, 4
	case float32:
		binary.NativeEndian.PutUint32(buf[narrow:], math.Float32bits(v))
		return narrow, 4
	}
	if box, ok := arg.(cuda.Box); ok {
		at = (at + boxAlign - 1) &^ (boxAlign - 1)
		d.packBox(buf[at:], box)
		return at, C.box_bytes
	}
	t := reflect.TypeOf(arg)
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("kernels/cuda/driver: an argument of type %T", arg))
	}
	// Go lays out structs of these types as C does.
	boxed := reflect.New(t)
	boxed.Elem().Set(reflect.ValueOf(arg))
	at = (at + t.Align() - 1) &^ (t.Align() - 1)
	copy(buf[at:], unsafe.Slice((*byte)(boxed.UnsafePointer()), t.Size()))
	return at, int(t.Size())
}

// boxAlign is the alignment of a CUtensorMap.
const boxAlign = 64

func (d *device) packBox(buf []byte, x cuda.Box) {
	m := x.Of
	r := C.queue_box(d.q, unsafe.Pointer(unsafe.SliceData(buf)), C.CUdeviceptr(m.At), C.uint(m.Rows), C.uint(m.Cols), C.uint(m.Stride), C.uint(x.Rows), C.uint(x.Cols))
	if err := result(r); err != nil || m.Type != kernels.BF16 || m.Transposed {
		panic(fmt.Sprintf("kernels/cuda/driver: boxes of %d rows of %+v: %v", x.Rows, m, err))
	}
}

// Boxes writes boxes to memory, as kernels for Hopper read them there; those of nothing are left out.
func (d *device) Boxes(dst cuda.Address, list []cuda.Box) {
	buf := make([]byte, len(list)*C.box_bytes)
	for i, x := range list {
		if x.Rows > 0 {
			d.packBox(buf[i*C.box_bytes:], x)
		}
	}
	d.Upload(dst, buf)
}

// operation is something queued, kept to be queued again.
type operation struct {
	name string
	run  func() error
}

// keeps reports whether what is queued is kept, for a recording or a profile.
func (d *device) keeps() bool { return d.recording != nil || d.profile != nil }

// queue runs, records or keeps an operation.
func (d *device) queue(name string, run func() error) {
	if d.fault != nil {
		return
	}
	switch op := (operation{name, run}); {
	case d.recording != nil:
		d.record(op)
	case d.profile != nil:
		d.profile.pending = append(d.profile.pending, op)
		if len(d.profile.pending) == window {
			d.flush()
		}
	default:
		d.ran(name, run())
	}
}

// ran notes what was queued, and, tracing, waits for it.
func (d *device) ran(name string, err error) {
	d.history.add(name)
	if err == nil && d.trace {
		err = result(C.queue_sync(d.q))
	}
	if err != nil {
		d.fail(name, err)
	}
}
