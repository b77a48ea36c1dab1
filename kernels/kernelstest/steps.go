package kernelstest

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"loratrain/kernels"
)

// stepCase is a model and the sequences that it decodes.
type stepCase struct {
	name                  string
	layers, width, mlp    int
	vocab                 int
	heads                 kernels.Heads
	experts, rank, chosen int
	only                  []int // linear layers with experts; nil: all
	bias, norms           bool
	window                int
	from                  []int   // each sequence's first position; -1: stopped
	rests                 [][]int // step by step, the sequences that stand still in it and go on behind it
	steps, positions      int
	eps                   float64 // 0: 1e-5
	outliers              bool
	twice                 bool // each sequence has one expert, as often as it has any
}

func (n stepCase) rows(t int) int {
	return [kernels.Targets]int{n.heads.Query * n.heads.Dim, n.heads.KV * n.heads.Dim, n.heads.KV * n.heads.Dim, n.width, n.mlp, n.mlp, n.width}[t]
}

func (n stepCase) cols(t int) int {
	return [kernels.Targets]int{n.width, n.width, n.width, n.heads.Query * n.heads.Dim, n.width, n.width, n.mlp}[t]
}

func (n stepCase) adapts(t int) bool {
	if n.experts == 0 {
		return false
	}
	for _, x := range n.only {
		if x == t {
			return true
		}
	}
	return n.only == nil
}

var stepCases = []stepCase{
	{name: "smallest", layers: 1, width: 64, mlp: 64, vocab: 64, heads: kernels.Heads{Query: 1, KV: 1, Dim: 64}, from: []int{0}, steps: 3, positions: 8},
	{name: "one sequence", layers: 3, width: 192, mlp: 320, vocab: 256, heads: kernels.Heads{Query: 3, KV: 1, Dim: 64}, from: []int{70}, steps: 4, positions: 200},
	{name: "two experts", layers: 2, width: 256, mlp: 384, vocab: 320, heads: kernels.Heads{Query: 2, KV: 2, Dim: 128}, experts: 8, rank: 8, chosen: 2, from: []int{130}, steps: 3, positions: 256},
	{name: "one expert of few layers", layers: 4, width: 128, mlp: 192, vocab: 130, heads: kernels.Heads{Query: 2, KV: 1, Dim: 64}, experts: 1, rank: 8, chosen: 1, only: []int{1, 6}, from: []int{5}, steps: 3, positions: 64},
	{name: "biases, norms, window", layers: 2, width: 128, mlp: 192, vocab: 130, heads: kernels.Heads{Query: 4, KV: 2, Dim: 64}, bias: true, norms: true, window: 70, eps: 2, experts: 4, rank: 16, chosen: 2, from: []int{100, 0, -1, 69}, rests: [][]int{{1}, {0, 3}}, steps: 4, positions: 140},
	{name: "many sequences", layers: 2, width: 256, mlp: 320, vocab: 192, heads: kernels.Heads{Query: 4, KV: 4, Dim: 64}, experts: 16, rank: 8, chosen: 2, from: []int{0, 64, -1, 1, 63, 65, -1, 127, 128, 3, 3, 3}, rests: [][]int{{4}, {0, 10, 11}}, steps: 3, positions: 133},
	{name: "the last place", layers: 5, width: 128, mlp: 128, vocab: 64, heads: kernels.Heads{Query: 2, KV: 2, Dim: 64}, window: 3, from: []int{62, -1, 61, 0}, rests: [][]int{nil, {0, 2, 3}, {0}}, steps: 4, positions: 64},
	{name: "outliers", layers: 2, width: 192, mlp: 256, vocab: 128, heads: kernels.Heads{Query: 3, KV: 3, Dim: 64}, experts: 8, rank: 64, chosen: 2, from: []int{7, 20}, steps: 2, positions: 40, outliers: true},
	{name: "seventeen sequences", layers: 2, width: 576, mlp: 704, vocab: 64, heads: kernels.Heads{Query: 9, KV: 3, Dim: 64}, experts: 4, rank: 8, chosen: 2, from: []int{0, 1, 2, 3, -1, 0, 1, 2, 3, 4, 0, 1, 2, -1, 3, 2, 1}, steps: 2, positions: 8},
	{name: "one sequence, rows of A by sixteens", layers: 2, width: 192, mlp: 256, vocab: 128, heads: kernels.Heads{Query: 8, KV: 1, Dim: 64}, experts: 4, rank: 16, chosen: 2, from: []int{64}, steps: 2, positions: 70},
	{name: "one sequence, high ranks", layers: 2, width: 256, mlp: 192, vocab: 130, heads: kernels.Heads{Query: 3, KV: 3, Dim: 128}, experts: 5, rank: 24, chosen: 2, from: []int{129}, steps: 2, positions: 140},
	{name: "eight heads to one, shares of keys", layers: 2, width: 128, mlp: 128, vocab: 64, heads: kernels.Heads{Query: 8, KV: 1, Dim: 128}, from: []int{500}, steps: 2, positions: 512},
	{name: "two sequences, shares of keys", layers: 3, width: 128, mlp: 192, vocab: 64, heads: kernels.Heads{Query: 8, KV: 1, Dim: 128}, window: 300, norms: true, bias: true, from: []int{500, 70}, rests: [][]int{{1}, {0}, nil}, steps: 4, positions: 512},
	{name: "unlike lengths", layers: 2, width: 128, mlp: 128, vocab: 130, heads: kernels.Heads{Query: 14, KV: 2, Dim: 64}, from: []int{0, 300, 64, 1, 129, 200, 0, 0, 310, 70}, steps: 2, positions: 320},
	{name: "work for few", layers: 5, width: 64, mlp: 64, vocab: 64, heads: kernels.Heads{Query: 1, KV: 1, Dim: 64}, from: []int{0}, steps: 3, positions: 8},
	{name: "work for few, two sequences", layers: 5, width: 64, mlp: 64, vocab: 64, heads: kernels.Heads{Query: 1, KV: 1, Dim: 64}, experts: 8, rank: 16, chosen: 2, from: []int{0, 3}, rests: [][]int{{0}, {1}}, steps: 3, positions: 8},
	{name: "one layer", layers: 1, width: 128, mlp: 128, vocab: 64, heads: kernels.Heads{Query: 2, KV: 1, Dim: 64}, experts: 4, rank: 48, chosen: 1, from: []int{0, 3}, rests: [][]int{{0}, {1}, {0, 1}, nil}, steps: 7, positions: 12},
	{name: "sixteen sequences", layers: 2, width: 192, mlp: 256, vocab: 130, heads: kernels.Heads{Query: 4, KV: 2, Dim: 128}, experts: 5, rank: 24, chosen: 1, from: []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 63, 64, 65, 1, 60}, rests: [][]int{{0, 1}, {0, 15}}, steps: 2, positions: 70},
	{name: "rows of A that are not in use", layers: 2, width: 64, mlp: 128, vocab: 64, heads: kernels.Heads{Query: 4, KV: 2, Dim: 128}, experts: 2, rank: 32, chosen: 2, only: []int{1, 3, 4, 5, 6}, twice: true, from: []int{0}, steps: 3, positions: 8},
	{name: "an odd vocabulary", layers: 2, width: 64, mlp: 128, vocab: 131, heads: kernels.Heads{Query: 2, KV: 1, Dim: 64}, experts: 3, rank: 8, chosen: 2, from: []int{5, -1, 6}, rests: [][]int{{0}}, steps: 3, positions: 12},
	{name: "long runs of A", layers: 2, width: 704, mlp: 1088, vocab: 131, heads: kernels.Heads{Query: 10, KV: 5, Dim: 64}, experts: 4, rank: 24, chosen: 2, from: []int{3}, steps: 2, positions: 70},
}

// testDecodingStep compares whole decoding steps with the same made of the reference's operations. A backend that has none for the smallest model
// is passed by; one that has must take all of these.
func testDecodingStep(t *testing.T, b kernels.Backend) {
	stepper, ok := b.(kernels.Stepper)
	if !ok {
		t.Skip("a backend without decoding steps as one operation")
	}
	smallest, err := stepper.NewStep(newStepRun(t, b, stepCases[0], rand.New(rand.NewPCG(0, 7))).model)
	if err != nil {
		t.Skip(err)
	}
	smallest.Close()
	for i, n := range stepCases {
		t.Run(n.name, func(t *testing.T) {
			m := newStepRun(t, b, n, rand.New(rand.NewPCG(uint64(i), 7)))
			step, err := stepper.NewStep(m.model)
			if err != nil {
				t.Fatal(err)
			}
			defer step.Close()
			for i := range n.steps {
				m.check(step, i)
			}
			m.checkCaches()
		})
	}
}

// stepRun is a model on a backend and in the reference.
type stepRun struct {
	device
	n                       stepCase
	rand                    *rand.Rand
	model                   kernels.StepModel
	layers                  []stepMatrices
	embed, norm, head, rope matrix
	pos                     []int
	appended                map[int]bool // rows of the caches
}

type stepMatrices struct {
	input, post, qNorm, kNorm matrix
	w, bias, a, b             [kernels.Targets]matrix
	keys, values              matrix // (S·P, K·d)
}

func newStepRun(t *testing.T, b kernels.Backend, n stepCase, r *rand.Rand) *stepRun {
	m := &stepRun{device: newDevice(t, b), n: n, rand: r, pos: slices.Clone(n.from), appended: map[int]bool{}}
	weight := func(size float64, shape ...int) (kernels.Tensor, matrix) {
		values := make([]float64, kernels.Len(shape...))
		for i := range values {
			values[i] = float64(kernels.ToBFloat16(float32(size * r.NormFloat64())).Float32())
			if n.outliers && r.IntN(500) == 0 {
				values[i] *= 16
			}
		}
		cols := shape[len(shape)-1]
		return m.put(kernels.BF16, values, shape...), fill(len(values)/cols, cols, func(i, j int) number { return exact(values[i*cols+j]) })
	}
	ones := func(cols int) (kernels.Tensor, matrix) {
		values := make([]float64, cols)
		for i := range values {
			values[i] = float64(kernels.ToBFloat16(float32(1 + 0.3*r.NormFloat64())).Float32())
		}
		return m.put(kernels.BF16, values, cols), fill(1, cols, func(_, j int) number { return exact(values[j]) })
	}
	s := len(n.from)
	m.model = kernels.StepModel{Heads: n.heads, Eps: cmp.Or(n.eps, 1e-5), Window: n.window, Scale: 2, Chosen: n.chosen, Sequences: s, Positions: n.positions}
	m.model.Embed, m.embed = weight(1, n.vocab, n.width)
	m.model.Head, m.head = weight(1/math.Sqrt(float64(n.width)), n.vocab, n.width)
	m.model.Norm, m.norm = ones(n.width)
	table := make([]float64, n.positions*n.heads.Dim)
	for p := range n.positions {
		for i := range n.heads.Dim / 2 {
			sin, cos := math.Sincos(float64(p) * math.Pow(100, -2*float64(i)/float64(n.heads.Dim)))
			table[p*n.heads.Dim+i], table[p*n.heads.Dim+n.heads.Dim/2+i] = float64(float32(cos)), float64(float32(sin))
		}
	}
	m.model.Rope = m.put(b.Param(), table, n.positions, n.heads.Dim)
	m.rope = fill(n.positions, n.heads.Dim, func(i, j int) number { return exact(table[i*n.heads.Dim+j]) })
	for range n.layers {
		var l kernels.StepLayer
		var x stepMatrices
		l.InputNorm, x.input = ones(n.width)
		l.PostNorm, x.post = ones(n.width)
		if n.norms {
			l.QNorm, x.qNorm = ones(n.heads.Dim)
			l.KNorm, x.kNorm = ones(n.heads.Dim)
		}
		for t := range l.W {
			size := 1 / math.Sqrt(float64(n.cols(t)))
			l.W[t], x.w[t] = weight(size, n.rows(t), n.cols(t))
			if n.bias {
				l.Bias[t], x.bias[t] = weight(1, n.rows(t))
			}
			if n.adapts(t) {
				l.A[t], x.a[t] = weight(size, n.experts, n.rank, n.cols(t))
				l.B[t], x.b[t] = weight(0.3, n.experts, n.rank, n.rows(t))
			}
		}
		cols := n.heads.KV * n.heads.Dim
		cache := func(size func(row int) float64) (kernels.Tensor, matrix) {
			values := make([]float64, s*n.positions*cols)
			for i := range values {
				values[i] = size(i/cols) * float64(kernels.ToBFloat16(float32(r.NormFloat64())).Float32())
			}
			return m.put(b.Float(), values, s*n.positions, cols), fill(s*n.positions, cols, func(i, j int) number { return exact(values[i*cols+j]) })
		}
		l.Keys, x.keys = cache(func(row int) float64 { return min(1, m.size(row)) })
		l.Values, x.values = cache(m.size)
		m.model.Layers, m.layers = append(m.model.Layers, l), append(m.layers, x)
	}
	return m
}

// size is that of a row of values that is in the cache from the beginning. What no token sees is poison that must not be read; where a mistake by one
// would be, at the ends of what is seen and of 64 keys, values are so large that none can be left out unnoticed.
func (m *stepRun) size(row int) float64 {
	p, next, oldest := row%m.n.positions, m.n.from[row/m.n.positions], 0
	if m.n.window > 0 {
		oldest = max(0, next-m.n.window+1)
	}
	switch {
	case p >= next || p < oldest:
		return math.NaN()
	case p < oldest+m.n.steps || p == next-1 || p%64 == 0 || p%64 == 63:
		return 4
	}
	return 1
}

// stepInputs is what a step is told.
type stepInputs struct {
	tokens, pos, ids, gates []float64
}

// inputs makes up the next step. What it says of sequences that stand still is nothing that may be read.
func (m *stepRun) inputs(step int) stepInputs {
	var in stepInputs
	for i, p := range m.pos {
		token := m.rand.IntN(m.n.vocab)
		still := p < 0 || step < len(m.n.rests) && slices.Contains(m.n.rests[step], i)
		if still {
			token, p = -1, -1-i
		}
		in.tokens, in.pos = append(in.tokens, float64(token)), append(in.pos, float64(p))
		if m.n.chosen == 0 {
			continue
		}
		first, next := m.rand.IntN(m.n.experts), 1+m.rand.IntN(max(1, m.n.experts-1))
		if i%3 == 1 || m.n.twice {
			next = 0 // the same expert again
		}
		for k := range m.n.chosen {
			id, gate := float64((first+k*next)%m.n.experts), float64(float32(0.25+m.rand.Float64()))
			if still {
				id, gate = -1, math.NaN()
			}
			in.ids, in.gates = append(in.ids, id), append(in.gates, gate)
		}
	}
	return in
}

// check runs a step, the last one twice, and moves on.
func (m *stepRun) check(step kernels.Step, at int) {
	m.t.Helper()
	n, s, in := m.n, len(m.pos), m.inputs(at)
	const untouched = 12345
	before := slices.Repeat([]float64{untouched}, s*n.vocab)
	operands := []struct {
		name   string
		values []float64
		tensor kernels.Tensor
	}{
		{name: "tokens", values: in.tokens, tensor: m.put(kernels.I32, in.tokens, s)},
		{name: "pos", values: in.pos, tensor: m.put(kernels.I32, in.pos, s)},
		{name: "ids", values: in.ids},
		{name: "weights", values: in.gates},
	}
	if n.chosen > 0 {
		operands[2].tensor, operands[3].tensor = m.put(kernels.I32, in.ids, s, n.chosen), m.put(m.b.Param(), in.gates, s, n.chosen)
	}
	logits := m.put(m.b.Param(), before, s, n.vocab)
	run := func() []float64 {
		m.set(logits, before)
		step.Run(logits, operands[0].tensor, operands[1].tensor, operands[2].tensor, operands[3].tensor)
		if err := m.b.Sync(); err != nil {
			m.t.Fatalf("step %d: %v", at, err)
		}
		return m.get(logits)
	}
	got := run()
	for i := range m.pos {
		row, pos := got[i*n.vocab:(i+1)*n.vocab], int(in.pos[i])
		if pos < 0 {
			for v, x := range row {
				if x != untouched {
					m.t.Errorf("step %d: logits[%d, %d] of a sequence that stands still are now %v", at, i, v, x)
					break
				}
			}
			continue
		}
		var chosen []int32
		for _, id := range in.ids[i*n.chosen : (i+1)*n.chosen] {
			chosen = append(chosen, int32(id))
		}
		want := m.reference(i, int(in.tokens[i]), chosen, in.gates[i*n.chosen:(i+1)*n.chosen])
		m.compare(fmt.Sprintf("step %d: logits of sequence %d at position %d", at, i, pos), row, want, 1)
		m.pos[i]++
	}
	for _, o := range operands {
		if !o.tensor.None() {
			if i := otherThan(o.values, m.get(o.tensor)); i >= 0 {
				m.t.Errorf("step %d: %s, element %d: an input was modified", at, o.name, i)
			}
		}
	}
	if at == n.steps-1 {
		if i := otherThan(got, run()); i >= 0 {
			m.t.Errorf("step %d: logits[%d, %d] have other bits when the step is repeated", at, i/n.vocab, i%n.vocab)
		}
	}
}

// otherThan is the first element that differs from what it was, NaN being like NaN; -1: none.
func otherThan(was, is []float64) int {
	for i, x := range is {
		if x != was[i] && !(math.IsNaN(x) && math.IsNaN(was[i])) {
			return i
		}
	}
	return -1
}

// checkCaches wants what was appended to be in its place, and everything else as it was.
func (m *stepRun) checkCaches() {
	m.t.Helper()
	for l, layer := range m.model.Layers {
		for _, c := range []struct {
			name string
			got  []float64
			want matrix
		}{{"keys", m.get(layer.Keys), m.layers[l].keys}, {"values", m.get(layer.Values), m.layers[l].values}} {
			wrong := 0
			for row := 0; row < c.want.rows && wrong < reported; row++ {
				what := fmt.Sprintf("%s of layer %d, sequence %d, position %d", c.name, l, row/m.n.positions, row%m.n.positions)
				got, want := c.got[row*c.want.cols:(row+1)*c.want.cols], matrix{1, c.want.cols, c.want.row(row)}.values()
				if i := otherThan(want, got); !m.appended[row] && i >= 0 {
					m.t.Errorf("%s, which no step is at: element %d is now %v, was %v", what, i, got[i], want[i])
					wrong++
				} else if m.appended[row] && !m.compare(what, got, want, 1.25) { // many are compared, and the worst is seen
					wrong++
				}
			}
		}
	}
}

// compare allows so many times the error of activations that are rounded a few times in each layer.
func (m *stepRun) compare(what string, got, want []float64, times float64) bool {
	m.t.Helper()
	var worst, square, off float64
	at := 0
	for i, w := range want {
		square += w * w
		off += (got[i] - w) * (got[i] - w)
		if d := math.Abs(got[i] - w); d > worst || math.IsNaN(d) && !math.IsNaN(worst) {
			worst, at = d, i
		}
	}
	rms := math.Sqrt(square / float64(len(want)))
	bound := times * 40 * math.Sqrt(float64(m.n.layers)) * roundoff(m.b.Float())
	if m.b.Float() == kernels.BF16 { // sums have more than its 8 bits
		bound /= 4
	}
	if m.n.outliers {
		bound *= 4
	}
	rel := math.Sqrt(off / square)
	if !(rel <= bound) {
		m.t.Errorf("%s are off by %.3g of their norm, at most %.3g is allowed; the worst is %d: %v, expected %v (rms %.3g)",
			what, rel, bound, at, got[at], want[at], rms)
	}
	return rel <= bound
}

// reference is the logits of one sequence's token; its keys and values are kept.
func (m *stepRun) reference(s, token int, ids []int32, gates []float64) []float64 {
	n := m.n
	none := matrix{}
	h := embed(m.embed, []int32{int32(token)})
	linearOf := func(l *stepMatrices, t int, x, plus matrix) matrix {
		y := plain(linear(x, l.w[t], l.bias[t], plus))
		if n.adapts(t) {
			y = experts(y, x, l.a[t], l.b[t], n.rank, ids, fill(1, len(gates), func(_, j int) number { return exact(gates[j]) }), m.model.Scale)
		}
		return plain(y)
	}
	pos := []int32{int32(m.pos[s])}
	row := s*n.positions + m.pos[s]
	m.appended[row] = true
	first := 0
	if n.window > 0 {
		first = max(0, m.pos[s]-n.window+1)
	}
	span := []int32{0, 0, int32(s*n.positions + first), int32(row + 1)}
	for l := range m.layers {
		x := &m.layers[l]
		normed := plain(rmsNorm(h, x.input, m.model.Eps))
		turned := func(t int, w matrix) matrix {
			y := linearOf(x, t, normed, none)
			if !w.none() {
				heads := y.cols / n.heads.Dim
				y = rmsNorm(matrix{rows: heads, cols: n.heads.Dim, elems: y.elems}, w, m.model.Eps)
				y = matrix{rows: 1, cols: heads * n.heads.Dim, elems: y.elems}
			}
			return plain(rotary(y, m.rope, pos, false))
		}
		q, k, v := turned(0, x.qNorm), turned(1, x.kNorm), linearOf(x, 2, normed, none)
		copy(x.keys.row(row), k.elems)
		copy(x.values.row(row), v.elems)
		o, _ := attention(q, x.keys, x.values, span, n.heads)
		h = linearOf(x, 3, plain(o), h)
		normed = plain(rmsNorm(h, x.post, m.model.Eps))
		f := plain(swiGLU(linearOf(x, 4, normed, none), linearOf(x, 5, normed, none)))
		h = linearOf(x, 6, f, h)
	}
	return linear(rmsNorm(h, m.norm, m.model.Eps), m.head, none, none).values()
}

// plain forgets a matrix's error bounds.
func plain(x matrix) matrix {
	return fill(x.rows, x.cols, func(i, j int) number { return exact(x.at(i, j).v) })
}
