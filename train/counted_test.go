package train

import (
	"fmt"
	"testing"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
)

// span is memory that is only counted.
type span int

func (s span) Slice(from, to int) kernels.Memory {
	if from < 0 || from > to || to > int(s) {
		panic(fmt.Sprintf("bytes [%d, %d) of %d", from, to, int(s)))
	}
	return span(to - from)
}

// counted is a backend in bf16 that computes nothing and whose memory is only counted.
type counted struct {
	kernels.Backend
	bytes int
}

func (c *counted) Name() string        { return "counted" }
func (c *counted) Float() kernels.Type { return kernels.BF16 }
func (c *counted) Param() kernels.Type { return kernels.F32 }

func (c *counted) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	x := kernels.Tensor{Type: t, Shape: shape}
	x.Mem = span(x.Bytes())
	c.bytes += x.Bytes()
	return x, nil
}

func (c *counted) Free(t kernels.Tensor) { c.bytes -= t.Bytes() }

func (c *counted) Place(host kernels.Tensor) (kernels.Tensor, error) {
	return c.Alloc(host.Type, host.Shape...)
}

func (c *counted) Write(t, host kernels.Tensor) {}
func (c *counted) Read(host, t kernels.Tensor)  {}
func (c *counted) Sync() error                  { return nil }

// shapeOnly is the weights of a model in bf16 of which there are only shapes.
func shapeOnly(a model.Arch) model.Weights {
	tensor := func(shape ...int) kernels.Tensor {
		t := kernels.Tensor{Type: kernels.BF16, Shape: shape}
		t.Mem = span(t.Bytes())
		return t
	}
	w := model.Weights{Embed: tensor(a.Vocab, a.Width), Norm: tensor(a.Width)}
	w.Head = w.Embed
	if !a.Tied {
		w.Head = tensor(a.Vocab, a.Width)
	}
	for range a.Layers {
		l := model.LayerWeights{InputNorm: tensor(a.Width), PostNorm: tensor(a.Width)}
		for _, t := range model.AllTargets() {
			in, out := a.Shape(t)
			l.W[t] = tensor(out, in)
		}
		w.Layers = append(w.Layers, l)
	}
	return w
}

// countedStepper is that of a published shape with eight experts of rank 8 on all linear layers, and the backend that counts
// its memory.
func countedStepper(t testing.TB, shape string, o Objective) (*Stepper, *counted) {
	t.Helper()
	a, err := model.ShapeOf(shape)
	if err != nil {
		t.Fatal(err)
	}
	return countedStepperOf(t, a, o)
}

// smallShape is a model of any depth whose blocks are like those of a Llama.
func smallShape(layers int) model.Arch {
	return model.Arch{Width: 256, MLP: 1024, Layers: layers, Heads: 4, KVHeads: 4, HeadDim: 64, Vocab: 1000, Context: 512, Theta: 1e4, Eps: 1e-5}
}

func countedStepperOf(t testing.TB, a model.Arch, o Objective) (*Stepper, *counted) {
	t.Helper()
	b := &counted{}
	placed, err := model.Place(b, a, shapeOnly(a), 512)
	if err != nil {
		t.Fatal(err)
	}
	bank := model.NewBank(a, model.AdapterSpec{Granularity: router.Token, Experts: 8, Rank: 8, Alpha: 16, Targets: model.AllTargets()})
	s, err := NewStepper(placed, bank, kernels.Tensor{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return s, b
}

// TestMemoryOfPublishedShapes holds what a step on a GPU takes, all in all, below what is promised.
func TestMemoryOfPublishedShapes(t *testing.T) {
	const workspace = 256 << 20 // a backend's own
	for _, c := range []struct {
		shape     string
		tokens    int
		recompute bool
		most      float64 // GiB
	}{
		{"llama2-7b", 4 * 512, false, 24},
		{"llama2-7b", 4 * 512, true, 17.5},
		{"llama2-7b", 16384, true, 28},
		{"smollm2-135m", 16 * 512, false, 7},
		{"smollm2-135m", 16 * 512, true, 2},
	} {
		s, b := countedStepper(t, c.shape, Objective{Balance: 1e-3, Recompute: c.recompute})
		before := b.bytes
		activations, trainable, err := s.Plan([]int{c.tokens})
		if err != nil {
			t.Fatal(err)
		}
		if small := b.bytes - before; small > 1<<20 {
			t.Errorf("%s: to plan took %d bytes, want next to nothing", c.shape, small)
		}
		if err := s.Reserve(); err != nil {
			t.Fatal(err)
		}
		if got := b.bytes - before; got != activations {
			t.Errorf("%s: activations take %d bytes, %d were planned", c.shape, got, activations)
		}
		all := float64(b.bytes+workspace) / (1 << 30)
		t.Logf("%s, %d tokens, recompute %v: activations %.2f GiB, trainable %.2f GiB, all %.2f GiB", c.shape, c.tokens, c.recompute,
			float64(activations)/(1<<30), float64(trainable)/(1<<30), all)
		if all > c.most {
			t.Errorf("%s, %d tokens, recompute %v: %.2f GiB in all, want %g at most", c.shape, c.tokens, c.recompute, all, c.most)
		}
	}
}

// BenchmarkCompile records and compiles the step of a large model.
func BenchmarkCompile(b *testing.B) {
	for _, recompute := range []bool{false, true} {
		b.Run(fmt.Sprintf("recompute %v", recompute), func(b *testing.B) {
			for range b.N {
				s, _ := countedStepper(b, "llama2-7b", Objective{Balance: 1e-3, Recompute: recompute})
				p, err := s.compile(2048)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(p.Bytes())/(1<<30), "GiB")
				b.ReportMetric(float64(p.Operations()), "operations")
			}
		})
	}
}
