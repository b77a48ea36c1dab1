package graph

import "loratrain/kernels"

// Pack is tensors that lie in one piece of memory, so that one copy brings all of them from the host to a backend or back.
type Pack struct {
	Whole kernels.Tensor
	Parts []kernels.Tensor
}

// packAlignment is that of every part.
const packAlignment = 16

// NewPack is tensors of zeros in b's memory. Packs of the same specs, on a backend and on the host, can be copied whole.
func NewPack(b kernels.Backend, specs ...Spec) (Pack, error) {
	whole, err := b.Alloc(kernels.F64, PackBytes(specs...)/kernels.F64.Size())
	return packed(whole, specs), err
}

// NewHostPack is tensors of zeros in host memory.
func NewHostPack(specs ...Spec) Pack {
	return packed(kernels.NewHost(kernels.F64, PackBytes(specs...)/kernels.F64.Size()), specs)
}

func packedBytes(s Spec) int { return (s.bytes() + packAlignment - 1) / packAlignment * packAlignment }

// PackBytes is the memory that a Pack takes.
func PackBytes(specs ...Spec) int {
	n := 0
	for _, s := range specs {
		n += packedBytes(s)
	}
	return n
}

func packed(whole kernels.Tensor, specs []Spec) Pack {
	p := Pack{Whole: whole}
	if whole.None() {
		return p
	}
	at := 0
	for _, s := range specs {
		p.Parts = append(p.Parts, kernels.Tensor{Type: s.Type, Shape: s.Shape, Mem: whole.Mem.Slice(at, at+s.bytes())})
		at += packedBytes(s)
	}
	return p
}
