package kernels

import (
	"fmt"
	"math"
	"slices"
	"unsafe"
)

// Type is how an element of a [Tensor] is stored.
type Type uint8

// The storage types. I32 holds ids, positions and ranges.
const (
	F32 Type = iota + 1
	F64
	BF16
	I32
)

var typeInfo = map[Type]struct {
	name string
	size int
}{F32: {"f32", 4}, F64: {"f64", 8}, BF16: {"bf16", 2}, I32: {"i32", 4}}

// Size is the number of bytes of one element.
func (t Type) Size() int { return typeInfo[t].size }

func (t Type) String() string {
	if i, ok := typeInfo[t]; ok {
		return i.name
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// BFloat16 is the upper half of a float32.
type BFloat16 uint16

// Float32 widens b, exactly.
func (b BFloat16) Float32() float32 { return math.Float32frombits(uint32(b) << 16) }

// ToBFloat16 rounds x to the nearest BFloat16, ties to even; a NaN stays a NaN.
func ToBFloat16(x float32) BFloat16 {
	bits := math.Float32bits(x)
	if x != x {
		return BFloat16(bits>>16 | 0x40)
	}
	return BFloat16((bits + 0x7fff + bits>>16&1) >> 16)
}

// Element is a Go type that an element of a [Tensor] in host memory can be seen as.
type Element interface {
	float32 | float64 | BFloat16 | int32
}

// TypeOf is the storage type of E.
func TypeOf[E Element]() Type {
	switch any(*new(E)).(type) {
	case float32:
		return F32
	case float64:
		return F64
	case BFloat16:
		return BF16
	default:
		return I32
	}
}

// Memory is a span of some backend's memory. Only the backend that made it can look inside; [Host] is the
// memory of this process.
type Memory interface {
	// Slice is the bytes [from, to) of the span, sharing its memory.
	Slice(from, to int) Memory
}

// Host is memory of this process: the heap, or a mapped file, which must not be written.
type Host []byte

// Slice implements [Memory].
func (h Host) Slice(from, to int) Memory { return h[from:to:to] }

// Tensor is a dense row-major array. The zero Tensor stands for "none" where a method allows it.
type Tensor struct {
	Shape []int
	Type  Type
	Mem   Memory
}

// Len is the number of elements of a tensor of the given shape.
func Len(shape ...int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// None reports whether t is the zero Tensor.
func (t Tensor) None() bool { return t.Mem == nil }

// Len is the number of elements.
func (t Tensor) Len() int { return Len(t.Shape...) }

// Bytes is the size of the elements in bytes.
func (t Tensor) Bytes() int { return t.Len() * t.Type.Size() }

// View is the elements from, from+1, … of t in another shape, sharing its memory.
func (t Tensor) View(from int, shape ...int) Tensor {
	n := Len(shape...)
	if from < 0 || from+n > t.Len() {
		panic(fmt.Sprintf("kernels: view of elements [%d, %d) of a tensor of %d", from, from+n, t.Len()))
	}
	size := t.Type.Size()
	return Tensor{Shape: slices.Clone(shape), Type: t.Type, Mem: t.Mem.Slice(from*size, (from+n)*size)}
}

// Reshape is all elements of t in another shape, sharing its memory.
func (t Tensor) Reshape(shape ...int) Tensor {
	if Len(shape...) != t.Len() {
		panic(fmt.Sprintf("kernels: reshape of %v to %v", t.Shape, shape))
	}
	return t.View(0, shape...)
}

func (t Tensor) String() string { return fmt.Sprintf("%v%v", t.Type, t.Shape) }

// NewHost is a tensor of zeros on the heap.
func NewHost(t Type, shape ...int) Tensor {
	// A slice of the widest type is aligned for all of them.
	n := Len(shape...) * t.Size()
	words := make([]uint64, (n+7)/8)
	return Tensor{Shape: slices.Clone(shape), Type: t, Mem: Host(bytesOf(words)[:n:n])}
}

// FromSlice is a tensor over the elements of data, sharing its memory.
func FromSlice[E Element](data []E, shape ...int) Tensor {
	if Len(shape...) != len(data) {
		panic(fmt.Sprintf("kernels: %d elements for shape %v", len(data), shape))
	}
	return Tensor{Shape: slices.Clone(shape), Type: TypeOf[E](), Mem: Host(bytesOf(data))}
}

// Aligned reports whether elements of type t can be read where data, of a mapped file for example, lies.
func Aligned(t Type, data []byte) bool {
	return len(data) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(data)))%uintptr(t.Size()) == 0
}

// Slice is the elements of a tensor in host memory, sharing it. It panics if t lies elsewhere, has another
// type or is not aligned for it.
func Slice[E Element](t Tensor) []E {
	mem, ok := t.Mem.(Host)
	if !ok || t.Type != TypeOf[E]() {
		panic(fmt.Sprintf("kernels: %v in %T is no host slice of %v", t, t.Mem, TypeOf[E]()))
	}
	if len(mem) == 0 {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(p)%unsafe.Alignof(*new(E)) != 0 {
		panic(fmt.Sprintf("kernels: %v is not aligned", t))
	}
	return unsafe.Slice((*E)(p), t.Len())
}

func bytesOf[E any](s []E) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(*new(E))))
}
