package model

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/router"
)

// AdapterSpec says what an adapter is made of.
type AdapterSpec struct {
	Granularity router.Granularity
	Experts     int // E; 1 with router.None
	Rank        int // R, of an expert
	Shared      int // S: rank of the expert that every token uses, 0: none
	Alpha       float64
	Targets     []Target // in launch order
}

// Scale is s = alpha / rank, for the shared expert too.
func (s AdapterSpec) Scale() float64 { return s.Alpha / float64(s.Rank) }

// Columns is C = E·R + S, the width of a dense bank.
func (s AdapterSpec) Columns() int { return s.Experts*s.Rank + s.Shared }

// Param is one trainable tensor in the layout of training.
type Param struct {
	Name   string // A, B or router of a module, for example model.layers.0.self_attn.q_proj.A
	Shape  []int
	Offset int // in the buffer of all of them
}

// Len is the number of elements.
func (p Param) Len() int { return kernels.Len(p.Shape...) }

// router reports whether p is a router, and not a tensor of experts.
func (p Param) router() bool { return strings.HasSuffix(p.Name, ".router") }

// Bank is the trainable tensors of an adapter in dense layout: one contiguous buffer, A (D, C) and B (C, D_out) of each adapted
// linear layer and the routers (E, D). The first E·R columns of A belong to the experts, the rest to the shared expert.
type Bank struct {
	Arch   Arch
	Spec   AdapterSpec
	Params []Param
	size   int
	index  map[string]int
}

// NewBank lays out an adapter for a base.
func NewBank(a Arch, spec AdapterSpec) *Bank {
	k := &Bank{Arch: a, Spec: spec, index: map[string]int{}}
	for l := range a.Layers {
		for _, t := range spec.Targets {
			in, out := a.Shape(t)
			m := Module(l, t)
			k.add(m+".A", in, spec.Columns())
			k.add(m+".B", spec.Columns(), out)
			if spec.Granularity == router.Layer {
				k.add(m+".router", spec.Experts, in)
			}
		}
		if spec.Granularity == router.Block {
			k.add(blockRouter(l), spec.Experts, a.Width)
		}
	}
	if spec.Granularity == router.Token {
		k.add(tokenRouter, spec.Experts, a.Width)
	}
	return k
}

const tokenRouter = "model.router"

func blockRouter(layer int) string { return fmt.Sprintf("model.layers.%d.router", layer) }

// paramAlign keeps every tensor of the buffer on a cache line.
const paramAlign = 16

func (k *Bank) add(name string, shape ...int) {
	k.index[name] = len(k.Params)
	k.Params = append(k.Params, Param{Name: name, Shape: shape, Offset: k.size})
	k.size += (kernels.Len(shape...) + paramAlign - 1) / paramAlign * paramAlign
}

// Size is the length of the buffer, with the gaps between tensors, which stay zero.
func (k *Bank) Size() int { return k.size }

// Trainable is the number of trained parameters.
func (k *Bank) Trainable() int {
	n := 0
	for _, p := range k.Params {
		n += p.Len()
	}
	return n
}

// View is a tensor of the buffer; which must have Size elements.
func (k *Bank) View(buffer kernels.Tensor, p Param) kernels.Tensor {
	return buffer.View(p.Offset, p.Shape...)
}

// Init fills a buffer in host memory with the start of training: A uniform in ±1/√D_in, which is what PEFT's Kaiming
// initialisation gives, B zero, routers normal with deviation 0.02. Each tensor has random numbers of its own, so that its start
// depends on the seed and its name alone.
func (k *Bank) Init(buffer kernels.Tensor, seed uint64) {
	clear(buffer.Mem.(kernels.Host))
	for _, p := range k.Params {
		h := fnv.New64a()
		h.Write([]byte(p.Name))
		r := rand.New(rand.NewPCG(seed, h.Sum64()))
		next := func() float64 { return 0.02 * r.NormFloat64() }
		switch p.Name[len(p.Name)-2:] {
		case ".B":
			continue
		case ".A":
			bound := 1 / math.Sqrt(float64(p.Shape[0]))
			next = func() float64 { return bound * (2*r.Float64() - 1) }
		}
		set := setter(k.View(buffer, p))
		for i := range p.Len() {
			set(i, next())
		}
	}
}

// setter and getter reach the elements of a tensor in host memory as float64.
func setter(t kernels.Tensor) func(i int, x float64) {
	if t.Type == kernels.F64 {
		s := kernels.Slice[float64](t)
		return func(i int, x float64) { s[i] = x }
	}
	s := kernels.Slice[float32](t)
	return func(i int, x float64) { s[i] = float32(x) }
}

func getter(t kernels.Tensor) func(i int) float64 {
	switch t.Type {
	case kernels.F64:
		s := kernels.Slice[float64](t)
		return func(i int) float64 { return s[i] }
	case kernels.BF16:
		s := kernels.Slice[kernels.BFloat16](t)
		return func(i int) float64 { return float64(s[i].Float32()) }
	default:
		s := kernels.Slice[float32](t)
		return func(i int) float64 { return float64(s[i]) }
	}
}

// inType is a tensor in host memory as F32 or F64; itself if it is of that type.
func inType(t kernels.Tensor, typ kernels.Type) kernels.Tensor {
	if t.Type == typ {
		return t
	}
	other := kernels.NewHost(typ, t.Shape...)
	get, set := getter(t), setter(other)
	for i := range t.Len() {
		set(i, get(i))
	}
	return other
}

// part is one tensor of a file and where its elements lie in the buffer.
type part struct {
	name  string
	shape []int
	at    func(i int) int // element i of the file's tensor → element of the buffer
}

// parts is the tensors of the file layout: lora_A (E, R, D_in) and lora_B (E, R, D_out) of each adapted linear layer,
// shared_A (S, D_in) and shared_B (S, D_out), and the routers (E, D).
func (k *Bank) parts() []part {
	var list []part
	e, r, s, c := k.Spec.Experts, k.Spec.Rank, k.Spec.Shared, k.Spec.Columns()
	for _, p := range k.Params {
		module, width := p.Name[:len(p.Name)-2], p.Shape[1]
		switch p.Name[len(p.Name)-2:] {
		case ".A":
			in := p.Shape[0]
			transposed := func(first int) func(int) int {
				return func(i int) int { return p.Offset + i%in*c + first + i/in }
			}
			list = append(list, part{module + ".lora_A", []int{e, r, in}, transposed(0)})
			if s > 0 {
				list = append(list, part{module + ".shared_A", []int{s, in}, transposed(e * r)})
			}
		case ".B":
			list = append(list, part{module + ".lora_B", []int{e, r, width}, func(i int) int { return p.Offset + i }})
			if s > 0 {
				first := p.Offset + e*r*width
				list = append(list, part{module + ".shared_B", []int{s, width}, func(i int) int { return first + i }})
			}
		default:
			list = append(list, part{p.Name, p.Shape, func(i int) int { return p.Offset + i }})
		}
	}
	return list
}

// Tensors is a buffer in host memory as the named tensors of the file layout, f32, or f64 if the buffer is.
func (k *Bank) Tensors(buffer kernels.Tensor) []checkpoints.Tensor {
	var list []checkpoints.Tensor
	get := getter(buffer)
	for _, p := range k.parts() {
		t := kernels.NewHost(buffer.Type, p.shape...)
		set := setter(t)
		for i := range t.Len() {
			set(i, get(p.at(i)))
		}
		list = append(list, toFile(p.name, t))
	}
	return list
}

// Load fills a buffer in host memory from tensors of the file layout, each F32, F64 or BF16. Every one must be there and have its
// shape, and there may be no others.
func (k *Bank) Load(buffer kernels.Tensor, tensors []checkpoints.Tensor) error {
	byName := map[string]checkpoints.Tensor{}
	for _, t := range tensors {
		byName[t.Name] = t
	}
	set := setter(buffer)
	for _, p := range k.parts() {
		t, ok := byName[p.name]
		if !ok {
			return fmt.Errorf("no tensor %q, which an adapter of these settings has", p.name)
		}
		if !slices.Equal(t.Shape, p.shape) {
			return fmt.Errorf("tensor %q has shape %v, expected %v", p.name, t.Shape, p.shape)
		}
		host, err := fromFile(t)
		if err != nil {
			return err
		}
		if host.Type == kernels.I32 {
			return fmt.Errorf("tensor %q has type %s, expected F32, F64 or BF16", t.Name, t.Type)
		}
		get := getter(host)
		for i := range host.Len() {
			set(p.at(i), get(i))
		}
		delete(byName, p.name)
	}
	if len(byName) > 0 {
		return fmt.Errorf("tensor %q does not belong to an adapter of these settings", slices.Min(slices.Collect(maps.Keys(byName))))
	}
	return nil
}

var fileTypes = map[kernels.Type]checkpoints.Type{kernels.F32: "F32", kernels.F64: "F64", kernels.BF16: "BF16", kernels.I32: "I32"}

// toFile is a tensor in host memory under a name; the bytes are shared.
func toFile(name string, t kernels.Tensor) checkpoints.Tensor {
	return checkpoints.Tensor{Name: name, Type: fileTypes[t.Type], Shape: t.Shape, Data: t.Mem.(kernels.Host)}
}

// fromFile is a tensor of a file in host memory: the file's own bytes if they are aligned for their type.
func fromFile(t checkpoints.Tensor) (kernels.Tensor, error) {
	for k, f := range fileTypes {
		if f != t.Type {
			continue
		}
		if len(t.Data) != kernels.Len(t.Shape...)*k.Size() {
			return kernels.Tensor{}, fmt.Errorf("tensor %q of type %s and shape %v has %d bytes", t.Name, t.Type, t.Shape, len(t.Data))
		}
		if kernels.Aligned(k, t.Data) {
			return kernels.Tensor{Shape: t.Shape, Type: k, Mem: kernels.Host(t.Data)}, nil
		}
		host := kernels.NewHost(k, t.Shape...)
		copy(host.Mem.(kernels.Host), t.Data)
		return host, nil
	}
	return kernels.Tensor{}, fmt.Errorf("tensor %q has type %s, which is not supported", t.Name, t.Type)
}
