package cpu

import (
	"testing"

	"loratrain/kernels"
)

// smol is the shapes of SmolLM2-135M and of an adapter with 8 experts of rank 8.
var smol = struct {
	width, mlp, vocabulary, experts, rank, layers int
	heads                                         kernels.Heads
}{576, 1536, 49152, 8, 8, 30, kernels.Heads{Query: 9, KV: 3, Dim: 64}}

// bench makes tensors that hold small numbers.
type bench struct{ e *engine[float32] }

func (b bench) tensor(shape ...int) kernels.Tensor {
	t := kernels.NewHost(kernels.F32, shape...)
	for i := range kernels.Slice[float32](t) {
		kernels.Slice[float32](t)[i] = float32(i*7919%1009-504) / 5040
	}
	return t
}

func (b bench) ints(n int, f func(i int) int32) kernels.Tensor {
	a := make([]int32, n)
	for i := range a {
		a[i] = f(i)
	}
	return kernels.FromSlice(a, n)
}

// causal is the spans of sequences of the given length.
func (b bench) causal(tokens, length int) kernels.Tensor {
	return b.ints(4*tokens, func(i int) int32 {
		t := i / 4
		return [4]int32{int32(t / length * length), int32(t + 1), 0, 0}[i%4]
	}).Reshape(tokens, 4)
}

func BenchmarkAttention(b *testing.B) {
	for name, length := range map[string]int{"packed by 32": 32, "one of 512": 512} {
		b.Run(name, func(b *testing.B) {
			m := bench{newTestEngine[float32](b, Options{})}
			const tokens = 512
			wide, narrow := smol.heads.Query*smol.heads.Dim, smol.heads.KV*smol.heads.Dim
			q, k, v, spans := m.tensor(tokens, wide), m.tensor(tokens, narrow), m.tensor(tokens, narrow), m.causal(tokens, length)
			o, lse, dq := m.tensor(tokens, wide), m.tensor(tokens, smol.heads.Query), m.tensor(tokens, wide)
			dk, dv := m.tensor(tokens, narrow), m.tensor(tokens, narrow)
			b.Run("forward", func(b *testing.B) {
				for b.Loop() {
					m.e.Attention(o, lse, q, k, v, spans, smol.heads)
				}
			})
			b.Run("gradient", func(b *testing.B) {
				for b.Loop() {
					m.e.AttentionGrad(dq, dk, dv, q, o, lse, q, k, v, spans, smol.heads)
				}
			})
		})
	}
}

func BenchmarkCrossEntropy(b *testing.B) {
	for name, every := range map[string]int{"64 of 512 rows": 8, "all of 512 rows": 1} {
		b.Run(name, func(b *testing.B) {
			m := bench{newTestEngine[float32](b, Options{})}
			h, w, loss := m.tensor(512, smol.width), m.tensor(smol.vocabulary, smol.width), m.tensor(1)
			targets := m.ints(512, func(i int) int32 {
				if i%every != 0 {
					return -1
				}
				return int32(i)
			})
			dh := m.tensor(512, smol.width)
			for b.Loop() {
				m.e.CrossEntropy(loss, dh, h, w, targets)
			}
		})
	}
}

// BenchmarkDecode is the products of a step with one token: all weights once.
func BenchmarkDecode(b *testing.B) {
	for _, t := range []kernels.Type{kernels.BF16, kernels.F32} {
		b.Run(t.String(), func(b *testing.B) {
			m := bench{newTestEngine[float32](b, Options{})}
			w := kernels.NewHost(t, smol.vocabulary, smol.width)
			for i, mem := 0, w.Mem.(kernels.Host); i < len(mem); i += 2 {
				mem[i], mem[i+1] = byte(i%101), 0x3d // 0.03 and more, as F32 too
			}
			x, y := m.tensor(1, smol.width), m.tensor(1, smol.vocabulary)
			b.SetBytes(int64(w.Bytes()))
			for b.Loop() {
				m.e.Linear(y, x, w, kernels.Tensor{}, kernels.Tensor{})
			}
		})
	}
}

// BenchmarkStep is a training step's operations in one layer, so many times as there are layers.
func BenchmarkStep(b *testing.B) {
	for _, library := range []string{"openblas", "go"} {
		b.Run(library, func(b *testing.B) {
			m := bench{newTestEngine[float32](b, Options{Matrix: library})}
			const tokens, length = 512, 40
			step := m.layer(tokens, length)
			n := (smol.width*10 + smol.mlp*4) * smol.layers * smol.experts * smol.rank
			p, g, mom, v := m.tensor(n), m.tensor(n), kernels.NewHost(kernels.F32, n), kernels.NewHost(kernels.F32, n)
			norm, hyper := m.tensor(1), kernels.FromSlice([]float32{1e-4, 1}, 2)
			for b.Loop() {
				for range smol.layers {
					step()
				}
				m.e.Norm(norm, g)
				m.e.Step(p, g, mom, v, norm, hyper, kernels.AdamW{Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, Clip: 1})
			}
			b.ReportMetric(tokens*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// linearBench is an adapted linear layer and what its operations need.
type linearBench struct {
	w, da, db, u, du, dg kernels.Tensor
	sw                   kernels.Switch
}

func (m bench) linear(tokens, width, out int, gates kernels.Tensor) linearBench {
	columns := smol.experts * smol.rank
	return linearBench{
		w: m.tensor(out, width), da: m.tensor(width, columns), db: m.tensor(columns, out),
		u: m.tensor(tokens, columns), du: m.tensor(tokens, columns), dg: m.tensor(tokens, smol.experts),
		sw: kernels.Switch{A: m.tensor(width, columns), B: m.tensor(columns, out), Gates: gates, Rank: smol.rank, Scale: 2},
	}
}

func (m bench) forward(l linearBench, y, x, plus kernels.Tensor) {
	m.e.SwitchLinear(y, l.u, x, x, l.w, kernels.Tensor{}, plus, l.sw)
}

func (m bench) backward(l linearBench, dx, x, dy, plus kernels.Tensor) {
	m.e.SwitchGradHidden(l.du, l.dg, dy, l.u, l.sw)
	m.e.SwitchGradInput(dx, dy, l.w, l.du, l.sw.A, plus)
	m.e.SwitchGradA(l.da, x, l.du)
	m.e.SwitchGradB(l.db, l.u, dy, l.sw)
}

func (m bench) layer(tokens, length int) func() {
	wide, narrow, mlp := smol.width, smol.heads.KV*smol.heads.Dim, smol.mlp
	logits, gates := m.tensor(tokens, smol.experts), m.tensor(tokens, smol.experts)
	m.e.Gate(gates, logits)
	query, key, value := m.linear(tokens, wide, wide, gates), m.linear(tokens, wide, narrow, gates), m.linear(tokens, wide, narrow, gates)
	output, gate, up := m.linear(tokens, wide, wide, gates), m.linear(tokens, wide, mlp, gates), m.linear(tokens, wide, mlp, gates)
	down := m.linear(tokens, mlp, wide, gates)
	norm, spans := m.tensor(wide), m.causal(tokens, length)
	table, pos := m.tensor(tokens, smol.heads.Dim), m.ints(tokens, func(i int) int32 { return int32(i % length) })
	x, h, q, o := m.tensor(tokens, wide), m.tensor(tokens, wide), m.tensor(tokens, wide), m.tensor(tokens, wide)
	k, v, dk, dv := m.tensor(tokens, narrow), m.tensor(tokens, narrow), m.tensor(tokens, narrow), m.tensor(tokens, narrow)
	turnedQ, turnedK, lse := m.tensor(tokens, wide), m.tensor(tokens, narrow), m.tensor(tokens, smol.heads.Query)
	g, u, s := m.tensor(tokens, mlp), m.tensor(tokens, mlp), m.tensor(tokens, mlp)
	dg, du := m.tensor(tokens, mlp), m.tensor(tokens, mlp)
	mid, dx, dh, dn := m.tensor(tokens, wide), m.tensor(tokens, wide), m.tensor(tokens, wide), m.tensor(tokens, wide)
	none := kernels.Tensor{}
	return func() {
		m.e.RMSNorm(h, x, norm, 1e-5)
		m.forward(query, q, h, none)
		m.forward(key, k, h, none)
		m.forward(value, v, h, none)
		m.e.Rotary(turnedQ, q, table, pos, false)
		m.e.Rotary(turnedK, k, table, pos, false)
		m.e.Attention(o, lse, turnedQ, turnedK, v, spans, smol.heads)
		m.forward(output, mid, o, x)
		m.e.RMSNorm(h, mid, norm, 1e-5)
		m.forward(gate, g, h, none)
		m.forward(up, u, h, none)
		m.e.SwiGLU(s, g, u)
		m.forward(down, x, s, mid)

		m.backward(down, s, s, dx, none)
		m.e.SwiGLUGrad(dg, du, g, u, s)
		m.backward(up, dh, h, du, none)
		m.backward(gate, dn, h, dg, dh)
		m.e.RMSNormGrad(dh, mid, norm, dn, dx, 1e-5)
		m.backward(output, dn, o, dh, none)
		m.e.AttentionGrad(q, dk, dv, dn, o, lse, turnedQ, turnedK, v, spans, smol.heads)
		m.e.Rotary(turnedQ, q, table, pos, true)
		m.e.Rotary(turnedK, dk, table, pos, true)
		m.backward(value, dx, h, dv, none)
		m.backward(key, dn, h, turnedK, dx)
		m.backward(query, o, h, turnedQ, dn)
		m.e.RMSNormGrad(dx, x, norm, o, dh, 1e-5)
	}
}

// BenchmarkElementwise is what is not a matrix product, on the rows of a batch.
func BenchmarkElementwise(b *testing.B) {
	m := bench{newTestEngine[float32](b, Options{})}
	const tokens = 512
	x, y, w := m.tensor(tokens, smol.width), m.tensor(tokens, smol.width), m.tensor(smol.width)
	g, u, s := m.tensor(tokens, smol.mlp), m.tensor(tokens, smol.mlp), m.tensor(tokens, smol.mlp)
	dg, du := m.tensor(tokens, smol.mlp), m.tensor(tokens, smol.mlp)
	key := m.ints(2, func(i int) int32 { return int32(i) })
	table, pos := m.tensor(tokens, smol.heads.Dim), m.ints(tokens, func(i int) int32 { return int32(i) })
	for _, c := range []struct {
		name string
		run  func()
	}{
		{"RMSNorm", func() { m.e.RMSNorm(y, x, w, 1e-5) }},
		{"RMSNormGrad", func() { m.e.RMSNormGrad(y, x, w, x, kernels.Tensor{}, 1e-5) }},
		{"Rotary", func() { m.e.Rotary(y, x, table, pos, false) }},
		{"Dropout", func() { m.e.Dropout(y, x, key, 3, 0.05) }},
		{"SwiGLU", func() { m.e.SwiGLU(s, g, u) }},
		{"SwiGLUGrad", func() { m.e.SwiGLUGrad(dg, du, g, u, s) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				c.run()
			}
		})
	}
}
