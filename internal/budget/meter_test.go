package budget

import (
	"errors"
	"slices"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

func f32(shape ...int) kernels.Tensor {
	t := kernels.NewHost(kernels.F32, shape...)
	for i, s := 0, kernels.Slice[float32](t); i < len(s); i++ {
		s[i] = float32(i%7) - 3
	}
	return t
}

func i32(xs []int32, shape ...int) kernels.Tensor { return kernels.FromSlice(xs, shape...) }

func newCPU(t *testing.T) kernels.Backend {
	t.Helper()
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func meter(t *testing.T, b kernels.Backend) *Meter {
	t.Helper()
	m := New(b, Rates{Flops: 1000, Bytes: 10})
	m.Start()
	return m
}

// TestWork holds flops and bytes against sums done by hand: T = 2 tokens, D = 3, D_out = 5, C = 4 columns, V = 6.
func TestWork(t *testing.T) {
	none := kernels.Tensor{}
	heads := kernels.Heads{Query: 2, KV: 1, Dim: 2}
	sw := kernels.Switch{A: f32(3, 4), B: f32(4, 5), Gates: f32(2, 2), Rank: 2, Scale: 1}
	x, y, u, w := f32(2, 3), f32(2, 5), f32(2, 4), f32(5, 3)
	// The first token sees itself; the second a key of a prefix and both tokens, which are three rows of k and v.
	q, k, spans := f32(2, 4), f32(3, 2), i32([]int32{0, 0, 1, 2, 0, 1, 1, 3}, 2, 4)
	bf16 := kernels.NewHost(kernels.BF16, 5, 3)
	for _, c := range []struct {
		op           string
		run          func(m *Meter)
		flops, bytes float64
	}{
		{"Embed", func(m *Meter) { m.Embed(x, f32(6, 3), i32([]int32{5, 0}, 2)) }, 0, 24 + 8 + 2*12},
		{"RMSNorm", func(m *Meter) { m.RMSNorm(f32(2, 3), x, f32(3), 1e-6) }, 0, 24 + 24 + 12},
		{"Linear", func(m *Meter) { m.Linear(y, x, w, f32(5), none) }, 60, 40 + 24 + 60 + 20},
		{"Linear", func(m *Meter) { m.Linear(y, x, w, f32(5), f32(2, 5)) }, 60, 40 + 24 + 60 + 20 + 40},
		{"Linear", func(m *Meter) { m.Linear(y, x, bf16, none, none) }, 60, 40 + 24 + 30},
		{"SwitchLinear", func(m *Meter) { m.SwitchLinear(y, u, x, x, w, none, none, sw) }, 60 + 48 + 80, 40 + 32 + 24 + 60 + 48 + 80 + 16},
		{"SwitchLinear", func(m *Meter) { m.SwitchLinear(y, u, x, f32(2, 3), w, none, none, sw) }, 188, 324},
		{"SwitchLinear", func(m *Meter) { m.SwitchLinear(y, u, x, f32(2, 3), w, none, f32(2, 5), sw) }, 188, 324 + 40},
		{"Rotary", func(m *Meter) { m.Rotary(f32(2, 4), q, f32(9, 2), i32([]int32{0, 8}, 2), false) }, 0, 32 + 32 + 8 + 2*8},
		{"Attention", func(m *Meter) { m.Attention(f32(2, 4), f32(2, 2), q, k, k, spans, heads) }, 2 * 2 * 4 * 4, 32 + 16 + 32 + 24 + 24 + 32},
		{"AttentionGrad", func(m *Meter) {
			m.AttentionGrad(f32(2, 4), f32(3, 2), f32(3, 2), q, q, f32(2, 2), q, k, k, spans, heads)
		}, 5 * 2 * 4 * 4, 32 + 24 + 24 + 32 + 32 + 16 + 32 + 24 + 24 + 32},
		{"SwiGLU", func(m *Meter) { m.SwiGLU(f32(2, 3), x, x) }, 0, 72},
		{"SwiGLUGrad", func(m *Meter) { m.SwiGLUGrad(f32(2, 3), f32(2, 3), x, x, x) }, 0, 120},
		{"Sum", func(m *Meter) { m.Sum(f32(2, 3), x, x, x) }, 0, 96},
		{"Scale", func(m *Meter) { m.Scale(f32(2, 3), x, f32(1)) }, 0, 52},
		{"Dropout", func(m *Meter) { m.Dropout(f32(2, 3), x, i32([]int32{1, 2}, 2), 0, 0.5) }, 0, 56},
		{"Route", func(m *Meter) { m.Route(f32(2, 4), x, f32(4, 3)) }, 48, 32 + 24 + 48},
		{"Gate", func(m *Meter) { m.Gate(f32(2, 4), f32(2, 4)) }, 0, 64},
		{"Balance", func(m *Meter) { m.Balance(f32(1), f32(4), u, u, i32([]int32{0, -1}, 2)) }, 0, 4 + 16 + 32 + 32 + 8},
		{"BalanceGrad", func(m *Meter) { m.BalanceGrad(f32(2, 4), f32(1), u, f32(4), i32([]int32{0, -1}, 2)) }, 0, 32 + 4 + 32 + 16 + 8},
		// Only one row has a target.
		{"CrossEntropy", func(m *Meter) { m.CrossEntropy(f32(1), f32(2, 3), x, f32(6, 3), i32([]int32{2, -100}, 2)) }, 36 + 36, 4 + 24 + 12 + 72 + 8},
		{"CrossEntropy", func(m *Meter) { m.CrossEntropy(f32(1), none, x, f32(6, 3), i32([]int32{2, -100}, 2)) }, 36, 4 + 12 + 72 + 8},
		{"LogProb", func(m *Meter) { m.LogProb(f32(2), x, f32(6, 3), i32([]int32{2, 0}, 2)) }, 72, 8 + 24 + 72 + 8},
		{"RMSNormGrad", func(m *Meter) { m.RMSNormGrad(f32(2, 3), x, f32(3), x, none, 1e-6) }, 0, 84},
		{"RMSNormGrad", func(m *Meter) { m.RMSNormGrad(f32(2, 3), x, f32(3), x, f32(2, 3), 1e-6) }, 0, 84 + 24},
		{"LinearGrad", func(m *Meter) { m.LinearGrad(f32(2, 3), y, w, none) }, 60, 24 + 40 + 60},
		{"LinearGrad", func(m *Meter) { m.LinearGrad(f32(2, 3), y, w, f32(2, 3)) }, 60, 24 + 40 + 60 + 24},
		{"SwitchGradHidden", func(m *Meter) { m.SwitchGradHidden(f32(2, 4), f32(2, 2), y, u, sw) }, 80, 32 + 16 + 40 + 32 + 80 + 16},
		{"SwitchGradInput", func(m *Meter) { m.SwitchGradInput(f32(2, 3), y, w, u, sw.A, none) }, 60 + 48, 24 + 40 + 60 + 32 + 48},
		{"SwitchGradInput", func(m *Meter) { m.SwitchGradInput(f32(2, 3), y, w, u, sw.A, f32(2, 3)) }, 60 + 48, 24 + 40 + 60 + 32 + 48 + 24},
		{"SwitchGradA", func(m *Meter) { m.SwitchGradA(f32(3, 4), x, u) }, 48, 2*48 + 24 + 32},
		{"SwitchGradB", func(m *Meter) { m.SwitchGradB(f32(4, 5), u, y, sw) }, 80, 2*80 + 32 + 40 + 16},
		{"RouteGradInput", func(m *Meter) { m.RouteGradInput(f32(2, 3), u, f32(4, 3)) }, 48, 24 + 32 + 48},
		{"RouteGradWeight", func(m *Meter) { m.RouteGradWeight(f32(4, 3), u, x) }, 48, 2*48 + 32 + 24},
		{"GateGrad", func(m *Meter) { m.GateGrad(f32(2, 4), u, u) }, 0, 96},
		{"Norm", func(m *Meter) { m.Norm(f32(1), f32(10)) }, 0, 44},
		{"Step", func(m *Meter) {
			m.Step(f32(10), f32(10), f32(10), f32(10), f32(1), f32(2), kernels.AdamW{Beta1: 0.9, Beta2: 0.9})
		}, 0, 7*40 + 4 + 8},
		{"Round", func(m *Meter) { m.Round(kernels.NewHost(kernels.BF16, 10), f32(10)) }, 0, 60},
		{"Zero", func(m *Meter) { m.Zero(f32(10)) }, 0, 40},
		{"Copy", func(m *Meter) { m.Copy(f32(10), f32(10)) }, 0, 80},
		{"Top2", func(m *Meter) { m.Top2(i32(make([]int32, 4), 2, 2), f32(2, 2), u) }, 0, 16 + 16 + 32},
		{"Experts", func(m *Meter) {
			m.Experts(y, x, f32(9, 2, 3), f32(9, 2, 5), i32([]int32{0, 8, 3, 4}, 2, 2), f32(2, 2), 1)
		}, 4 * 2 * 2 * (3 + 5), 80 + 24 + 16 + 16 + 4*24 + 4*40},
		{"Merge", func(m *Meter) {
			p, err := m.PrepareMerge([]kernels.Merge{{Dst: f32(5, 3), Src: w, A: f32(9, 2, 3), B: f32(9, 2, 5)}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			m.Merge(p, i32([]int32{1, 2}, 2), f32(2), i32(make([]int32, 4), 4), 1)
		}, 2 * 5 * 3 * 4, 60 + 60 + 8 + 8 + 2*16 + 2*24 + 2*40},
		{"Spread", func(m *Meter) { m.Spread(f32(2, 9), i32([]int32{0, 8, 3, 4}, 2, 2), f32(2, 2)) }, 0, 72 + 16 + 16},
		{"Transpose", func(m *Meter) { m.Transpose(f32(3, 2), x) }, 0, 48},
		{"Append", func(m *Meter) { m.Append(f32(9, 3), x, i32([]int32{4, -1}, 2)) }, 0, 8 + 2*12},
		// A sequence reads 4 numbers, writes 9 and two pairs, and reads two pairs of the table.
		{"Advance", func(m *Meter) {
			m.Advance(kernels.Sequences{
				Tokens: i32(make([]int32, 2), 2), Length: i32([]int32{0, -1}, 2), Keys: i32(make([]int32, 4), 2, 2), Room: 3,
				Pos: i32(make([]int32, 2), 2), Live: i32(make([]int32, 2), 2), Rows: i32(make([]int32, 2), 2), Spans: i32(make([]int32, 8), 2, 4), U: f32(2),
				Experts: i32(make([]int32, 4), 2, 2), Weights: f32(2, 2),
			}, i32(make([]int32, 12), 6, 2), f32(6, 2))
		}, 0, 2 * (4*(5+8+4) + 16)},
		{"Sample", func(m *Meter) { m.Sample(i32(make([]int32, 2), 2), u, f32(2), kernels.Sampling{}) }, 0, 8 + 32 + 8},
	} {
		m := meter(t, newCPU(t))
		c.run(m)
		if err := m.Sync(); err != nil {
			t.Fatal(err)
		}
		rows := m.Rows()
		if len(rows) != 1 || rows[0].Op != c.op || rows[0].Calls != 1 {
			t.Errorf("%s: rows are %+v", c.op, rows)
			continue
		}
		if r := rows[0]; r.Flops != c.flops || r.Bytes != c.bytes || r.Limit != max(c.flops/1000, c.bytes/10) || r.Seconds <= 0 {
			t.Errorf("%s: got %+v, want %v flops, %v bytes", c.op, r, c.flops, c.bytes)
		}
	}
}

// TestMeterComputesTheSame and counts only between Start and Stop.
func TestMeterComputesTheSame(t *testing.T) {
	b := newCPU(t)
	m := New(b, Rates{Flops: 1, Bytes: 1})
	x, w, got, want := f32(2, 3), f32(5, 3), f32(2, 5), f32(2, 5)
	b.Linear(want, x, w, kernels.Tensor{}, kernels.Tensor{})
	for _, step := range []struct {
		before func()
		calls  int
	}{{func() {}, 0}, {m.Start, 1}, {m.Start, 1}, {m.Stop, 1}} {
		step.before()
		m.Storage.Zero(got)
		m.Linear(got, x, w, kernels.Tensor{}, kernels.Tensor{})
		if !slices.Equal(kernels.Slice[float32](got), kernels.Slice[float32](want)) {
			t.Fatalf("Linear is %v, want %v", kernels.Slice[float32](got), kernels.Slice[float32](want))
		}
		calls := 0
		for _, r := range m.Rows() {
			calls += r.Calls
		}
		if calls != step.calls {
			t.Errorf("%d calls were measured, want %d", calls, step.calls)
		}
	}
	if len(m.Kernels()) != 0 {
		t.Errorf("the processor's kernels are %v", m.Kernels())
	}
}

// profiled is a backend with a trace: each Linear launches two kernels, Gate one.
type profiled struct {
	kernels.Backend
	trace []kernels.Took
	fail  error
}

func (p *profiled) Linear(y, x, w, bias, plus kernels.Tensor) {
	p.trace = append(p.trace, kernels.Took{Name: "product", Seconds: float64(y.Shape[1])}, kernels.Took{Name: "bias", Seconds: 0.5})
}

func (p *profiled) Gate(gates, logits kernels.Tensor) {
	p.trace = append(p.trace, kernels.Took{Name: "gate", Seconds: 2})
}

func (p *profiled) Profile(f func()) ([]kernels.Took, error) {
	p.trace = nil
	f()
	return p.trace, p.fail
}

// TestMeterOfProfiler attributes launches to operations, first of operations that ran alone and then of a whole step.
func TestMeterOfProfiler(t *testing.T) {
	b := &profiled{Backend: newCPU(t)}
	m := meter(t, b)
	m.Linear(f32(2, 5), f32(2, 3), f32(5, 3), kernels.Tensor{}, kernels.Tensor{})
	m.Gate(f32(2, 4), f32(2, 4))
	m.Linear(f32(2, 5), f32(2, 3), f32(5, 3), kernels.Tensor{}, kernels.Tensor{})
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	check := func(kernels []Kernel, linear, gate float64) {
		t.Helper()
		if got := m.Kernels(); !slices.Equal(got, kernels) {
			t.Errorf("kernels are %v, want %v", got, kernels)
		}
		rows := m.Rows()
		if len(rows) != 2 || rows[0].Op != "Linear" || rows[0].Seconds != linear || rows[1].Op != "Gate" || rows[1].Seconds != gate {
			t.Errorf("rows are %+v, want %v s of Linear, %v s of Gate", rows, linear, gate)
		}
	}
	check([]Kernel{{"product", "Linear", 2, 10}, {"gate", "Gate", 1, 2}, {"bias", "Linear", 2, 1}}, 11, 2)
	if err := m.Together([]kernels.Took{{Name: "product", Seconds: 1}}); err == nil {
		t.Error("the launches of another step were taken")
	}
	err := m.Together([]kernels.Took{
		{Name: "product", Seconds: 1}, {Name: "bias", Seconds: 2}, {Name: "gate", Seconds: 4}, {Name: "product", Seconds: 8}, {Name: "bias", Seconds: 16},
	})
	if err != nil {
		t.Fatal(err)
	}
	check([]Kernel{{"bias", "Linear", 2, 18}, {"product", "Linear", 2, 9}, {"gate", "Gate", 1, 4}}, 27, 4)
	b.fail = errors.New("no trace")
	m.Gate(f32(2, 4), f32(2, 4))
	if err := m.Sync(); !errors.Is(err, b.fail) {
		t.Errorf("Sync is %v, want %v", err, b.fail)
	}
	if err := m.Sync(); err != nil {
		t.Errorf("the second Sync is %v", err)
	}
}
