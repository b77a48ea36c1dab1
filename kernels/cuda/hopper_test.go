package cuda_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/compiled"
	"loratrain/kernels/cuda/emulator"
)

// hopper pretends to be a card of compute capability 9.0 and checks the launches of its own kernels instead of running them.
type hopper struct {
	cuda.Device
	t          *testing.T
	processors int
	kernels    map[string]compiled.Found
	launched   map[string]cuda.Launch
}

func (h *hopper) Info() cuda.Info {
	i := h.Device.Info()
	i.Major, i.Minor, i.Multiprocessors = 9, 0, h.processors
	return i
}

func (h *hopper) Launch(kernel string, l cuda.Launch, args ...any) {
	k := h.kernels[kernel]
	if !k.Module.Hopper {
		h.Device.Launch(kernel, l, args...)
		return
	}
	h.launched[kernel] = l
	var sizes []int
	for _, a := range args {
		size := int(reflect.TypeOf(a).Size())
		if _, ok := a.(cuda.Box); ok {
			size = 128 // of a tensor map
		}
		sizes = append(sizes, size)
	}
	if !slices.Equal(sizes, k.Kernel.Parameters) {
		h.t.Errorf("%s is given arguments of %v bytes, expected %v", kernel, sizes, k.Kernel.Parameters)
	}
	if l.Shared > 227<<10 {
		h.t.Errorf("%s with %d bytes of shared memory", kernel, l.Shared)
	}
	if k.Module.Name != "switch_sm90" {
		return
	}
	if stages := args[len(args)-1].(int32); stages < 2 || stages > 7 {
		h.t.Errorf("%s with %d stages in %d bytes of shared memory", kernel, stages, l.Shared)
	}
	if !strings.HasSuffix(kernel, fmt.Sprintf("_cluster%d", l.Grid[1])) {
		h.t.Errorf("%s with %v blocks", kernel, l.Grid)
	}
}

// operations runs what thin_sm90.cuh has kernels for, and returns how each was launched.
func (h *hopper) operations(tokens, width int) map[string]cuda.Launch {
	h.launched = map[string]cuda.Launch{}
	b, err := cuda.On(h, cuda.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	const columns, experts = 64, 8
	var all []kernels.Tensor
	array := func(typ kernels.Type, rows, cols int) kernels.Tensor {
		x, err := b.Alloc(typ, rows, cols)
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, x)
		return x
	}
	const out = 8
	x, u, y := array(kernels.BF16, tokens, width), array(kernels.BF16, tokens, columns), array(kernels.BF16, tokens, out)
	sw := kernels.Switch{
		A: array(kernels.BF16, width, columns), B: array(kernels.BF16, columns, width),
		Gates: array(kernels.F32, tokens, experts), Rank: columns / experts, Scale: 2,
	}
	narrow := sw
	narrow.B = array(kernels.BF16, columns, out)
	b.SwitchLinear(y, u, x, x, array(kernels.BF16, out, width), kernels.Tensor{}, kernels.Tensor{}, narrow)
	b.SwitchGradHidden(array(kernels.BF16, tokens, columns), array(kernels.F32, tokens, experts), x, u, sw)
	b.SwitchGradA(array(kernels.F32, width, columns), x, u)
	b.SwitchGradB(array(kernels.F32, columns, width), u, x, sw)
	if err := b.Sync(); err != nil {
		h.t.Error(err)
	}
	for _, x := range all {
		b.Free(x)
	}
	return h.launched
}

// products runs switch linears whose tiles are of each width, and their gradients.
func (h *hopper) products() map[string]cuda.Launch {
	h.launched, h.processors = map[string]cuda.Launch{}, 4
	b, err := cuda.On(h, cuda.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	const tokens, columns = 300, 8
	array := func(rows, cols int) kernels.Tensor {
		return place(h.t, b, kernels.BF16, make([]float64, rows*cols), rows, cols)
	}
	for _, width := range []int{128, 192, 256} {
		x, u := array(tokens, width), array(tokens, columns)
		sw := kernels.Switch{A: array(width, columns), B: array(columns, width), Scale: 2}
		w := array(width, width)
		b.SwitchLinear(array(tokens, width), u, x, x, w, kernels.Tensor{}, x, sw)
		b.SwitchGradInput(array(tokens, width), x, w, u, sw.A, kernels.Tensor{})
	}
	return h.launched
}

// attentions runs attention and its gradient with heads of the sizes that there are kernels for.
func (h *hopper) attentions() map[string]cuda.Launch {
	h.launched = map[string]cuda.Launch{}
	b, err := cuda.On(h, cuda.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	const tokens = 70
	for _, dim := range []int{64, 128} {
		heads := kernels.Heads{Query: 2, KV: 1, Dim: dim}
		array := func(n int) kernels.Tensor {
			return place(h.t, b, kernels.BF16, make([]float64, tokens*n*dim), tokens, n*dim)
		}
		spans, lse := place(h.t, b, kernels.I32, make([]float64, 4*tokens), tokens, 4), place(h.t, b, kernels.F32, make([]float64, 2*tokens), tokens, 2)
		o, q, k, v := array(2), array(2), array(1), array(1)
		b.Attention(o, lse, q, k, v, spans, heads)
		b.AttentionGrad(array(2), array(1), array(1), array(2), o, lse, q, k, v, spans, heads)
	}
	return h.launched
}

// Boxes are nothing that is checked.
func (h *hopper) Boxes(cuda.Address, []cuda.Box) {}

// steps runs decoding steps of the models and the numbers of sequences that there are kernels for.
func (h *hopper) steps() map[string]cuda.Launch {
	h.launched, h.processors = map[string]cuda.Launch{}, 5
	b, err := cuda.On(h, cuda.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	const width, vocab, positions, group = 128, 66, 8, 3
	array := func(typ kernels.Type, shape ...int) kernels.Tensor {
		return place(h.t, b, typ, make([]float64, kernels.Len(shape...)), shape...)
	}
	for _, dim := range []int{64, 128} {
		for _, mlp := range []int{64, 2112} { // a small model and one that is not
			for _, sequences := range []int{1, 2, 16, 17} {
				heads := kernels.Heads{Query: group, KV: 1, Dim: dim}
				m := kernels.StepModel{
					Embed: array(kernels.BF16, vocab, width), Head: array(kernels.BF16, vocab, width), Norm: array(kernels.BF16, width),
					Rope: array(kernels.F32, positions, dim), Heads: heads, Sequences: sequences, Positions: positions,
				}
				l := kernels.StepLayer{InputNorm: m.Norm, PostNorm: m.Norm}
				for t, x := range [kernels.Targets][2]int{{group * dim, width}, {dim, width}, {dim, width}, {width, group * dim}, {mlp, width}, {mlp, width}, {width, mlp}} {
					l.W[t] = array(kernels.BF16, x[0], x[1])
				}
				l.Keys, l.Values = array(kernels.BF16, sequences*positions, dim), array(kernels.BF16, sequences*positions, dim)
				m.Layers = append(m.Layers, l)
				step, err := b.NewStep(m)
				if err != nil {
					h.t.Fatal(err)
				}
				step.Run(array(kernels.F32, sequences, vocab), array(kernels.I32, sequences), array(kernels.I32, sequences), kernels.Tensor{}, kernels.Tensor{})
				step.Close()
			}
		}
	}
	if err := b.Sync(); err != nil {
		h.t.Error(err)
	}
	return h.launched
}

// TestHopper wants each kernel for Hopper to be launched in some case as it can be; what they compute is tested on a GPU.
func TestHopper(t *testing.T) {
	h := &hopper{Device: emulator.ForTest(t, emulator.Options{}), t: t, kernels: compiled.Find(9, 0)}
	unused := map[string]bool{}
	for name, k := range h.kernels {
		if k.Module.Hopper {
			unused[name] = true
		}
	}
	for _, launched := range []map[string]cuda.Launch{h.products(), h.attentions(), h.steps()} {
		for name := range launched {
			delete(unused, name)
		}
	}
	for _, processors := range []int{9, 14, 17, 20, 40, 45, 64, 70, 85, 90, 180} {
		h.processors = processors
		for name := range h.operations(1100, 1032) {
			delete(unused, name)
		}
	}
	h.processors = 60
	for name := range h.operations(1100, 1984) {
		delete(unused, name)
	}
	for name := range unused {
		t.Errorf("%s was not launched", name)
	}

	// As measured on an H100.
	h.processors = 132
	for _, c := range []struct {
		tokens, width int
		want          []string
	}{
		{2048, 4096, []string{"hidden_tile64_cluster3", "grad_hidden_tile64_cluster3", "grad_a_tile64_cluster2", "grad_b_tile64_cluster2"}},
		{2048, 11008, []string{"hidden_tile64_cluster3", "grad_hidden_tile64_cluster3", "grad_a_tile64_cluster2", "grad_b_tile128_cluster1"}},
		{8192, 576, []string{"hidden_tile64_cluster1", "grad_hidden_tile64_cluster1", "grad_a_tile64_cluster8", "grad_b_tile64_cluster8"}},
		{8192, 1536, []string{"hidden_tile64_cluster1", "grad_hidden_tile64_cluster1", "grad_a_tile64_cluster4", "grad_b_tile128_cluster8"}},
	} {
		got := h.operations(c.tokens, c.width)
		for _, name := range c.want {
			if _, ok := got["switch_"+name]; !ok {
				t.Errorf("%d tokens of %d: launched %v, expected switch_%s", c.tokens, c.width, got, name)
			}
		}
	}
}
