package graph

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"loratrain/kernels"
)

// wholeBlock is a transformer block with a router, adapters and all losses, in any small size.
type wholeBlock struct {
	x    Exec
	r    *rand.Rand
	wide bool // float64

	tokens, width, hidden, vocab, experts, rank, shared int
	heads                                               kernels.Heads
}

func newWholeBlock(x Exec, seed uint64) *wholeBlock {
	r := rand.New(rand.NewPCG(seed, 2))
	kv, dim := 1+r.IntN(3), 2*(1+r.IntN(4))
	k := &wholeBlock{
		x: x, r: r, wide: x.Backend().Float() == kernels.F64,
		tokens: 1 + r.IntN(20), width: 3 + r.IntN(30), hidden: 2 + r.IntN(40), vocab: 5 + r.IntN(50), experts: 2 + r.IntN(5),
		rank: 1 + r.IntN(4), shared: r.IntN(3), heads: kernels.Heads{Query: kv * (1 + r.IntN(3)), KV: kv, Dim: dim},
	}
	return k
}

// weight is a bound tensor of random numbers in the backend's type.
func (k *wholeBlock) weight(shape ...int) V {
	t := kernels.NewHost(k.x.Backend().Float(), shape...)
	for i := range t.Len() {
		f := 0.5 * k.r.NormFloat64()
		if k.wide {
			kernels.Slice[float64](t)[i] = f
		} else {
			kernels.Slice[float32](t)[i] = float32(f)
		}
	}
	return k.x.Bind("weight", t)
}

// ints is a bound tensor of whole numbers in [from, to).
func (k *wholeBlock) ints(from, to int, shape ...int) V {
	t := kernels.NewHost(kernels.I32, shape...)
	for i := range kernels.Slice[int32](t) {
		kernels.Slice[int32](t)[i] = int32(from + k.r.IntN(to-from))
	}
	return k.x.Bind("whole numbers", t)
}

// spans lets tokens see the prompt, which is the first third, and what comes before them; one in eight is padding.
func (k *wholeBlock) spans() V {
	t := kernels.NewHost(kernels.I32, k.tokens, 4)
	s := kernels.Slice[int32](t)
	for i := range k.tokens {
		prompt := min(i, k.tokens/3)
		if k.r.IntN(8) > 0 {
			copy(s[4*i:], []int32{0, int32(prompt), int32(prompt), int32(i + 1)})
		}
	}
	return k.x.Bind("spans", t)
}

func (k *wholeBlock) adapted(h V, out int, gates, plus V, dropout bool) V {
	z := h
	if dropout {
		z = Dropout(k.x, h, k.ints(0, 99, 2), 5, 0.25)
	}
	width, columns := h.Shape[1], k.experts*k.rank+k.shared
	y := SwitchLinear(k.x, h, z, k.weight(out, width), k.weight(out), plus, Bank{
		A: k.weight(width, columns), B: k.weight(columns, out), Gates: gates, Rank: k.rank, Scale: 2,
	})
	if dropout {
		k.x.Done(z)
	}
	return y
}

// run is everything the block computes that a caller can see.
func (k *wholeBlock) run() []V {
	x, table := k.x, k.weight(k.tokens, k.heads.Dim)
	h := Embed(x, k.weight(k.vocab, k.width), k.ints(0, k.vocab, k.tokens))
	n := RMSNorm(x, h, k.weight(k.width), 1e-5)
	logits := Route(x, n, k.weight(k.experts, k.width))
	gates := Gate(x, logits)
	ids, weights := Top2(x, logits)
	balance, loads := Balance(x, logits, gates, k.ints(-1, 2, k.tokens))

	head := func(heads int) V {
		y := k.adapted(n, heads*k.heads.Dim, gates, V{}, true)
		normed := RMSNorm(x, y, k.weight(k.heads.Dim), 1e-5)
		turned := Rotary(x, normed, table, k.ints(0, k.tokens, k.tokens))
		x.Done(y, normed)
		return turned
	}
	q, key := head(k.heads.Query), head(k.heads.KV)
	v := Linear(x, n, k.weight(k.heads.KV*k.heads.Dim, k.width), V{}, V{})
	o := Attention(x, q, key, v, k.spans(), k.heads)
	spread := Spread(x, ids, weights, k.experts)
	mid := k.adapted(o, k.width, spread, h, false)
	x.Done(n, h, q, key, v, o, spread)

	n = RMSNorm(x, mid, k.weight(k.width), 1e-5)
	f := SwiGLU(x, k.adapted(n, k.hidden, gates, V{}, false), Linear(x, n, k.weight(k.hidden, k.width), k.weight(k.hidden), V{}))
	y := Linear(x, f, k.weight(k.width, k.hidden), V{}, mid)
	y = Experts(x, y, f, k.weight(k.experts, k.rank, k.hidden), k.weight(k.experts, k.rank, k.width), ids, weights, 0.5)
	out := Sum(x, mid, y)
	x.Done(n, f, y, mid)

	vocabulary, targets := k.weight(k.vocab, k.width), k.ints(-1, k.vocab, k.tokens)
	ce, lp := CrossEntropy(x, out, vocabulary, targets), LogProb(x, out, vocabulary, targets)
	return []V{out, logits, gates, ids, weights, balance, loads, ce, lp, Scale(x, ce, k.weight(1))}
}

// TestRecorderAndImmediateAgree runs the same block both ways: not one bit may differ.
func TestRecorderAndImmediateAgree(t *testing.T) {
	names := []string{
		"the block", "logits", "gates", "ids", "weights", "balance", "loads", "cross-entropy", "log-probabilities", "scaled",
	}
	for _, wide := range []bool{false, true} {
		for seed := range uint64(12) {
			t.Run(fmt.Sprintf("float64 %v, seed %d", wide, seed), func(t *testing.T) {
				b := newBackend(t, wide)
				rec := NewRecorder(b)
				p := compiled(t, rec, newWholeBlock(rec, seed).run(), nil)
				x := NewImmediate(b)
				defer x.Close()
				newWholeBlock(x, seed).run() // leaves used memory to the pass that counts
				direct := newWholeBlock(x, seed).run()
				mustRun(t, p)
				for i, v := range direct {
					got, want := p.Kept(i).Mem.(kernels.Host), v.Tensor().Mem.(kernels.Host)
					if !bytes.Equal(got, want) {
						t.Errorf("%s %v%v differ: the program's bytes are\n%x, run at once\n%x", names[i], v.Type, v.Shape, got, want)
					}
				}
				if s := direct[0]; s.Shape[0] == 0 || bytes.Equal(s.Tensor().Mem.(kernels.Host), make([]byte, s.bytes())) {
					t.Error("the block's result is nothing but zeros")
				}
			})
		}
	}
}
