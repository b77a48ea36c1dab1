package cpu

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"loratrain/kernels"
)

// attentionCase is what tokens see, as rows (a, b, c, e) of spans.
type attentionCase struct {
	name  string
	keys  int
	spans [][4]int32
}

func attentionCases() []attentionCase {
	packed := func(lengths ...int) (spans [][4]int32) {
		start := int32(0)
		for _, n := range lengths {
			for i := range int32(n) {
				spans = append(spans, [4]int32{start, start + i + 1, 0, 0})
			}
			start += int32(n)
		}
		return spans
	}
	shared := packed(40) // a prompt of 40 tokens, and continuations that see it
	for start := int32(40); start < 70; start += 5 {
		for i := range int32(5) {
			shared = append(shared, [4]int32{start, start + i + 1, 0, 40})
		}
	}
	var window [][4]int32
	for i := range int32(90) {
		window = append(window, [4]int32{max(0, i-6), i + 1, 0, 0})
	}
	padded := append(packed(3, 1), [][4]int32{{}, {5, 5, 9, 2}, {7, 9, 0, 1}, {}}...)
	r := rand.New(rand.NewPCG(3, 4))
	var any [][4]int32
	for range 100 {
		cut := []int32{r.Int32N(61), r.Int32N(61), r.Int32N(61), r.Int32N(61)}
		slices.Sort(cut)
		if r.IntN(2) == 0 {
			cut[0], cut[1], cut[2], cut[3] = cut[2], cut[3], cut[0], cut[1]
		}
		any = append(any, [4]int32(cut))
	}
	return []attentionCase{
		{"one sequence", 150, packed(150)},
		{"packed", 60, packed(1, 1, 2, 20, 5, 31)},
		{"shared prompt", 70, shared},
		{"window", 90, window},
		{"padding", 10, padded},
		{"any", 60, any},
		{"decode", 500, [][4]int32{{0, 500, 0, 0}, {10, 300, 400, 401}}},
	}
}

type attentionData struct{ q, k, v, do, o, lse, dq, dk, dv []float64 }

func TestAttention(t *testing.T) {
	heads := kernels.Heads{Query: 6, KV: 2, Dim: 12}
	for _, c := range attentionCases() {
		t.Run(c.name, func(t *testing.T) {
			want := naiveAttention(c, heads)
			got := runAttention(t, c, heads, want)
			for _, x := range []struct {
				name      string
				got, want []float64
			}{
				{"o", got.o, want.o},
				{"lse", got.lse, want.lse},
				{"dq", got.dq, want.dq},
				{"dk", got.dk, want.dk},
				{"dv", got.dv, want.dv},
			} {
				for i := range x.want {
					if d := math.Abs(x.got[i] - x.want[i]); x.got[i] != x.want[i] && !(d < 1e-12) {
						t.Fatalf("%s[%d] = %g, want %g", x.name, i, x.got[i], x.want[i])
					}
				}
			}
		})
	}
}

// TestAttentionUnseenNaN plants a NaN in the key, the value and the query of a token: only tokens that see it,
// and what it sees, may notice.
func TestAttentionUnseenNaN(t *testing.T) {
	heads := kernels.Heads{Query: 2, KV: 1, Dim: 8}
	const at = 7
	c := attentionCases()[1]
	size := heads.Dim
	for _, plant := range []string{"k", "v", "q", "do"} {
		data := naiveAttention(c, heads)
		switch plant {
		case "k":
			data.k[at*size] = math.NaN()
		case "v":
			data.v[at*size] = math.Inf(1)
		case "q":
			data.q[at*2*size] = math.NaN()
		case "do":
			data.do[at*2*size] = math.NaN()
		}
		got := runAttention(t, c, heads, data)
		for i, s := range c.spans {
			notices := i == at || (plant == "k" || plant == "v") && s[0] <= at && at < s[1]
			if spoilt := bad(got.o[i*2*size : (i+1)*2*size]); spoilt != notices && plant != "do" {
				t.Errorf("NaN in %s of token %d: spoils o[%d]: %t, want %t", plant, at, i, spoilt, notices)
			}
			if !notices && bad(got.dq[i*2*size:(i+1)*2*size]) {
				t.Errorf("NaN in %s of token %d spoils dq[%d]", plant, at, i)
			}
			sameSequence := s[0] == c.spans[at][0]
			if !sameSequence && (bad(got.dk[i*size:(i+1)*size]) || bad(got.dv[i*size:(i+1)*size])) {
				t.Errorf("NaN in %s of token %d spoils dk or dv[%d] of another sequence", plant, at, i)
			}
		}
	}
}

func bad(a []float64) bool {
	return slices.ContainsFunc(a, func(x float64) bool { return x-x != 0 })
}

// runAttention runs both operations on the inputs in data.
func runAttention(t *testing.T, c attentionCase, h kernels.Heads, data attentionData) attentionData {
	e := newTestEngine[float64](t, Options{Threads: 3})
	n, width, narrow := len(c.spans), h.Query*h.Dim, h.KV*h.Dim
	host := func(a []float64, rows, cols int) kernels.Tensor {
		return kernels.FromSlice(slices.Clone(a), rows, cols)
	}
	q, do := host(data.q, n, width), host(data.do, n, width)
	k, v := host(data.k, c.keys, narrow), host(data.v, c.keys, narrow)
	spans := kernels.FromSlice(slices.Concat(flatten(c.spans)...), n, 4)
	spoilt := func(rows, cols int) kernels.Tensor { // outputs are overwritten
		s := kernels.NewHost(kernels.F64, rows, cols)
		for i := range kernels.Slice[float64](s) {
			kernels.Slice[float64](s)[i] = math.NaN()
		}
		return s
	}
	o, lse := spoilt(n, width), spoilt(n, h.Query)
	dq, dk, dv := spoilt(n, width), spoilt(c.keys, narrow), spoilt(c.keys, narrow)
	e.Attention(o, lse, q, k, v, spans, h)
	e.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans, h)
	s := kernels.Slice[float64]
	return attentionData{o: s(o), lse: s(lse), dq: s(dq), dk: s(dk), dv: s(dv)}
}

func flatten(spans [][4]int32) (all [][]int32) {
	for _, s := range spans {
		all = append(all, s[:])
	}
	return all
}

// naiveAttention makes inputs and follows the comments of the contract literally.
func naiveAttention(c attentionCase, h kernels.Heads) attentionData {
	r := rand.New(rand.NewPCG(5, 6))
	random := func(n int) []float64 {
		a := make([]float64, n)
		for i := range a {
			a[i] = 2 * r.NormFloat64()
		}
		return a
	}
	n, d := len(c.spans), h.Dim
	a := attentionData{
		q: random(n * h.Query * d), k: random(c.keys * h.KV * d), v: random(c.keys * h.KV * d), do: random(n * h.Query * d),
		o: make([]float64, n*h.Query*d), lse: make([]float64, n*h.Query), dq: make([]float64, n*h.Query*d),
		dk: make([]float64, c.keys*h.KV*d), dv: make([]float64, c.keys*h.KV*d),
	}
	for t, s := range c.spans {
		for head := range h.Query {
			at := (t*h.Query + head) * d
			q, do, o, dq := a.q[at:at+d], a.do[at:at+d], a.o[at:at+d], a.dq[at:at+d]
			var keys []int
			for _, r := range [][2]int32{{s[0], s[1]}, {s[2], s[3]}} {
				for j := r[0]; j < r[1]; j++ {
					keys = append(keys, (int(j)*h.KV+head/(h.Query/h.KV))*d)
				}
			}
			p, sum := make([]float64, len(keys)), 0.0
			for i, j := range keys {
				p[i] = math.Exp(inner(q, a.k[j:j+d]) / math.Sqrt(float64(d)))
				sum += p[i]
			}
			a.lse[t*h.Query+head] = math.Log(sum)
			for i, j := range keys {
				p[i] /= sum
				for x := range d {
					o[x] += p[i] * a.v[j+x]
				}
			}
			for i, j := range keys {
				ds := p[i] * (inner(do, a.v[j:j+d]) - inner(do, o)) / math.Sqrt(float64(d))
				for x := range d {
					a.dv[j+x] += p[i] * do[x]
					dq[x] += ds * a.k[j+x]
					a.dk[j+x] += ds * q[x]
				}
			}
		}
	}
	return a
}

func inner(a, b []float64) (sum float64) {
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

func TestPlan(t *testing.T) {
	for _, c := range attentionCases() {
		spans := slices.Concat(flatten(c.spans)...)
		segments := plan("test", spans, c.keys, 1)
		next := 0
		for _, s := range segments {
			if s.from != next || s.to <= s.from || s.to-s.from > segmentTokens {
				t.Fatalf("%s: segment [%d, %d) after token %d", c.name, s.from, s.to, next)
			}
			next = s.to
			for i, r := range s.keys {
				seenBy := make([]bool, c.keys)
				for u := s.from; u < s.to; u++ {
					v := seen(spans, u)[i]
					if v.len() > 0 && (v.from < r.from || v.to > r.to) {
						t.Errorf("%s: token %d sees %v, its segment %v", c.name, u, v, r)
					}
					for j := v.from; j < v.to; j++ {
						seenBy[j] = true
					}
				}
				if slices.Contains(seenBy[r.from:r.to], false) {
					t.Errorf("%s: segment [%d, %d) has keys %v of which no token sees some", c.name, s.from, s.to, r)
				}
			}
		}
		if next != len(c.spans) {
			t.Errorf("%s: segments end at %d, want %d", c.name, next, len(c.spans))
		}
	}
	if n := len(plan("test", slices.Concat(flatten(attentionCases()[0].spans)...), 150, 1)); n != 3 {
		t.Errorf("a sequence of 150 tokens is %d segments, want 3", n)
	}
}
