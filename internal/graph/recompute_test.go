package graph

import (
	"slices"
	"testing"

	"loratrain/kernels"
)

// recomputed is a row whose function is a Block that is computed again, but for what comes out of it.
func (r *gradientRow) recomputed(t *testing.T, b kernels.Backend) recorded {
	t.Helper()
	rec := recorded{Recorder: NewRecorder(b), grads: map[string][]float64{}}
	rec.Recompute()
	p := &pass{Exec: rec.Recorder, row: r, leaf: map[string]V{}}
	var grads []Gradient
	for _, l := range r.leaves {
		v := bound(rec, l.name, l.data, l.shape...)
		p.leaf[l.name] = v
		if !l.trainable {
			p.leaf[l.name] = lift(rec, v)
		}
		rec.grads[l.name] = make([]float64, len(l.data))
		grads = append(grads, Gradient{Of: v, Into: tensorOf(rec.grads[l.name], l.shape...)})
	}
	y := Block(rec.Recorder, func() V {
		y := r.build(p)
		return Scale(p, y, p.numbers("one", []float64{1}, 1)) // so that the row is not the end of its block
	})
	loss := dot(rec, y, p.fixed("weights of the loss", y.Shape...))
	sums, err := rec.Gradients(loss, bound(rec, "seed", []float64{1}, 1), grads)
	if err != nil {
		t.Fatal(err)
	}
	rec.program = compiled(t, rec.Recorder, []V{loss}, sums)
	return rec
}

// TestRecomputedGradients computes every row of the table of gradients in a block that is computed again: no bit differs.
func TestRecomputedGradients(t *testing.T) {
	b := newBackend(t, true)
	repeated := map[string]bool{}
	for _, row := range gradientRows() {
		kept, again := row.record(t, b, row.names()...), row.recomputed(t, b)
		mustRun(t, kept.program)
		mustRun(t, again.program)
		if got, want := float64s(again.program.Kept(0))[0], float64s(kept.program.Kept(0))[0]; got != want {
			t.Errorf("%s: the loss is %v recomputed, %v kept", row.name, got, want)
		}
		for name, want := range kept.grads {
			if got := again.grads[name]; !slices.Equal(got, want) {
				t.Errorf("%s: the gradient of %s is\n%v recomputed,\n%v kept", row.name, name, got, want)
			}
		}
		count := map[string]int{}
		for _, n := range again.program.order {
			count[n.Name]++
		}
		for _, n := range kept.program.order {
			count[n.Name]--
		}
		for name, n := range count {
			repeated[name] = repeated[name] || n > 0 && name != "Scale"
		}
	}
	for _, name := range []string{"Attention", "SwitchLinear", "Gate", "Linear"} {
		if !repeated[name] {
			t.Errorf("%s was never computed again", name)
		}
	}
	for _, name := range []string{"AttentionGrad", "SwitchGradA", "GateGrad", "SwiGLUGrad"} {
		if repeated[name] {
			t.Errorf("%s was computed again", name)
		}
	}
}

// TestBlockIsItsFunction where nothing is recorded.
func TestBlockIsItsFunction(t *testing.T) {
	x := NewImmediate(newBackend(t, true))
	defer x.Close()
	v := bound(x, "x", []float64{1, 2}, 2)
	if got := float64s(Block(x, func() V { return Sum(x, v, v) }).Tensor()); !slices.Equal(got, []float64{2, 4}) {
		t.Errorf("x + x is %v", got)
	}
}

// TestRecomputationRunsWhenItIsNeeded looks at where the repeated operations of a chain of blocks stand: each block's right before
// its gradients, so that one block's values at a time are in memory.
func TestRecomputationRunsWhenItIsNeeded(t *testing.T) {
	const blocks, length = 40, 1000
	sizes := map[bool]int{}
	for _, recompute := range []bool{false, true} {
		r := NewRecorder(newBackend(t, true))
		if recompute {
			r.Recompute()
		}
		w, into := bound(r, "w", normal("w", length), 1, length), kernels.NewHost(kernels.F64, 1, length)
		h := lift(r, w)
		for range blocks {
			h = Block(r, func() V {
				y := SwiGLU(r, h, SwiGLU(r, h, SwiGLU(r, h, SwiGLU(r, h, h))))
				return Sum(r, h, y)
			})
		}
		loss := dot(r, h, bound(r, "weights", normal("weights", length), 1, length))
		sums, err := r.Gradients(loss, bound(r, "seed", []float64{1}, 1), []Gradient{{Of: w, Into: into}})
		if err != nil {
			t.Fatal(err)
		}
		p := compiled(t, r, []V{loss}, sums)
		mustRun(t, p)
		sizes[recompute] = p.Bytes() / (8 * length)
	}
	// A block's input and three of its products are kept; or the input alone, and one block's products and gradients.
	if sizes[false] < 4*blocks || sizes[true] > blocks+10 {
		t.Errorf("%d blocks take %d results' memory kept and %d recomputed, want at least %d and at most %d",
			blocks, sizes[false], sizes[true], 4*blocks, blocks+10)
	}
}
