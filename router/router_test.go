package router

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

func newImmediate(t testing.TB) *graph.Immediate {
	t.Helper()
	b, err := cpu.New(cpu.Options{Float64: true, Matrix: "go", Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	return graph.NewImmediate(b)
}

func numbers(x graph.Exec, xs []float64, shape ...int) graph.V {
	return x.Bind("numbers", kernels.FromSlice(xs, shape...))
}

func sequences(x graph.Exec, ids ...int32) graph.V {
	return x.Bind("sequences", kernels.FromSlice(ids, len(ids)))
}

func float64s(v graph.V) []float64 { return kernels.Slice[float64](v.Tensor()) }

func near(t *testing.T, name string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d elements, want %d", name, len(got), len(want))
		return
	}
	for i := range got {
		if !(math.Abs(got[i]-want[i]) <= 1e-14) {
			t.Errorf("%s[%d] is %v, want %v", name, i, got[i], want[i])
		}
	}
}

var (
	ln2, ln3 = math.Log(2), math.Log(3)

	// workedRouter has four experts over three features; each of workedTokens shows one thing about the gate.
	workedRouter = []float64{
		ln3, 2, 1,
		0, 2, 3,
		-1, 2, 1,
		-1, 2, 1,
	}
	workedTokens = []struct {
		name    string
		h       []float64
		logits  []float64
		experts []int32
		weights []float64
	}{
		{"first and second", []float64{1, 0, 0}, []float64{ln3, 0, -1, -1}, []int32{0, 1}, []float64{0.75, 0.25}},
		{"a tie of all goes low", []float64{0, 1, 0}, []float64{2, 2, 2, 2}, []int32{0, 1}, []float64{0.5, 0.5}},
		{
			"a tie for the second place goes low",
			[]float64{0, 0, ln2 / 2},
			[]float64{ln2 / 2, 1.5 * ln2, ln2 / 2, ln2 / 2},
			[]int32{1, 0},
			[]float64{2. / 3, 1. / 3},
		},
		{"a tie for the first place", []float64{-1, 0, 0}, []float64{-ln3, 0, 1, 1}, []int32{2, 3}, []float64{0.5, 0.5}},
		{"nothing to go by", []float64{0, 0, 0}, []float64{0, 0, 0, 0}, []int32{0, 1}, []float64{0.5, 0.5}},
		{
			"large logits",
			[]float64{0, 500, 1},
			[]float64{1001, 1003, 1001, 1001},
			[]int32{1, 0},
			[]float64{1 / (1 + math.Exp(-2)), 1 / (1 + math.Exp(2))},
		},
	}
)

// worked is the tokens' hidden states.
func worked(x graph.Exec) (h, router graph.V) {
	var hs []float64
	for _, token := range workedTokens {
		hs = append(hs, token.h...)
	}
	return numbers(x, hs, len(workedTokens), 3), numbers(x, workedRouter, 4, 3)
}

func TestDecide(t *testing.T) {
	x := newImmediate(t)
	h, router := worked(x)
	d := Decide(x, h, router)
	for i, token := range workedTokens {
		near(t, token.name+": logits", float64s(d.Logits)[4*i:4*i+4], token.logits)
		gates := make([]float64, 4)
		for k, e := range token.experts {
			gates[e] = token.weights[k]
		}
		near(t, token.name+": gates", float64s(d.Gates)[4*i:4*i+4], gates)
	}
}

func TestTable(t *testing.T) {
	x := newImmediate(t)
	h, router := worked(x)
	ids, weights := Table(x, h, router)
	for i, token := range workedTokens {
		if got := kernels.Slice[int32](ids)[2*i : 2*i+2]; !slices.Equal(got, token.experts) {
			t.Errorf("%s: experts %v, want %v", token.name, got, token.experts)
		}
		near(t, token.name+": weights", kernels.Slice[float64](weights)[2*i:2*i+2], token.weights)
	}
	if n := len(workedTokens); !slices.Equal(ids.Shape, []int{n, Top}) || !slices.Equal(weights.Shape, []int{n, Top}) {
		t.Errorf("ids %v and weights %v, want both of shape [%d %d]", ids, weights, n, Top)
	}
	taken := x.Bytes()
	again, _ := Table(x, h, router)
	if x.Bytes() != taken {
		t.Errorf("a second table took %d bytes more", x.Bytes()-taken)
	}
	kernels.Slice[int32](again)[0] = 77
	if kernels.Slice[int32](ids)[0] == 77 {
		t.Error("two tables share memory")
	}
}

// TestTableIsTheGate: a table says of random tokens what Decide says.
func TestTableIsTheGate(t *testing.T) {
	x := newImmediate(t)
	rapid.Check(t, func(t *rapid.T) {
		tokens, experts := rapid.IntRange(1, 9).Draw(t, "tokens"), rapid.IntRange(2, 7).Draw(t, "experts")
		// Few values, so that there are ties.
		draw := func(name string, n int) []float64 {
			return rapid.SliceOfN(rapid.SampledFrom([]float64{-1, 0, 0.5, 1}), n, n).Draw(t, name)
		}
		h, router := numbers(x, draw("h", 3*tokens), tokens, 3), numbers(x, draw("router", 3*experts), experts, 3)
		gates := float64s(Decide(x, h, router).Gates)
		ids, weights := Table(x, h, router)
		for i := range tokens {
			row := make([]float64, experts)
			for k := range Top {
				row[kernels.Slice[int32](ids)[Top*i+k]] = kernels.Slice[float64](weights)[Top*i+k]
			}
			if got := gates[i*experts : (i+1)*experts]; !slices.Equal(got, row) {
				t.Fatalf("token %d: gates %v, by the table %v", i, got, row)
			}
		}
	})
}

// lnOf is logits whose softmax has the given proportions.
func lnOf(proportions ...float64) []float64 {
	ls := make([]float64, len(proportions))
	for i, p := range proportions {
		ls[i] = math.Log(p)
	}
	return ls
}

// decided is a decision of given logits.
func decided(x graph.Exec, experts int, logits ...float64) Decision {
	v := numbers(x, logits, len(logits)/experts, experts)
	return Decision{Logits: v, Gates: graph.Gate(x, v)}
}

func TestBalance(t *testing.T) {
	even := append(lnOf(3, 2, 1), lnOf(1, 2, 3)...)
	for _, c := range []struct {
		name    string
		experts int
		logits  []float64
		seq     []int32
		loss    float64
		loads   []float64
	}{
		// f = (1/4, 1/2, 1/4), p = (1/3, 1/3, 1/3).
		{"even probabilities", 3, even, []int32{0, 0}, 1, []float64{0.25, 0.5, 0.25}},
		{
			"even probabilities and loads", 4, append(lnOf(4, 4, 1, 1), lnOf(1, 1, 4, 4)...),
			[]int32{0, 1},
			1,
			[]float64{0.25, 0.25, 0.25, 0.25},
		},
		// f = (1/2, 1/2, 0), p = (1/2, 1/3, 1/6): 3·(1/4 + 1/6).
		{"one token", 3, lnOf(3, 2, 1), []int32{5}, 1.25, []float64{0.5, 0.5, 0}},
		{
			"padding does not count", 3, append(lnOf(3, 2, 1), lnOf(1e-9, 1, 1e9)...),
			[]int32{5, -1},
			1.25,
			[]float64{0.5, 0.5, 0},
		},
		{"two experts take everything", 4, lnOf(1, 1e-30, 1, 1e-30), []int32{0}, 2, []float64{0.5, 0, 0.5, 0}},
		{"two experts only", 2, lnOf(3, 1), []int32{0}, 1, []float64{0.5, 0.5}},
		{"padding alone", 3, lnOf(3, 2, 1), []int32{-1}, 0, []float64{0, 0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newImmediate(t)
			sum, loads := Balance(x, []Decision{decided(x, c.experts, c.logits...)}, sequences(x, c.seq...))
			near(t, "loss", float64s(sum), []float64{c.loss})
			near(t, "loads", float64s(loads[0]), c.loads)
		})
	}
}

// TestBalanceOfSeveralRouters adds up losses and keeps loads apart.
func TestBalanceOfSeveralRouters(t *testing.T) {
	x := newImmediate(t)
	sum, loads := Balance(x, []Decision{
		decided(x, 3, lnOf(3, 2, 1)...), decided(x, 2, lnOf(5, 1)...), decided(x, 3, lnOf(1, 2, 3)...),
	}, sequences(x, 0))
	near(t, "sum", float64s(sum), []float64{1.25 + 1 + 1.25})
	for i, want := range [][]float64{{0.5, 0.5, 0}, {0.5, 0.5}, {0, 0.5, 0.5}} {
		near(t, "loads", float64s(loads[i]), want)
	}
}

// TestLoadsAreShares: whatever the logits, ties too, all loads together are 1 and none is above 1/2.
func TestLoadsAreShares(t *testing.T) {
	x := newImmediate(t)
	rapid.Check(t, func(t *rapid.T) {
		tokens, experts := rapid.IntRange(1, 12).Draw(t, "tokens"), rapid.IntRange(2, 6).Draw(t, "experts")
		n := tokens * experts
		logits := rapid.SliceOfN(rapid.SampledFrom([]float64{-30, -1, 0, 0, 1, 30}), n, n).Draw(t, "logits")
		seq := rapid.SliceOfN(rapid.Int32Range(-1, 1), tokens, tokens).Draw(t, "sequences")
		seq[0] = 0
		loss, loads := Balance(x, []Decision{decided(x, experts, logits...)}, sequences(x, seq...))
		total := 0.0
		for e, f := range float64s(loads[0]) {
			if f < 0 || f > 0.5 {
				t.Fatalf("load of expert %d is %v", e, f)
			}
			total += f
		}
		if math.Abs(total-1) > 1e-12 {
			t.Fatalf("loads %v add up to %v", float64s(loads[0]), total)
		}
		if l := float64s(loss)[0]; !(l >= 0 && l <= float64(experts)/2+1e-12) {
			t.Fatalf("loss %v, expected 0 to %d/2", l, experts)
		}
	})
}

func TestParse(t *testing.T) {
	for _, g := range Granularities() {
		if got, err := Parse(string(g)); got != g || err != nil {
			t.Errorf("Parse(%q) is %q, error %v", g, got, err)
		}
	}
	if n := len(Granularities()); n != 4 {
		t.Errorf("%d granularities, want 4", n)
	}
	for _, name := range []string{"", "Token", "token ", "layers", "blocks", "no\nne"} {
		g, err := Parse(name)
		if g != "" || err == nil {
			t.Errorf("Parse(%q) is %q without an error", name, g)
			continue
		}
		first, advice, _ := strings.Cut(err.Error(), "\n")
		if !strings.HasPrefix(first, "unknown granularity \"") || advice != "use one of [token block layer none]" {
			t.Errorf("Parse(%q): first line %q, advice %q", name, first, advice)
		}
	}
}

// TestRoutersLearnThroughAGraph records a decision and its balance loss, as training does.
func TestRoutersLearnThroughAGraph(t *testing.T) {
	b := newImmediate(t).Backend()
	rec := graph.NewRecorder(b)
	h, _ := worked(rec)
	into := kernels.NewHost(kernels.F64, 4, 3)
	router := numbers(rec, workedRouter, 4, 3)
	d := Decide(rec, h, router)
	loss, loads := Balance(rec, []Decision{d}, sequences(rec, 0, 0, 0, 0, 0, -1))
	sums, err := rec.Gradients(loss, numbers(rec, []float64{1}, 1), []graph.Gradient{{Of: router, Into: into}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := rec.Compile(graph.NewArena(b), append(loads, loss), sums)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Run(); err != nil {
		t.Fatal(err)
	}
	// Of the five tokens that count, experts 0 to 3 serve 4, 4, 1 and 1.
	near(t, "loads", kernels.Slice[float64](p.Kept(0)), []float64{0.4, 0.4, 0.1, 0.1})
	x := graph.NewImmediate(b)
	h, routerNow := worked(x)
	now, _ := Balance(x, []Decision{Decide(x, h, routerNow)}, sequences(x, 0, 0, 0, 0, 0, -1))
	if got, want := kernels.Slice[float64](p.Kept(1))[0], float64s(now)[0]; got != want {
		t.Errorf("the program's loss is %v, run at once it is %v", got, want)
	}
	// A shift of all logits of a token changes nothing, so each feature's gradients add up to 0 over the experts.
	for f := range 3 {
		sum, size := 0.0, 0.0
		for e := range 4 {
			g := kernels.Slice[float64](into)[3*e+f]
			sum, size = sum+g, size+math.Abs(g)
		}
		if math.Abs(sum) > 1e-14 || size == 0 {
			t.Errorf("feature %d: gradients of the experts add up to %v, their sizes to %v", f, sum, size)
		}
	}
}
