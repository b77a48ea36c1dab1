package kernelstest

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
)

func testNorm(t *testing.T, b kernels.Backend) {
	for _, n := range []int{1, 3, 257, 5000, 65537} {
		for _, s := range spreads {
			t.Run(fmt.Sprintf("%v %d", s, n), func(t *testing.T) {
				c := newCall(t, b)
				g, y := c.in("g", b.Param(), s.make(c.rand, n), n), c.out("norm", b.Param(), 1)
				c.run(func() { b.Norm(y.tensor(), g.tensor()) })
				c.want(y, matrix{1, 1, []number{norm(g.matrix())}})
			})
		}
	}
	t.Run("many", func(t *testing.T) {
		c := newCall(t, b)
		const n = 1<<20 + 1<<12 + 5
		g, y := c.in("g", b.Param(), c.normal(n), n), c.out("norm", b.Param(), 1)
		c.run(func() { b.Norm(y.tensor(), g.tensor()) })
		c.want(y, matrix{1, 1, []number{norm(g.matrix())}})
	})
	for _, row := range []struct {
		name string
		g    []float64
		want float64
	}{
		{"3, 4 and 12", []float64{3, -4, 12}, 13},
		{"one outlier", append(slices.Repeat([]float64{1e-3}, 1000), 1e4), math.Sqrt(1e8 + 1e-3)},
		{"NaN", []float64{1, math.NaN(), 2}, math.NaN()},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			g, y := c.in("g", b.Param(), row.g, len(row.g)), c.out("norm", b.Param(), 1)
			c.run(func() { b.Norm(y.tensor(), g.tensor()) })
			c.want(y, matrix{1, 1, []number{{v: row.want, acc: 2 * math.Abs(row.want)}}})
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		g, y := c.in("g", b.Param(), c.normal(3), 3), c.out("norm", b.Param(), 1)
		c.contradict(func() { b.Norm(y.tensor(), g.tensor()) }, "g")
	})
}

// adam is what PyTorch has for defaults, but for decay and clipping.
var adam = kernels.AdamW{Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, Decay: 0.01, Clip: 1}

// state is the operands of one step.
type state struct {
	p, g, m, v, norm, hyper *operand
}

func (c *call) state(p, g, m, v []float64, norm, rate, step float64) state {
	n, typ := len(p), c.b.Param()
	return state{
		c.adds("p", typ, p, n), c.in("g", typ, g, n), c.adds("m", typ, m, n), c.adds("v", typ, v, n),
		c.in("norm", typ, []float64{norm}, 1), c.in("hyper", typ, []float64{rate, step}, 2),
	}
}

func (s state) do(b kernels.Backend, c kernels.AdamW) func() {
	return func() {
		b.Step(s.p.tensor(), s.g.tensor(), s.m.tensor(), s.v.tensor(), s.norm.tensor(), s.hyper.tensor(), c)
	}
}

func testStep(t *testing.T, b kernels.Backend) {
	for _, n := range []int{1, 3, 257, 4099} {
		for _, step := range []float64{1, 2, 10, 1000} {
			for _, clip := range []float64{0, 1e-3, 1e9} {
				t.Run(fmt.Sprintf("%d elements step %v clip %v", n, step, clip), func(t *testing.T) { testOneStep(t, b, n, step, clip) })
			}
		}
	}
	t.Run("many elements", func(t *testing.T) { testOneStep(t, b, 70001, 3, 1) })
	for _, length := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		for _, clip := range []float64{0, 1} {
			t.Run(fmt.Sprintf("norm %v clip %v", length, clip), func(t *testing.T) { testNoStep(t, b, length, clip) })
		}
	}
	t.Run("a norm that is large but finite", func(t *testing.T) {
		c := newCall(t, b)
		s := c.state([]float64{1}, []float64{1e30}, []float64{0}, []float64{1}, 1e30, 0.1, 1)
		rule := kernels.AdamW{Beta1: 0.5, Beta2: 0.5, Clip: 1}
		c.run(s.do(b, rule))
		c.want(s.m, matrix{1, 1, []number{{v: 0.5, acc: 4}}})
		c.want(s.v, matrix{1, 1, []number{{v: 1, acc: 8}}})
		c.want(s.p, matrix{1, 1, []number{{v: 1 - 0.1*math.Sqrt(0.5), acc: 16}}})
	})
	t.Run("worked", func(t *testing.T) { testWorkedSteps(t, b) })
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		s := c.state(c.normal(3), c.normal(3), c.normal(3), []float64{1, 1, 1}, 1, 0.1, 1)
		c.contradict(s.do(b, adam))
	})
}

// testOneStep compares a step with the reference's.
func testOneStep(t *testing.T, b kernels.Backend, n int, step, clip float64) {
	c := newCall(t, b)
	rule := adam
	rule.Clip = clip
	v := outliers.make(c.rand, n)
	for i := range v {
		v[i] *= v[i]
	}
	s := c.state(c.normal(n), outliers.make(c.rand, n), c.normal(n), v, 3, 1e-3, step)
	c.run(s.do(b, rule))
	hyper := s.hyper.matrix()
	p, m, v2 := adamW(s.p.matrix(), s.g.matrix(), s.m.matrix(), s.v.matrix(), s.norm.matrix().at(0, 0), hyper.at(0, 0), hyper.at(0, 1).v, rule)
	c.want(s.m, m)
	c.want(s.v, v2)
	c.want(s.p, p)
}

// testNoStep asks that nothing moves, since the gradient is worth nothing.
func testNoStep(t *testing.T, b kernels.Backend, length, clip float64) {
	c := newCall(t, b)
	rule := adam
	rule.Clip = clip
	g := c.normal(257)
	g[3], g[200] = math.NaN(), math.Inf(1)
	s := c.state(c.normal(257), g, c.normal(257), slices.Repeat([]float64{0.5}, 257), length, 1e-3, 2)
	c.run(s.do(b, rule))
	for _, o := range []*operand{s.p, s.m, s.v} {
		if at := differs(hostBytes(o.before), hostBytes(o.after)); at >= 0 {
			t.Errorf("%s%v moved", o.name, o.index(at/o.view.Type.Size()-o.guard))
		}
	}
}

// testWorkedSteps knows the answers. With one gradient throughout the corrected moments are g and g², so that each
// step moves by the learning rate, whatever the gradient's size, and clipping shows in m and v alone. A second
// gradient of zero leaves moments of Beta·(1-Beta)/(1-Beta²) = Beta/(1+Beta) times g and g².
func testWorkedSteps(t *testing.T, b kernels.Backend) {
	after := 0.1 * (0.9 / 1.9) / math.Sqrt(0.999/1.999)
	for _, row := range []struct {
		name            string
		p               float64
		gradients       []float64
		norm            float64
		decay, clip     float64
		wantP, wantM, v float64
	}{
		{"first step", 1, []float64{0.5}, 9, 0, 0, 0.9, 0.05, 0.00025},
		{"first step down", 1, []float64{-20}, 9, 0, 0, 1.1, -2, 0.4},
		{"three steps", 1, []float64{0.5, 0.5, 0.5}, 9, 0, 0, 0.7, 0.5 * (1 - 0.729), 0.25 * (1 - 0.997002999)},
		{"then nothing", 1, []float64{0.5, 0}, 9, 0, 0, 0.9 - after, 0.045, 0.00024975},
		{"decay is decoupled", 2, []float64{0.5}, 9, 0.5, 0, 2*0.95 - 0.1, 0.05, 0.00025},
		{"decay twice", 2, []float64{0.5, 0.5}, 9, 0.5, 0, (2*0.95-0.1)*0.95 - 0.1, 0.095, 0.25 * (1 - 0.998001)},
		{"clipped", 1, []float64{4}, 5, 0, 1, 0.9, 0.4 / 5.000001, 0.016 / (5.000001 * 5.000001)},
		{"short enough", 1, []float64{0.5}, 0.5, 0, 1, 0.9, 0.05, 0.00025},
		{"no gradient", 1, []float64{0}, 0, 0, 1, 1, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			rule := kernels.AdamW{Beta1: 0.9, Beta2: 0.999, Eps: 1e-20, Decay: row.decay, Clip: row.clip}
			d := newDevice(t, b)
			p, m, v := d.put(b.Param(), []float64{row.p}, 1), d.put(b.Param(), []float64{0}, 1), d.put(b.Param(), []float64{0}, 1)
			for i, g := range row.gradients {
				b.Step(p, d.put(b.Param(), []float64{g}, 1), m, v, d.put(b.Param(), []float64{row.norm}, 1), d.put(b.Param(), []float64{0.1, float64(i + 1)}, 2), rule)
			}
			for _, x := range []struct {
				name string
				of   kernels.Tensor
				want float64
			}{{"p", p, row.wantP}, {"m", m, row.wantM}, {"v", v, row.v}} {
				want := number{v: x.want, acc: 8 * math.Abs(x.want)}
				if x.name == "p" {
					want.acc = 50 // 1 - Beta2ⁿ loses three digits if it is computed in Param
				}
				tol := tolerance(want, b.Param(), b.Float(), b.Param())
				if got := d.get(x.of)[0]; !agree(got, x.want, tol) {
					t.Errorf("%s is %.9g after %d steps, want %.9g ± %.2g", x.name, got, len(row.gradients), x.want, tol)
				}
			}
		})
	}
}
