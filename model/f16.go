package model

import (
	"sync"

	"github.com/x448/float16"

	"loratrain/kernels"
)

// f16 is the memory of an F32 tensor whose file has it as F16, which no kernel reads: the file's own bytes, widened where they are
// needed, so that a large model does not take twice its file. It counts bytes of F32, as the tensor does.
type f16 []byte

// Slice implements [kernels.Memory].
func (h f16) Slice(from, to int) kernels.Memory { return h[from/2 : to/2] }

// halfPiece is the elements that are converted at once.
const halfPiece = 1 << 18

// Every F16 number as F32 and, rounded from that, as BF16.
var (
	halfAsF32  = sync.OnceValue(func() []float32 { return halfTable(func(x float32) float32 { return x }) })
	halfAsBF16 = sync.OnceValue(func() []kernels.BFloat16 { return halfTable(kernels.ToBFloat16) })
)

func halfTable[E any](of func(float32) E) []E {
	table := make([]E, 1<<16)
	for i := range table {
		table[i] = of(float16.Frombits(uint16(i)).Float32())
	}
	return table
}

// convert writes h's numbers to dst, as table has them.
func convert[E any](dst []E, h f16, table []E) {
	for i := range dst {
		dst[i] = table[uint16(h[2*i])|uint16(h[2*i+1])<<8]
	}
}

func convertInParallel[E any](dst []E, h f16, table []E) {
	_ = inParallel((len(dst)+halfPiece-1)/halfPiece, func(i int) error { // which cannot fail
		from, to := i*halfPiece, min((i+1)*halfPiece, len(dst))
		convert(dst[from:to], h[2*from:2*to], table)
		return nil
	})
}

// widened is t in memory that kernels read.
func widened(t kernels.Tensor) kernels.Tensor {
	h, ok := t.Mem.(f16)
	if !ok {
		return t
	}
	wide := kernels.NewHost(kernels.F32, t.Shape...)
	convertInParallel(kernels.Slice[float32](wide), h, halfAsF32())
	return wide
}

// storedBytes is what t takes where it was read.
func storedBytes(t kernels.Tensor) int {
	if h, ok := t.Mem.(f16); ok {
		return len(h)
	}
	return t.Bytes()
}

// pieces is the bytes of t one after the other, widened a piece at a time. What yield is given holds until it returns.
func pieces(t kernels.Tensor) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		h, ok := t.Mem.(f16)
		if !ok {
			yield(t.Mem.(kernels.Host))
			return
		}
		piece := kernels.NewHost(kernels.F32, min(halfPiece, t.Len()))
		values, bytes := kernels.Slice[float32](piece), piece.Mem.(kernels.Host)
		for len(h) > 0 {
			n := min(len(values), len(h)/2)
			convert(values[:n], h[:2*n], halfAsF32())
			if !yield(bytes[:4*n]) {
				return
			}
			h = h[2*n:]
		}
	}
}

// placer brings weights to a backend.
type placer struct {
	b       kernels.Backend
	scratch kernels.Host // of the largest matrix that was converted for it
}

// matrix places a weight of a large product, in the backend's bf16 if that is what activations are: a product of two types has no fast
// kernel. Norms and biases stay as they are.
func (p *placer) matrix(src kernels.Tensor) (kernels.Tensor, error) {
	if p.b.Float() != kernels.BF16 || src.Type == kernels.BF16 {
		return p.b.Place(widened(src))
	}
	if h, ok := src.Mem.(f16); ok {
		return p.half(h, src.Shape)
	}
	t, err := p.b.Place(src)
	if err != nil {
		return t, err
	}
	narrow, err := p.b.Alloc(kernels.BF16, src.Shape...)
	if err != nil {
		p.b.Free(t)
		return narrow, err
	}
	p.b.Round(narrow, t)
	p.b.Free(t)
	return narrow, nil
}

// half places F16 as BF16: what rounding its numbers as F32 gives.
func (p *placer) half(h f16, shape []int) (kernels.Tensor, error) {
	if len(p.scratch) < len(h) {
		p.scratch = kernels.NewHost(kernels.BF16, len(h)/2).Mem.(kernels.Host)
	}
	src := kernels.Tensor{Type: kernels.BF16, Shape: shape, Mem: p.scratch[:len(h)]}
	convertInParallel(kernels.Slice[kernels.BFloat16](src), h, halfAsBF16())
	t, err := p.b.Place(src)
	if _, same := t.Mem.(kernels.Host); same { // not copied
		p.scratch = nil
	}
	return t, err
}
