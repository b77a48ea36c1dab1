package graph

import (
	"fmt"
	"slices"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"loratrain/kernels"
)

// Spec is a tensor without its memory.
type Spec struct {
	Type  kernels.Type
	Shape []int
}

// Of is the Spec of a tensor of the given type and shape.
func Of(t kernels.Type, shape ...int) Spec { return Spec{Type: t, Shape: shape} }

func (s Spec) bytes() int { return kernels.Len(s.Shape...) * s.Type.Size() }

// V is a value in a forward pass: a node of the graph that is recorded, or a tensor that exists already. The zero V
// stands for an argument that is left out.
type V struct {
	Spec
	node *G.Node
	buf  *buffer
}

// None reports whether v is the zero V.
func (v V) None() bool { return v.node == nil && v.buf == nil }

// Tensor is the tensor of a value that exists already; that of a recorded one is only known to its Program.
func (v V) Tensor() kernels.Tensor {
	if v.buf == nil {
		panic("graph: the tensor of a recorded value")
	}
	if v.buf.t.None() {
		panic(fmt.Sprintf("graph: a value %v%v is used after Done", v.Type, v.Shape))
	}
	return v.buf.t
}

// dtypes says how Gorgonia, which has no bfloat16, is told of our types; nothing but its type checker looks at them.
var dtypes = map[kernels.Type]tensor.Dtype{
	kernels.F32: tensor.Float32, kernels.F64: tensor.Float64, kernels.BF16: tensor.Uint16, kernels.I32: tensor.Int32,
}

func (s Spec) hmType() hm.Type {
	return G.TensorType{Dims: len(s.Shape), Of: dtypes[s.Type]}
}

// value is the gorgonia.Value around what one operation returned: its results, the first of which gives the value
// its shape.
type value struct {
	ts []kernels.Tensor
}

var _ G.Value = (*value)(nil)

func (v *value) spec() Spec          { return Spec{Type: v.ts[0].Type, Shape: v.ts[0].Shape} }
func (v *value) Shape() tensor.Shape { return tensor.Shape(slices.Clone(v.ts[0].Shape)) }
func (v *value) Size() int           { return v.ts[0].Len() }
func (v *value) Dtype() tensor.Dtype { return dtypes[v.ts[0].Type] }
func (v *value) MemSize() uintptr    { return uintptr(v.ts[0].Bytes()) }

// Type lets Gorgonia's type checker see what it does not know.
func (v *value) Type() hm.Type { return v.spec().hmType() }

// Uintptr is no address: nothing of Gorgonia's may follow one.
func (v *value) Uintptr() uintptr { return 0 }

// Data panics: only kernels look inside.
func (v *value) Data() interface{} { panic("graph: the data of a value belongs to its backend") }

// Format implements fmt.Formatter.
func (v *value) Format(s fmt.State, _ rune) { fmt.Fprint(s, v.ts) }
