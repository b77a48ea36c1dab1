package model

import (
	"fmt"
	"os"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/router"
)

// BenchmarkPrefill is a prompt of 2,048 tokens, by the experts that each token chooses two of: all computed behind gates, and each token's
// own. TFLOP/s counts the base's linear layers alone, 2 flops a weight and token; of the-gemms is its share of what those layers reach by
// themselves, without attention and all else. LORA_SHAPE names another shape than llama2-7b.
//
//	go test -tags gpu ./model -run - -bench Prefill -benchtime 5x
func BenchmarkPrefill(b *testing.B) {
	shape := os.Getenv("LORA_SHAPE")
	if shape == "" {
		shape = "llama2-7b"
	}
	a, err := ShapeOf(shape)
	must(b, err)
	const tokens = 2048
	for _, g := range testgpu.All() {
		if g.Emulated() {
			continue
		}
		k := g.Open(b, false)
		base, err := PlaceRandom(k, a, 1, tokens+1)
		must(b, err)
		gemms := 0.0
		b.Run(g.Name+"/linear layers", func(b *testing.B) { gemms = linearLayers(b, base, tokens) })
		for _, c := range []struct{ experts, rank int }{{0, 0}, {8, 8}, {16, 8}, {64, 8}, {64, 16}, {64, 32}, {64, 64}} {
			for _, dense := range []bool{true, false} {
				if c.experts == 0 && dense {
					continue
				}
				b.Run(fmt.Sprintf("%s/%d experts of rank %d/dense %v", g.Name, c.experts, c.rank, dense), func(b *testing.B) {
					var s *Served
					if c.experts > 0 {
						spec := AdapterSpec{Granularity: router.Token, Experts: c.experts, Rank: c.rank, Alpha: 16, Targets: AllTargets()}
						s, err = ServeRandom(base, spec, 2)
						must(b, err)
						defer s.Close()
						if dense && !s.dense {
							must(b, s.placeDense())
						}
						s.dense = dense
					}
					d := mustDecoder(b, base, s, Fused, tokens+1)
					defer d.Close()
					ids := randomIDs(1, a.Vocab, tokens)
					rate := measured(b, k, base, tokens, func() { must(b, d.Start(0, 0, ids...)) })
					b.ReportMetric(rate/gemms, "of-the-gemms")
				})
			}
		}
	}
}

// measured is the flops a second of the base's linear layers, if f computes them for so many tokens.
func measured(b *testing.B, k kernels.Backend, base *Placed, tokens int, f func()) float64 {
	b.Helper()
	f()
	must(b, k.Sync())
	b.ResetTimer()
	for range b.N {
		f()
	}
	must(b, k.Sync())
	b.StopTimer()
	weights := 0
	for _, l := range base.weights.Layers {
		for _, w := range l.W {
			weights += w.Len()
		}
	}
	rate := 2 * float64(weights) * float64(tokens) * float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate/1e12, "TFLOP/s")
	b.ReportMetric(float64(tokens)*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
	return rate
}

// linearLayers is the flops a second of the base's linear layers by themselves.
func linearLayers(b *testing.B, base *Placed, tokens int) float64 {
	k := base.Backend
	none := kernels.Tensor{}
	take := func(cols int) kernels.Tensor {
		x, err := k.Alloc(k.Float(), tokens, cols)
		must(b, err)
		b.Cleanup(func() { k.Free(x) })
		return x
	}
	xs := map[int]kernels.Tensor{}
	for _, w := range base.weights.Layers[0].W {
		for _, cols := range w.Shape {
			if xs[cols].None() {
				xs[cols] = take(cols)
			}
		}
	}
	out := take(max(base.Arch.MLP, base.Arch.Width))
	return measured(b, k, base, tokens, func() {
		for _, l := range base.weights.Layers {
			for _, w := range l.W {
				k.Linear(out.View(0, tokens, w.Shape[0]), xs[w.Shape[1]], w, none, none)
			}
		}
	})
}
