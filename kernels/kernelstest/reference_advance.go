package kernelstest

import (
	"slices"

	"loratrain/kernels"
)

// advancing is the inputs of an Advance.
type advancing struct {
	tokens, length, keys []int32
	room, window         int
	ids                  []int32 // of a routing table with chosen experts a token; none if chosen is 0
	gates                matrix
	chosen               int
}

// advanced is its results.
type advanced struct {
	length, pos, live, rows, spans, experts []int32
	u, weights                              matrix
}

func (a advancing) advance() advanced {
	n := len(a.tokens)
	w := advanced{
		length: slices.Clone(a.length), pos: make([]int32, n), live: slices.Repeat([]int32{-1}, n), rows: slices.Repeat([]int32{-1}, n),
		spans: make([]int32, 4*n), experts: make([]int32, n*a.chosen), u: matrix{1, n, make([]number, n)}, weights: matrix{n, a.chosen, make([]number, n*a.chosen)},
	}
	for s, length := range a.length {
		p := int(length)
		if p < 0 || p >= a.room {
			continue
		}
		w.length[s]++
		w.pos[s], w.live[s], w.rows[s] = length, length, int32(s*a.room+p)
		first := s * a.room
		if a.window > 0 && p >= a.window {
			first += p - a.window + 1
		}
		w.spans[4*s+2], w.spans[4*s+3] = int32(first), w.rows[s]+1
		bits := kernels.Random(a.keys[2*s], a.keys[2*s+1], 0).At(p)
		w.u.elems[s] = exact(float64(bits>>40) / (1 << 24))
		for i := range a.chosen {
			from := int(a.tokens[s])*a.chosen + i
			w.experts[s*a.chosen+i], w.weights.elems[s*a.chosen+i] = a.ids[from], a.gates.elems[from]
		}
	}
	return w
}
