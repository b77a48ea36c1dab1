package model

import (
	"flag"
	"math"
	"path/filepath"
	"testing"

	"loratrain/checkpoints"
	"loratrain/internal/graph"
	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

var golden = flag.String("golden", "../testdata/golden", "folder of the golden files")

func goldenTensor(t *testing.T, f *checkpoints.File, name string) kernels.Tensor {
	t.Helper()
	x, ok := f.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %q", name)
	}
	host, err := fromFile(x)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// recorded is the logits of one sequence as a compiled program computes them.
func recorded(t *testing.T, b kernels.Backend, p *Placed, ids []int32) kernels.Tensor {
	t.Helper()
	n := len(ids)
	rec := graph.NewRecorder(b)
	values := p.Bind(rec)
	pos, seq := make([]int32, n), make([]int32, n)
	for i := range pos {
		pos[i] = int32(i)
	}
	bind := func(data []int32, shape ...int) graph.V {
		placed, err := b.Place(kernels.FromSlice(data, shape...))
		if err != nil {
			t.Fatal(err)
		}
		return rec.Bind("input", placed)
	}
	h := Hidden(rec, values, nil, Inputs{
		IDs: bind(ids, n), Pos: bind(pos, n), Spans: bind(p.Arch.Spans(make([]Visible, n), pos, seq), n, 4),
	})
	logits := graph.Linear(rec, h, values.Head, graph.V{}, graph.V{})
	program, err := rec.Compile(graph.NewArena(b), []graph.V{logits}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second run uses the arena as the first left it
		if err := program.Run(); err != nil {
			t.Fatal(err)
		}
	}
	host := kernels.NewHost(logits.Type, logits.Shape...)
	b.Read(host, program.Kept(0))
	return host
}

// immediate is the same, computed at once.
func immediate(t *testing.T, b kernels.Backend, p *Placed, ids []int32) kernels.Tensor {
	t.Helper()
	x := graph.NewImmediate(b)
	defer x.Close()
	var host kernels.Tensor
	err := graph.Catch(b, func() {
		values := p.Bind(x)
		h := hiddenOf(x, values, nil, ids)
		logits := graph.Linear(x, h, values.Head, graph.V{}, graph.V{})
		host = kernels.NewHost(logits.Type, logits.Shape...)
		b.Read(host, logits.Tensor())
		x.Done(h, logits)
	})
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// stepwise is the same, a token at a time through the cache.
func stepwise(t *testing.T, p *Placed, ids []int32) kernels.Tensor {
	t.Helper()
	d, err := NewDecoder(p, nil, Fused, len(ids), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var all []float64
	for _, id := range ids {
		if err := feed(d, id); err != nil {
			t.Fatal(err)
		}
		all = append(all, d.Logits(0)...)
	}
	return kernels.FromSlice(all, len(ids), p.Arch.Vocab)
}

// goldenPrecision is a backend and how near its logits must be.
type goldenPrecision struct {
	name string
	open func(t *testing.T) kernels.Backend
	tol  float64
}

// goldenPrecisions are all backends that take the odd shapes of the tiny models.
func goldenPrecisions() []goldenPrecision {
	onCPU := func(o cpu.Options) func(*testing.T) kernels.Backend {
		return func(t *testing.T) kernels.Backend {
			b, err := cpu.New(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			return b
		}
	}
	list := []goldenPrecision{
		{"f64", onCPU(cpu.Options{Float64: true}), 2e-6},
		{"f32", onCPU(cpu.Options{}), 1e-4},
		{"f32 without a BLAS", onCPU(cpu.Options{Matrix: "go"}), 1e-4},
	}
	for _, g := range testgpu.All() {
		list = append(list, goldenPrecision{g.Name, func(t *testing.T) kernels.Backend { return g.Open(t, true) }, 1e-4})
	}
	return list
}

// TestGoldenLogits runs every architecture's tiny model from safetensors: through the graph, at once, and token by token.
func TestGoldenLogits(t *testing.T) {
	for _, arch := range []string{"llama", "llama31", "mistral", "qwen2", "qwen3"} {
		for _, precision := range goldenPrecisions() {
			t.Run(arch+"/"+precision.name, func(t *testing.T) {
				folder := filepath.Join(*golden, "tiny-"+arch)
				base, err := Open(folder)
				if err != nil {
					t.Fatal(err)
				}
				defer base.Close()
				f, err := checkpoints.Open(filepath.Join(folder, "logits.safetensors"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				b := precision.open(t)
				ids, want := kernels.Slice[int32](goldenTensor(t, f, "ids")), goldenTensor(t, f, "logits")
				p, err := Place(b, base.Arch, base.Weights, len(ids))
				if err != nil {
					t.Fatal(err)
				}
				for _, way := range []struct {
					name string
					got  kernels.Tensor
				}{{"graph", recorded(t, b, p, ids)}, {"immediate", immediate(t, b, p, ids)}, {"stepwise", stepwise(t, p, ids)}} {
					get, ref := getter(way.got), getter(want)
					for i := range want.Len() {
						if !(math.Abs(get(i)-ref(i)) <= precision.tol*max(1, math.Abs(ref(i)))) {
							t.Fatalf("%s: logit %d of token %d is %.9g, golden %.9g", way.name, i%want.Shape[1], i/want.Shape[1], get(i), ref(i))
						}
					}
				}
			})
		}
	}
}
