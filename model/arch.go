package model

import (
	"fmt"
	"math"
	"slices"

	"loratrain/checkpoints"
	"loratrain/kernels"
)

// Target is one of the linear layers of a transformer block, in the order in which a step computes them.
type Target int

// The linear layers, by transformers' names, as checkpoints.Targets has them.
const (
	QProj Target = iota
	KProj
	VProj
	OProj
	GateProj
	UpProj
	DownProj
	targets
)

// AllTargets is every linear layer of a block, in launch order.
func AllTargets() []Target {
	return []Target{QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj}
}

func (t Target) String() string { return checkpoints.Targets[t] }

// ParseTarget is the Target of transformers' name for it.
func ParseTarget(name string) (Target, error) {
	if t := slices.Index(checkpoints.Targets, name); t >= 0 {
		return Target(t), nil
	}
	return 0, fmt.Errorf("unknown linear layer %q\nthere are %v", name, checkpoints.Targets)
}

// Module is transformers' name of a linear layer, for example model.layers.0.self_attn.q_proj.
func Module(layer int, t Target) string { return checkpoints.ModuleName(layer, t.String()) }

// Arch describes a model of the Llama family; the graph and the decoder are built from it alone.
type Arch struct {
	Family  string // "llama", "mistral", "qwen2", "qwen3": how the file called it, for people
	Width   int    // D
	MLP     int    // F
	Layers  int
	Heads   int // H
	KVHeads int // K, divides H
	HeadDim int // d, even
	Vocab   int
	Context int // positions that the model was made for
	Theta   float64
	Scaling *RopeScaling // nil: none
	// FreqFactors divide the d/2 frequencies; GGUF files have them in place of Scaling. nil: none.
	FreqFactors []float64
	Eps         float64
	Tied        bool // the output projection is the embedding
	QKNorm      bool // RMSNorm over each head of q and k before the rotary embedding (Qwen3)
	Window      int  // attend to the last Window positions; 0: all (Mistral)
}

// RopeScaling stretches the rotary embedding as Llama 3.1 does: wavelengths above Original/LowFreq positions by
// Factor, those below Original/HighFreq not at all, and between them a blend.
type RopeScaling struct {
	Factor, LowFreq, HighFreq float64
	Original                  int
}

// HeadsOf is how attention divides a row.
func (a Arch) HeadsOf() kernels.Heads {
	return kernels.Heads{Query: a.Heads, KV: a.KVHeads, Dim: a.HeadDim}
}

// Shape is a linear layer's input and output width.
func (a Arch) Shape(t Target) (in, out int) { return DimsOf(a).LinearShape(t.String()) }

// Frequencies is the d/2 angles by which a pair of a head turns from one position to the next.
func (a Arch) Frequencies() []float64 {
	f := make([]float64, a.HeadDim/2)
	for i := range f {
		f[i] = math.Pow(a.Theta, -2*float64(i)/float64(a.HeadDim))
		if s := a.Scaling; s != nil {
			turns := float64(s.Original) * f[i] / (2 * math.Pi) // within the original context
			blend := min(max((turns-s.LowFreq)/(s.HighFreq-s.LowFreq), 0), 1)
			f[i] = (1-blend)*f[i]/s.Factor + blend*f[i]
		}
		if a.FreqFactors != nil {
			f[i] /= a.FreqFactors[i]
		}
	}
	return f
}

// Weights is a base model's tensors under the names that the forward pass uses, in host memory.
type Weights struct {
	Embed  kernels.Tensor // (V, D)
	Norm   kernels.Tensor // (D)
	Head   kernels.Tensor // (V, D); Embed itself if tied
	Layers []LayerWeights
}

// LayerWeights is one transformer block's tensors.
type LayerWeights struct {
	InputNorm, PostNorm kernels.Tensor          // (D)
	QNorm, KNorm        kernels.Tensor          // (d), or none
	W                   [targets]kernels.Tensor // (D_out, D)
	Bias                [targets]kernels.Tensor // (D_out), or none
}
