package kernelstest

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"loratrain/kernels"
)

// routerSizes are tokens, width and experts.
var routerSizes = [][3]int{{1, 1, 2}, {1, 33, 8}, {7, 65, 3}, {33, 257, 8}, {65, 3, 17}, {3, 7, 1}}

func testRoute(t *testing.T, b kernels.Backend) {
	for _, s := range spreads {
		for _, n := range routerSizes {
			t.Run(fmt.Sprintf("%v %v", s, n), func(t *testing.T) {
				c := newCall(t, b)
				h, router := c.in("h", b.Float(), s.make(c.rand, n[0]*n[1]), n[0], n[1]), c.in("router", b.Param(), c.normal(n[2]*n[1]), n[2], n[1])
				logits := c.out("logits", b.Param(), n[0], n[2])
				c.run(func() { b.Route(logits.tensor(), h.tensor(), router.tensor()) })
				c.want(logits, route(h.matrix(), router.matrix()))
			})
		}
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		h, router, logits := c.in("h", b.Float(), c.normal(6), 2, 3), c.in("router", b.Param(), c.normal(12), 4, 3), c.out("logits", b.Param(), 2, 4)
		c.contradict(func() { b.Route(logits.tensor(), h.tensor(), router.tensor()) })
	})
}

func testRouteGradInput(t *testing.T, b kernels.Backend) {
	for _, n := range routerSizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCall(t, b)
			d, router := c.in("dlogits", b.Param(), c.normal(n[0]*n[2]), n[0], n[2]), c.in("router", b.Param(), c.normal(n[2]*n[1]), n[2], n[1])
			dh := c.out("dh", b.Float(), n[0], n[1])
			c.run(func() { b.RouteGradInput(dh.tensor(), d.tensor(), router.tensor()) })
			c.want(dh, routeGradInput(d.matrix(), router.matrix()))
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		d, router, dh := c.in("dlogits", b.Param(), c.normal(8), 2, 4), c.in("router", b.Param(), c.normal(12), 4, 3), c.out("dh", b.Float(), 2, 3)
		c.contradict(func() { b.RouteGradInput(dh.tensor(), d.tensor(), router.tensor()) })
	})
}

func testRouteGradWeight(t *testing.T, b kernels.Backend) {
	for _, s := range spreads {
		for _, n := range routerSizes {
			t.Run(fmt.Sprintf("%v %v", s, n), func(t *testing.T) {
				c := newCall(t, b)
				d, h := c.in("dlogits", b.Param(), c.normal(n[0]*n[2]), n[0], n[2]), c.in("h", b.Float(), s.make(c.rand, n[0]*n[1]), n[0], n[1])
				dr := c.adds("dr", b.Param(), c.normal(n[2]*n[1]), n[2], n[1])
				c.run(func() { b.RouteGradWeight(dr.tensor(), d.tensor(), h.tensor()) })
				c.want(dr, routeGradWeight(dr.matrix(), d.matrix(), h.matrix()))
			})
		}
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		d, h, dr := c.in("dlogits", b.Param(), c.normal(8), 2, 4), c.in("h", b.Float(), c.normal(6), 2, 3), c.adds("dr", b.Param(), c.normal(12), 4, 3)
		c.contradict(func() { b.RouteGradWeight(dr.tensor(), d.tensor(), h.tensor()) })
	})
}

// gateRows are worked by hand: the two largest of each row, the larger first, and the share of the second.
var gateRows = []struct {
	name          string
	logits        []float64
	first, second int
	share         float64
}{
	{"two experts", []float64{math.Log(3), 0}, 0, 1, 0.25},
	{"last wins", []float64{0, -1, 0, -2, math.Log(3)}, 4, 0, 0.25},
	{"first wins", []float64{5, 1, 2, 3}, 0, 3, 1 / (1 + math.Exp(2))},
	{"larger comes second", []float64{1, 3, 2}, 1, 2, 1 / (1 + math.Exp(1))},
	{"descends", []float64{4, 3, 2, 1}, 0, 1, 1 / (1 + math.Exp(1))},
	{"ascends", []float64{1, 2, 3, 4}, 3, 2, 1 / (1 + math.Exp(1))},
	{"tie goes low", []float64{1, 1, 1, 1}, 0, 1, 0.5},
	{"tie for the first goes low", []float64{0, 2, 1, 2}, 1, 3, 0.5},
	{"tie for the second goes low", []float64{1, 0, 2, 1}, 2, 0, 1 / (1 + math.Exp(1))},
	{"tie behind a late winner", []float64{1, 1, 1, 2}, 3, 0, 1 / (1 + math.Exp(1))},
	{"zeros of either sign tie", []float64{-1, math.Copysign(0, -1), 0}, 1, 2, 0.5},
	{"gate underflows", []float64{-1e4, 1e4, 5}, 1, 2, 0},
	{"gate underflows in a tie", []float64{5, 5, 1e4}, 2, 0, 0},
	{"huge and equal", []float64{0, 1e4, 1e4}, 1, 2, 0.5},
	{"far below any sentinel", []float64{-3e38, -2e38, -2e38}, 1, 2, 0.5},
	{"all negative", []float64{-7, -5, -6}, 1, 2, 1 / (1 + math.Exp(1))},
}

func testGate(t *testing.T, b kernels.Backend) {
	for _, row := range gateRows {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			logits, gates := c.in("logits", b.Param(), row.logits, 1, len(row.logits)), c.out("gates", b.Param(), 1, len(row.logits))
			c.run(func() { b.Gate(gates.tensor(), logits.tensor()) })
			want := make([]number, len(row.logits))
			want[row.first], want[row.second] = number{v: 1 - row.share, acc: expError}, number{v: row.share, acc: expError}
			c.want(gates, matrix{1, len(want), want})
			c.zeroElsewhere(gates, int32(row.first), int32(row.second))
			if row.share == 0 && gates.got()[row.second] != 0 {
				t.Errorf("gates%v is %v, want zero exactly", gates.index(row.second), gates.got()[row.second])
			}
		})
	}
	for _, n := range [][2]int{{1, 2}, {7, 3}, {33, 8}, {5, 65}, {3, 257}} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCall(t, b)
			logits, gates := c.in("logits", b.Param(), c.normal(n[0]*n[1]), n[0], n[1]), c.out("gates", b.Param(), n[0], n[1])
			c.run(func() { b.Gate(gates.tensor(), logits.tensor()) })
			ids, _ := top2(logits.matrix())
			c.want(gates, gate(logits.matrix()))
			c.zeroElsewhere(gates, ids...)
		})
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		logits, gates := c.in("logits", b.Param(), c.normal(8), 2, 4), c.out("gates", b.Param(), 2, 4)
		c.contradict(func() { b.Gate(gates.tensor(), logits.tensor()) })
	})
}

// zeroElsewhere checks that gates beside the top two of each row are not small but zero.
func (c *call) zeroElsewhere(gates *operand, ids ...int32) {
	c.t.Helper()
	experts := gates.view.Shape[1]
	for i, v := range gates.got() {
		if t, e := i/experts, int32(i%experts); v != 0 && e != ids[2*t] && e != ids[2*t+1] {
			c.t.Errorf("gates%v is %v, want zero exactly", gates.index(i), v)
		}
	}
}

func testTop2(t *testing.T, b kernels.Backend) {
	for _, row := range gateRows {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			logits := c.in("logits", b.Param(), row.logits, 1, len(row.logits))
			ids, weights := c.out("ids", kernels.I32, 1, 2), c.out("weights", b.Param(), 1, 2)
			c.run(func() { b.Top2(ids.tensor(), weights.tensor(), logits.tensor()) })
			c.wantIDs(ids, int32(row.first), int32(row.second))
			c.want(weights, matrix{1, 2, []number{{v: 1 - row.share, acc: expError}, {v: row.share, acc: expError}}})
		})
	}
	t.Run("any ties, as Gate", func(t *testing.T) {
		d := newDevice(t, b)
		rapid.Check(t, func(r *rapid.T) {
			experts := rapid.IntRange(2, 9).Draw(r, "experts")
			row := rapid.SliceOfN(rapid.SampledFrom([]float64{-1, 0, 1}), experts, experts).Draw(r, "logits")
			logits, gates := d.put(b.Param(), row, 1, experts), d.put(b.Param(), row, 1, experts)
			ids, weights := d.put(kernels.I32, []float64{-1, -1}, 1, 2), d.put(b.Param(), []float64{-1, -1}, 1, 2)
			b.Gate(gates, logits)
			b.Top2(ids, weights, logits)
			want, _ := top2(matrix{1, experts, numbers(row)})
			got, share, dense := d.get(ids), d.get(weights), d.get(gates)
			for k := range 2 {
				if int32(got[k]) != want[k] || dense[want[k]] <= 0 {
					r.Fatalf("Top2 gives ids %v and Gate %v, want ids %v", got, dense, want)
				}
				tol := tolerance(number{v: share[k], acc: expError}, b.Param(), b.Float(), b.Param())
				if !agree(dense[want[k]], share[k], tol) {
					r.Fatalf("Top2 gives weights %v and Gate %v", share, dense)
				}
			}
		})
	})
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		logits := c.in("logits", b.Param(), c.normal(8), 2, 4)
		ids, weights := c.out("ids", kernels.I32, 2, 2), c.out("weights", b.Param(), 2, 2)
		c.contradict(func() { b.Top2(ids.tensor(), weights.tensor(), logits.tensor()) }, "logits")
	})
}

func testGateGrad(t *testing.T, b kernels.Backend) {
	for _, n := range [][2]int{{1, 2}, {7, 3}, {33, 8}, {5, 65}} {
		for _, s := range spreads {
			t.Run(fmt.Sprintf("%v %v", s, n), func(t *testing.T) {
				c := newCall(t, b)
				gates, dg := c.in("gates", b.Param(), c.gates(n[0], n[1], -1), n[0], n[1]), c.in("dg", b.Param(), s.make(c.rand, n[0]*n[1]), n[0], n[1])
				dlogits := c.out("dlogits", b.Param(), n[0], n[1])
				c.run(func() { b.GateGrad(dlogits.tensor(), gates.tensor(), dg.tensor()) })
				c.want(dlogits, gateGrad(gates.matrix(), dg.matrix()))
			})
		}
	}
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		gates, dg, dlogits := c.in("gates", b.Param(), c.normal(8), 2, 4), c.in("dg", b.Param(), c.normal(8), 2, 4), c.out("dlogits", b.Param(), 2, 4)
		c.contradict(func() { b.GateGrad(dlogits.tensor(), gates.tensor(), dg.tensor()) })
	})
}
