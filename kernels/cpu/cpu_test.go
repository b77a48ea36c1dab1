package cpu

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string // in String
		err  string
	}{
		{o: Options{Matrix: "go", Threads: 1}, want: "CPU, float32, 1 thread, Go"},
		{o: Options{Matrix: "go", Threads: 3, Float64: true}, want: "CPU, float64, 3 threads, Go"},
		{o: Options{Matrix: "mkl"}, err: `matrix library "mkl": expected openblas or go`},
		{o: Options{Threads: -1}, err: "-1 threads: expected a positive number"},
	} {
		b, err := New(c.o)
		switch {
		case c.err != "":
			if err == nil || !strings.HasPrefix(err.Error(), c.err+"\n") {
				t.Errorf("New(%+v): error %v, want %q and a line of advice", c.o, err, c.err)
			}
		case err != nil:
			t.Errorf("New(%+v): %v", c.o, err)
		case !strings.HasPrefix(b.String(), c.want):
			t.Errorf("New(%+v) is %q, want %q…", c.o, b, c.want)
		case b.Name() != "cpu" || b.Float() != b.Param() || (b.Float() == kernels.F64) != c.o.Float64:
			t.Errorf("New(%+v) is named %s, computes in %v and %v", c.o, b.Name(), b.Float(), b.Param())
		}
	}
}

func TestAlloc(t *testing.T) {
	e := newTestEngine[float32](t, Options{})
	x, err := e.Alloc(kernels.BF16, 3, 5)
	if err != nil || x.Type != kernels.BF16 || !slices.Equal(x.Shape, []int{3, 5}) || x.Bytes() != 30 {
		t.Errorf("Alloc gives %v of %d bytes, %v", x, x.Bytes(), err)
	}
	for _, shape := range [][]int{{-1}, {3, -2}, {math.MaxInt}, {math.MaxInt, math.MaxInt}, {1 << 30, 1 << 20}} {
		if _, err := e.Alloc(kernels.F32, shape...); err == nil {
			t.Errorf("Alloc of %v gives no error", shape)
		} else if shape[0] > 0 && shape[len(shape)-1] > 0 && !strings.Contains(err.Error(), "are free\n") {
			t.Errorf("Alloc of %v: %q does not say what is free", shape, err)
		}
	}
}

func TestPlace(t *testing.T) {
	e := newTestEngine[float32](t, Options{})
	host := kernels.FromSlice([]float32{1, 2, 3, 4}, 2, 2)
	placed, err := e.Place(host)
	if err != nil || &placed.Mem.(kernels.Host)[0] != &host.Mem.(kernels.Host)[0] {
		t.Errorf("an aligned tensor is copied (%v)", err)
	}
	mem := append(make([]byte, 1, 17), host.Mem.(kernels.Host)...)
	for shift := range 4 {
		odd := kernels.Tensor{Shape: []int{3}, Type: kernels.F32, Mem: kernels.Host(mem[1:]).Slice(shift, shift+12)}
		placed, err := e.Place(odd)
		if err != nil {
			t.Fatal(err)
		}
		if got := placed.Mem.(kernels.Host); string(got) != string(odd.Mem.(kernels.Host)) {
			t.Errorf("placed from byte %d: %v, want %v", 1+shift, got, odd.Mem)
		}
		kernels.Slice[float32](placed) // panics if it is still not aligned
	}
}

// TestPanics calls operations with wrong shapes: the message names the operation, the tensor and the shapes.
func TestPanics(t *testing.T) {
	e := newTestEngine[float32](t, Options{})
	f32 := func(shape ...int) kernels.Tensor { return kernels.NewHost(kernels.F32, shape...) }
	i32 := func(values ...int32) kernels.Tensor { return kernels.FromSlice(values, len(values)) }
	for _, c := range []struct {
		want string
		call func()
	}{
		{"Linear: y is f32[2 4], expected f32[2 5]", func() { e.Linear(f32(2, 4), f32(2, 3), f32(5, 3), kernels.Tensor{}, kernels.Tensor{}) }},
		{"Linear: w is f32[5 4], expected f32[5 3]", func() { e.Linear(f32(2, 5), f32(2, 3), f32(5, 4), kernels.Tensor{}, kernels.Tensor{}) }},
		{"Linear: w is i32[5], expected two dimensions", func() { e.Linear(f32(2, 5), f32(2, 3), i32(1, 2, 3, 4, 5), kernels.Tensor{}, kernels.Tensor{}) }},
		{"Linear: bias is f32[4], expected [5]", func() { e.Linear(f32(2, 5), f32(2, 3), f32(5, 3), f32(4), kernels.Tensor{}) }},
		{"Embed: ids[1] is 7, expected 0 to 6", func() { e.Embed(f32(2, 3), f32(7, 3), i32(0, 7)) }},
		{"Embed: ids is none, expected i32[2]", func() { e.Embed(f32(2, 3), f32(7, 3), kernels.Tensor{}) }},
		{"Rotary: x is f32[2 9], table f32[4 6]", func() { e.Rotary(f32(2, 9), f32(2, 9), f32(4, 6), i32(0, 1), false) }},
		{"Sum: a term is f32[3], expected f32[2]", func() { e.Sum(f32(2), f32(2), f32(3)) }},
		{"CrossEntropy: targets[0] is 9, expected less than 9", func() { e.CrossEntropy(f32(1), f32(1, 2), f32(1, 2), f32(9, 2), i32(9)) }},
		{"Attention: spans[0] is [0 3 0 0], expected ranges of 2 rows", func() {
			e.Attention(f32(1, 4), kernels.Tensor{}, f32(1, 4), f32(2, 4), f32(2, 4), i32(0, 3, 0, 0).Reshape(1, 4), kernels.Heads{Query: 1, KV: 1, Dim: 4})
		}},
		{"Attention: 3/2 heads of 4", func() {
			e.Attention(f32(1, 12), kernels.Tensor{}, f32(1, 12), f32(2, 8), f32(2, 8), i32(0, 1, 0, 0).Reshape(1, 4), kernels.Heads{Query: 3, KV: 2, Dim: 4})
		}},
		{"Experts: ids[0] is 2, expected 0 to 1", func() {
			e.Experts(f32(1, 5), f32(1, 3), f32(2, 4, 3), f32(2, 4, 5), i32(2).Reshape(1, 1), f32(1, 1), 1)
		}},
		{"Copy: copy of f32[2] to f32[3]", func() { e.Copy(f32(3), f32(2)) }},
	} {
		func() {
			defer func() {
				if got, ok := recover().(string); !ok || !strings.HasPrefix(got, "kernels/cpu: "+c.want) {
					t.Errorf("panics with %q, want %q", got, c.want)
				}
			}()
			c.call()
		}()
	}
}

// TestThreads holds that results do not depend on when threads run, and hardly on how many there are.
func TestThreads(t *testing.T) {
	run := func(threads int) []float32 {
		m := bench{newTestEngine[float32](t, Options{Threads: threads})}
		const tokens = 70
		h, w, dh, loss := m.tensor(tokens, 96), m.tensor(3000, 96), m.tensor(tokens, 96), m.tensor(1)
		m.e.CrossEntropy(loss, dh, h, w, m.ints(tokens, func(i int) int32 { return int32(i*41) - 3 }))
		heads := kernels.Heads{Query: 6, KV: 3, Dim: 16}
		k, v, o, lse := m.tensor(tokens, 48), m.tensor(tokens, 48), m.tensor(tokens, 96), m.tensor(tokens, 6)
		spans := m.causal(tokens, 9)
		m.e.Attention(o, lse, h, k, v, spans, heads)
		dq, dk, dv := m.tensor(tokens, 96), m.tensor(tokens, 48), m.tensor(tokens, 48)
		m.e.AttentionGrad(dq, dk, dv, dh, o, lse, h, k, v, spans, heads)
		norm := m.tensor(1)
		m.e.Norm(norm, w.Reshape(w.Len()))
		var all []float32
		for _, x := range []kernels.Tensor{loss, dh, o, lse, dq, dk, dv, norm} {
			all = append(all, kernels.Slice[float32](x)...)
		}
		return all
	}
	one, three := run(1), run(3)
	for range 5 {
		if again := run(3); !slices.Equal(again, three) {
			t.Fatal("three threads give other results when run again")
		}
	}
	for i, x := range three {
		if d := math.Abs(float64(x - one[i])); !(d <= 1e-5*(1+math.Abs(float64(x)))) {
			t.Fatalf("result %d is %g with one thread, %g with three", i, one[i], x)
		}
	}
}

// TestNormOfOutliers compares with a sum of 200 bits: large numbers between small ones cost no digits.
func TestNormOfOutliers(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	g := make([]float64, 3*normPart+17)
	exact := new(big.Float).SetPrec(200)
	for i := range g {
		g[i] = r.NormFloat64() * math.Pow(10, 4*r.Float64())
		x := new(big.Float).SetPrec(200).SetFloat64(g[i])
		exact.Add(exact, x.Mul(x, x))
	}
	want, _ := exact.Sqrt(exact).Float64()
	for threads := range 4 {
		e := newTestEngine[float64](t, Options{Threads: threads})
		norm := kernels.NewHost(kernels.F64, 1)
		e.Norm(norm, kernels.FromSlice(g, len(g)))
		if got := kernels.Slice[float64](norm)[0]; math.Abs(got-want) > 1e-14*want {
			t.Errorf("%d threads: norm %.17g, want %.17g", threads, got, want)
		}
	}
}

// TestNaNShows holds that a NaN or an infinity anywhere in the hidden rows reaches the loss and the norm.
func TestNaNShows(t *testing.T) {
	for _, x := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		m := bench{newTestEngine[float32](t, Options{})}
		h, w, dh, loss, lp := m.tensor(20, 32), m.tensor(5000, 32), m.tensor(20, 32), m.tensor(1), m.tensor(20)
		kernels.Slice[float32](h)[5*32+3] = x
		targets := m.ints(20, func(i int) int32 { return int32(i) })
		m.e.CrossEntropy(loss, dh, h, w, targets)
		m.e.LogProb(lp, h, w, targets)
		if got := kernels.Slice[float32](loss)[0]; got-got == 0 {
			t.Errorf("%g in a hidden row: loss %g", x, got)
		}
		for i, got := range kernels.Slice[float32](lp) {
			if spoilt := got-got != 0; spoilt != (i == 5) {
				t.Errorf("%g in hidden row 5: log-probability %d is %g", x, i, got)
			}
		}
		m.e.Norm(loss, h.Reshape(h.Len()))
		if got := kernels.Slice[float32](loss)[0]; got-got == 0 {
			t.Errorf("%g in a gradient: norm %g", x, got)
		}
	}
}

func TestSampleSpoiltLogits(t *testing.T) {
	e := newTestEngine[float32](t, Options{})
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		logits []float32
		want   []int32 // any of these
	}{
		{[]float32{nan, nan, nan}, []int32{0}},
		{[]float32{nan, 1, nan}, []int32{1}},
		{[]float32{nan, 1, 2}, []int32{1, 2}},
		{[]float32{0, inf, inf}, []int32{1}},
		{[]float32{-inf, -inf, -inf}, []int32{0}},
		{[]float32{-inf, 3, nan}, []int32{1}},
		{[]float32{-3e38, 3e38, 0}, []int32{1}},
	} {
		for _, rule := range []kernels.Sampling{
			{},
			{Temperature: 1},
			{Temperature: 1e-30},
			{Temperature: 2, TopK: 2},
			{Temperature: 1, TopK: 100, TopP: 0.5},
			{Temperature: 1, TopP: 1e-9},
			{Temperature: math.NaN()},
		} {
			for _, u := range []float32{0, 0.5, 0.99999994, nan, 1} {
				ids := kernels.NewHost(kernels.I32, 1)
				e.Sample(ids, kernels.FromSlice(slices.Clone(c.logits), 1, 3), kernels.FromSlice([]float32{u}, 1), rule)
				if got := kernels.Slice[int32](ids)[0]; !slices.Contains(c.want, got) {
					t.Errorf("%v of %v with u = %g gives %d, want one of %v", rule, c.logits, u, got, c.want)
				}
			}
		}
	}
}
