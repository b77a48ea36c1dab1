package kernelstest

import (
	"math"
	"slices"

	"loratrain/kernels"
)

// mixture is s·Σ_k weights[k]·B[i]ᵀ·(A[i]·x), i = ids[k], for one token. a (E·R, D), b (E·R, D_out).
func mixture(x []number, a, b matrix, rank int, ids []int32, weights []number, scale float64) []number {
	hidden := make([][]number, len(ids))
	for k, id := range ids {
		down := a.slab(int(id), rank)
		hidden[k] = linear(matrix{1, a.cols, x}, down, matrix{}, matrix{}).row(0)
	}
	y := make([]number, b.cols)
	for o := range y {
		y[o] = exact(scale).times(sum(len(ids), func(k int) number {
			up := b.slab(int(ids[k]), rank)
			return weights[k].times(sum(rank, func(r int) number {
				return hidden[k][r].stored().times(up.at(r, o))
			})).stored()
		}))
	}
	return y
}

func experts(y, x, a, b matrix, rank int, ids []int32, weights matrix, scale float64) matrix {
	n := weights.cols
	return y.plus(rowsOf(x.rows, b.cols, func(t int) []number {
		return mixture(x.row(t), a, b, rank, ids[t*n:(t+1)*n], weights.row(t), scale)
	}))
}

func spreadGates(experts int, ids []int32, weights matrix) matrix {
	n := weights.cols
	return fill(weights.rows, experts, func(t, e int) number {
		return sum(n, func(k int) number {
			if int(ids[t*n+k]) != e {
				return exact(0)
			}
			return weights.at(t, k)
		})
	})
}

// transposed is the elements of size bytes of a matrix of so many rows, by columns.
func transposed(x []byte, size, rows int) []byte {
	var y []byte
	cols := len(x) / size / rows
	for c := range cols {
		for r := range rows {
			at := (r*cols + c) * size
			y = append(y, x[at:at+size]...)
		}
	}
	return y
}

func merge(src, a, b matrix, rank int, ids []int32, weights []number, scale float64) matrix {
	return fill(src.rows, src.cols, func(o, i int) number {
		delta := sum(len(ids), func(k int) number {
			up, down := b.slab(int(ids[k]), rank), a.slab(int(ids[k]), rank)
			return weights[k].times(sum(rank, func(r int) number {
				return up.at(r, o).times(down.at(r, i)).stored()
			}))
		})
		return src.at(o, i).plus(exact(scale).times(delta))
	})
}

func appendRows(cache, x matrix, at []int32) matrix {
	y := matrix{cache.rows, cache.cols, slices.Clone(cache.elems)}
	for t, p := range at {
		if p >= 0 {
			copy(y.row(int(p)), x.row(t))
		}
	}
	return y
}

// choice is a token and its probability.
type choice struct {
	id int32
	p  float64
}

// choices is what a rule leaves of a row of logits, largest first, equal ones by id.
func choices(logits []float64, rule kernels.Sampling) []choice {
	all := make([]choice, len(logits))
	for i := range all {
		all[i].id = int32(i)
	}
	slices.SortStableFunc(all, func(a, b choice) int {
		switch x, y := logits[a.id], logits[b.id]; {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	if rule.Temperature == 0 {
		return []choice{{all[0].id, 1}}
	}
	for i := range all {
		all[i].p = math.Exp((logits[all[i].id] - logits[all[0].id]) / rule.Temperature)
	}
	if rule.TopK > 0 {
		all = all[:min(rule.TopK, len(all))]
	}
	normalise(all)
	if rule.TopP > 0 && rule.TopP < 1 {
		reached := 0.0
		for i := range all {
			if reached += all[i].p; reached >= rule.TopP {
				all = all[:i+1]
				break
			}
		}
		normalise(all)
	}
	return all
}

func normalise(all []choice) {
	total := 0.0
	for _, c := range all {
		total += c.p
	}
	for i := range all {
		all[i].p /= total
	}
}

// draw is the first choice whose cumulative probability exceeds u, and how near u is to a neighbour's.
func draw(all []choice, u float64) (id int32, margin float64) {
	below := 0.0
	for _, c := range all {
		if below+c.p > u {
			return c.id, min(u-below, below+c.p-u)
		}
		below += c.p
	}
	return all[len(all)-1].id, 0
}
