package checkpoints

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/maruel/safetensors"
	"github.com/x448/float16"
)

// Type is the element type of a tensor, under the name that safetensors gives it.
type Type string

// The types that this project computes with. Files may hold the other types of
// safetensors too (U8, I8, U16, BOOL, F8_E4M3, …): they are read and written as bytes.
const (
	F64  Type = "F64"
	F32  Type = "F32"
	F16  Type = "F16"
	BF16 Type = "BF16"
	I64  Type = "I64"
	I32  Type = "I32"
	U8   Type = "U8"
)

// Size is the bytes of one element, 0 for a type that is not known.
func (t Type) Size() int { return int(safetensors.DType(t).WordSize()) }

// Tensor is a named, row-major array. Data is little-endian and may be a
// read-only view of a mapped file.
type Tensor struct {
	Name  string
	Type  Type
	Shape []int
	Data  []byte
}

// Len is the number of elements; a tensor without dimensions is a scalar and has one.
func (t Tensor) Len() int {
	if size := t.Type.Size(); size > 0 {
		return len(t.Data) / size
	}
	return 0
}

// check reports a tensor whose type is unknown or whose bytes do not fit its shape.
func (t Tensor) check() error {
	if t.Type.Size() == 0 {
		return fmt.Errorf("tensor %q has type %q, which safetensors does not have", t.Name, t.Type)
	}
	dims := make([]uint64, len(t.Shape))
	for i, d := range t.Shape {
		if d < 0 {
			return fmt.Errorf("tensor %q has shape %v", t.Name, t.Shape)
		}
		dims[i] = uint64(d)
	}
	want, ok := byteLen(t.Type, dims)
	if !ok || want != uint64(len(t.Data)) {
		return fmt.Errorf("tensor %q of type %s and shape %v has %d bytes", t.Name, t.Type, t.Shape, len(t.Data))
	}
	return nil
}

// byteLen is the bytes of a tensor, and false where they do not fit an int64.
func byteLen(t Type, shape []uint64) (uint64, bool) {
	n := uint64(1)
	for _, d := range shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 {
			return 0, false
		}
		n = lo
	}
	hi, lo := bits.Mul64(n, uint64(t.Size()))
	return lo, hi == 0 && lo <= math.MaxInt64
}

// Float32Tensor makes a tensor of type F32 from values in row-major order,
// copying them. It panics when the shape does not hold exactly these values.
func Float32Tensor(name string, shape []int, values []float32) Tensor {
	data := make([]byte, 0, 4*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	t := Tensor{Name: name, Type: F32, Shape: shape, Data: data}
	if err := t.check(); err != nil {
		panic("checkpoints: " + err.Error())
	}
	return t
}

// Float32s decodes a tensor of type F32, BF16, F16 or F64 (rounded) to a new
// slice in row-major order. Any other type is an error.
func (t Tensor) Float32s() ([]float32, error) {
	decode, ok := floatDecoders[t.Type]
	if !ok {
		return nil, fmt.Errorf("tensor %q has type %s, want a floating-point type", t.Name, t.Type)
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	values, size := make([]float32, t.Len()), t.Type.Size()
	for i := range values {
		values[i] = float32(decode(t.Data[i*size:]))
	}
	return values, nil
}

// floatDecoders read one element from the front of a slice.
var floatDecoders = map[Type]func([]byte) float64{
	F64: func(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) },
	F32: func(b []byte) float64 { return float64(math.Float32frombits(binary.LittleEndian.Uint32(b))) },
	F16: func(b []byte) float64 { return float64(float16.Frombits(binary.LittleEndian.Uint16(b)).Float32()) },
	BF16: func(b []byte) float64 {
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
	},
}

// bf16 rounds a finite value to the nearest bfloat16, ties to the even one.
// Values beyond the largest bfloat16 become infinite.
func bf16(v float32) uint16 {
	b := math.Float32bits(v)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
