package model

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"loratrain/kernels"
)

// shapes are those of published models, by the names that people type.
var shapes = []struct {
	name string
	arch Arch
}{
	// https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json
	{"llama2-7b", Arch{
		Family: "llama", Width: 4096, MLP: 11008, Layers: 32, Heads: 32, KVHeads: 32, HeadDim: 128,
		Vocab: 32000, Context: 4096, Theta: 1e4, Eps: 1e-5,
	}},
	// https://huggingface.co/HuggingFaceTB/SmolLM2-135M/blob/main/config.json
	{"smollm2-135m", Arch{
		Family: "llama", Width: 576, MLP: 1536, Layers: 30, Heads: 9, KVHeads: 3, HeadDim: 64,
		Vocab: 49152, Context: 8192, Theta: 1e5, Eps: 1e-5, Tied: true,
	}},
	// The embedded model.
	{"tiny", Arch{
		Family: "llama", Width: 128, MLP: 384, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 32,
		Vocab: 3165, Context: 256, Theta: 1e4, Eps: 1e-6, Tied: true,
	}},
}

// ShapeNames lists the names that [ShapeOf] knows.
func ShapeNames() []string {
	var names []string
	for _, s := range shapes {
		names = append(names, s.name)
	}
	return names
}

// ShapeOf is the shape of a published model, for measuring without its weights.
func ShapeOf(name string) (Arch, error) {
	for _, s := range shapes {
		if s.name == name {
			return s.arch, nil
		}
	}
	return Arch{}, fmt.Errorf("unknown shape %q\nthere are %v", name, ShapeNames())
}

// noiseElements is how many random numbers a Noise has: enough that a weight does not repeat itself, few enough to be made at
// once.
const noiseElements = 16 << 20

// noiseDeviation is that of transformers' random weights, its initializer_range.
const noiseDeviation = 0.02

// Noise fills tensors of one type with normal random numbers of deviation 0.02, from a pool that lies where the backend
// computes: a model of billions of weights is there in the time of copying it.
type Noise struct {
	b    kernels.Backend
	pool kernels.Tensor
	at   int
}

// NewNoise makes the pool, F32 or BF16. The same seed gives the same numbers.
func NewNoise(b kernels.Backend, t kernels.Type, seed uint64) (*Noise, error) {
	host := kernels.NewHost(t, noiseElements)
	const parts = 64
	err := inParallel(parts, func(i int) error {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		part := host.View(i*(noiseElements/parts), noiseElements/parts)
		switch t {
		case kernels.BF16:
			fill(kernels.Slice[kernels.BFloat16](part), r, kernels.ToBFloat16)
		case kernels.F32:
			fill(kernels.Slice[float32](part), r, func(x float32) float32 { return x })
		default:
			return fmt.Errorf("random numbers of type %v: expected f32 or bf16", t)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	n := &Noise{b: b}
	if n.pool, err = b.Alloc(t, noiseElements); err != nil {
		return nil, fmt.Errorf("random numbers: %w", err)
	}
	b.Write(n.pool, host)
	return n, nil
}

func fill[E any](xs []E, r *rand.Rand, to func(float32) E) {
	for i := range xs {
		xs[i] = to(noiseDeviation * float32(r.NormFloat64()))
	}
}

// Tensor is a new tensor of random numbers.
func (n *Noise) Tensor(shape ...int) (kernels.Tensor, error) {
	t, err := n.b.Alloc(n.pool.Type, shape...)
	if err == nil {
		n.Fill(t)
	}
	return t, err
}

// Fill writes random numbers to a tensor of the pool's type.
func (n *Noise) Fill(t kernels.Tensor) {
	for from, end := 0, t.Len(); from < end; {
		count := min(end-from, noiseElements-n.at)
		n.b.Copy(t.View(from, count), n.pool.View(n.at, count))
		from += count
		// A tensor begins where the one before ended, so that no two of a size hold the same; at a round place, as copies are
		// fastest there.
		n.at = (n.at + count + 127) / 128 * 128 % noiseElements
	}
}

// Close gives the pool back.
func (n *Noise) Close() { n.b.Free(n.pool) }

// PlaceRandom is a model of a shape whose weights nobody trained, for measuring: normal numbers of deviation 0.02 in BF16, as
// transformers starts with, norms 1, no biases.
func PlaceRandom(b kernels.Backend, a Arch, seed uint64, positions int) (*Placed, error) {
	noise, err := NewNoise(b, kernels.BF16, seed)
	if err != nil {
		return nil, err
	}
	defer noise.Close()
	var w Weights
	for _, s := range w.slots(a, [targets]bool{}) {
		if len(s.shape) == 1 {
			*s.dst, err = b.Place(ones(s.shape[0]))
		} else {
			*s.dst, err = noise.Tensor(s.shape...)
		}
		if err != nil {
			return nil, fmt.Errorf("random weights: %w", err)
		}
	}
	if a.Tied {
		w.Head = w.Embed
	}
	rope, err := b.Place(ropeTable(a, b.Param(), positions))
	if err != nil {
		return nil, fmt.Errorf("random weights: %w", err)
	}
	return &Placed{Arch: a, Backend: b, weights: w, rope: rope}, b.Sync()
}

func ones(n int) kernels.Tensor {
	return kernels.FromSlice(slices.Repeat([]kernels.BFloat16{kernels.ToBFloat16(1)}, n), n)
}
