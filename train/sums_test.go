package train

import (
	"fmt"
	"maps"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// summing counts a backend's Sums by the number of terms and what they are.
type summing struct {
	kernels.Backend
	width int
	sums  map[string]int
}

func (s *summing) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	what := "activations"
	switch {
	case len(y.Shape) == 1:
		what = "losses"
	case y.Shape[1] < s.width:
		what = "of a decision"
	}
	s.sums[fmt.Sprintf("%d %s", len(xs), what)]++
	s.Backend.Sum(y, xs...)
}

// TestStepAddsWhereItComputes counts the Sums of a step. Without dropout and with routers that see tokens alone there are none of
// activations and their gradients; what dropout and other routers send back is summed, for their gradients cannot add. Decisions'
// gradients come from every linear layer that uses them, and a decision's loss.
func TestStepAddsWhereItComputes(t *testing.T) {
	for _, c := range []struct {
		g       router.Granularity
		dropout float64
		want    map[string]int
	}{
		{router.None, 0, map[string]int{}},
		{router.None, 0.2, map[string]int{"2 activations": 4, "3 activations": 2, "4 activations": 1}},
		{router.Token, 0, map[string]int{"14 of a decision": 1, "2 of a decision": 1}},
		// The first block's input needs no gradient, so only the second's does: from three linear layers and the router.
		{router.Block, 0, map[string]int{"7 of a decision": 2, "2 of a decision": 2, "2 losses": 1, "2 activations": 1}},
		{router.Layer, 0, map[string]int{
			"2 of a decision": 14, "14 losses": 1, "2 activations": 4, "3 activations": 2, "4 activations": 1,
		}},
	} {
		for _, recompute := range []bool{false, true} {
			s := &summing{Backend: openBackend(t, cpu.Options{}), sums: map[string]int{}}
			o := randomObjective()
			o.Dropout, o.Recompute = c.dropout, recompute
			stepper := randomStepper(t, s, c.g, o)
			s.width = stepper.base.Arch.Width
			batches := randomSteps(t, 1)[0]
			if _, err := stepper.Step(batches, 1, 1e-2); err != nil {
				t.Fatal(err)
			}
			for what := range s.sums {
				s.sums[what] /= len(batches)
			}
			if !maps.Equal(s.sums, c.want) {
				t.Errorf("%s, dropout %g, recompute %v: sums %v, want %v", c.g, c.dropout, recompute, s.sums, c.want)
			}
		}
	}
}
