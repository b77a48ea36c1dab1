package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// headCase is a loss over rows that the contract's suite has no time for.
type headCase struct {
	tokens, vocabulary int
	head               kernels.Type
	every              int // every so many tokens have no target
}

// TestLossOfLongRows has more logits than a block's threads keep: the rest of a row is read again while the gradient is written
// over it.
func TestLossOfLongRows(t *testing.T) {
	for _, float32Mode := range []bool{true, false} {
		b := openEmulated(t, float32Mode)
		for _, vocabulary := range []int{32768, 32769, 90001} {
			t.Run(fmt.Sprintf("%v, %d words", b, vocabulary), func(t *testing.T) {
				headCase{tokens: 3, vocabulary: vocabulary, head: b.Float(), every: 3}.check(t, b)
			})
		}
	}
}

// TestLossInChunks has more logits than the workspace, and weights that are converted into it.
func TestLossInChunks(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves it out: it computes 60 million logits")
	}
	headCase{tokens: 200, vocabulary: 150_001, head: kernels.BF16, every: 7}.check(t, openEmulated(t, true))
}

// check compares with float64. Logits are h·w of one column; few of them are large.
func (n headCase) check(t *testing.T, b *cuda.Backend) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, uint64(n.vocabulary)))
	hs, ws, targets := make([]float64, n.tokens), make([]float64, n.vocabulary), make([]float64, n.tokens)
	for i := range hs {
		hs[i], targets[i] = 0.5+float64(i%16)/16, float64(r.IntN(n.vocabulary))
		if i%n.every == n.every-1 {
			hs[i], targets[i] = math.NaN(), -100
		}
	}
	for v := range ws {
		ws[v] = float64(r.IntN(64)) / 32
		// What is read twice, and first overwritten if threads do not wait for each other.
		if v >= 32768 && v < 45000 && r.IntN(100) == 0 || v >= n.vocabulary-3 {
			ws[v] = 8 + float64(r.IntN(16))/4
		}
	}
	h, w := place(t, b, b.Float(), hs, n.tokens, 1), place(t, b, n.head, ws, n.vocabulary, 1)
	at := place(t, b, kernels.I32, targets, n.tokens)
	poison := place(t, b, b.Float(), nans(n.tokens), n.tokens, 1)
	loss, lp := place(t, b, b.Param(), nans(1), 1), place(t, b, b.Param(), nans(n.tokens), n.tokens)
	b.CrossEntropy(loss, poison, h, w, at)
	b.LogProb(lp, h, w, at)
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	dh, logProbs := fetch(b, poison), fetch(b, lp)
	var sum float64
	for i, target := range targets {
		wantGrad, wantProb := n.reference(hs[i], ws, int(target))
		sum -= wantProb
		near(t, fmt.Sprintf("lp[%d]", i), logProbs[i], wantProb, 1e-5*(1+math.Abs(wantProb)))
		tol := 12 * 0x1p-24 * float64(n.vocabulary) // weights are up to 12, and sums may be in order
		if b.Float() == kernels.BF16 {
			tol += 0.03
		}
		near(t, fmt.Sprintf("dh[%d]", i), dh[i], wantGrad, tol)
	}
	near(t, "loss", fetch(b, loss)[0], sum, 1e-5*sum)
}

// reference is Σ_v (p_v - onehot_v)·w_v and the logarithm of the target's probability; zeros without a target.
func (n headCase) reference(h float64, ws []float64, target int) (dh, logProb float64) {
	if target < 0 {
		return 0, 0
	}
	most := math.Inf(-1)
	for _, w := range ws {
		most = max(most, h*w)
	}
	var sum float64
	for _, w := range ws {
		e := math.Exp(h*w - most)
		sum += e
		dh += e * w
	}
	return dh/sum - ws[target], h*ws[target] - most - math.Log(sum)
}

func near(t *testing.T, name string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol) {
		t.Errorf("%s is %v, want %v ± %.3g", name, got, want, tol)
	}
}
