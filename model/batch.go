package model

import (
	"math"

	"loratrain/kernels"
)

// ropeTable is the cosines and sines of every position's angles, (positions, d): cosines in the first half of a row. Angles
// are computed in double precision.
func ropeTable(a Arch, t kernels.Type, positions int) kernels.Tensor {
	freq, half := a.Frequencies(), a.HeadDim/2
	table := kernels.NewHost(t, positions, a.HeadDim)
	set := setter(table)
	for p := range positions {
		for i, f := range freq {
			sin, cos := math.Sincos(float64(p) * f)
			set(p*a.HeadDim+i, cos)
			set(p*a.HeadDim+half+i, sin)
		}
	}
	return table
}

// Visible is which tokens of its batch a token sees besides itself: the rows [PrefixFrom, PrefixTo), a prompt that it
// shares, and those from OwnFrom to itself, its own sequence.
type Visible struct {
	PrefixFrom, PrefixTo, OwnFrom int32
}

// Spans is the ranges of keys (T, 4) of each token for attention, within the model's window. Tokens with seq < 0 are padding
// and see nothing.
func (a Arch) Spans(visible []Visible, pos, seq []int32) []int32 {
	spans := make([]int32, 0, 4*len(visible))
	for t, v := range visible {
		if seq[t] < 0 {
			spans = append(spans, 0, 0, 0, 0)
			continue
		}
		from, own := v.PrefixFrom, v.OwnFrom
		if a.Window > 0 {
			first := pos[t] - int32(a.Window) + 1 // the first position that is seen
			own = max(own, int32(t)-int32(a.Window)+1)
			if from < v.PrefixTo {
				from = min(max(from, from+first-pos[from]), v.PrefixTo)
			}
		}
		spans = append(spans, from, v.PrefixTo, own, int32(t)+1)
	}
	return spans
}
