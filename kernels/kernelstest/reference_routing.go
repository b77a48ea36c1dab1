package kernelstest

// topTwo is the places of the two largest of a row, the larger first; ties go to the lower place.
func topTwo(row []number) (first, second int) {
	first, second = -1, -1
	for e, x := range row {
		switch {
		case first < 0 || x.v > row[first].v:
			first, second = e, first
		case second < 0 || x.v > row[second].v:
			second = e
		}
	}
	return first, second
}

func top2(logits matrix) (ids []int32, weights matrix) {
	weights = rowsOf(logits.rows, 2, func(t int) []number {
		row := logits.row(t)
		i, j := topTwo(row)
		ids = append(ids, int32(i), int32(j))
		p, _ := softmax([]number{row[i], row[j]})
		return p
	})
	return ids, weights
}

func gate(logits matrix) matrix {
	ids, weights := top2(logits)
	return rowsOf(logits.rows, logits.cols, func(t int) []number {
		row := make([]number, logits.cols)
		row[ids[2*t]], row[ids[2*t+1]] = weights.at(t, 0), weights.at(t, 1)
		return row
	})
}

func gateGrad(gates, dg matrix) matrix {
	return fill(gates.rows, gates.cols, func(t, i int) number {
		mean := sum(gates.cols, func(e int) number { return gates.at(t, e).times(dg.at(t, e)) })
		return gates.at(t, i).times(dg.at(t, i).minus(mean))
	})
}

func route(h, router matrix) matrix { return linear(h, router, matrix{}, matrix{}) }

func routeGradInput(dlogits, router matrix) matrix { return linearGrad(dlogits, router, matrix{}) }

func routeGradWeight(dr, dlogits, h matrix) matrix {
	return dr.plus(fill(dr.rows, dr.cols, func(e, i int) number {
		return sum(h.rows, func(t int) number { return dlogits.at(t, e).times(h.at(t, i)) })
	}))
}

// counted is the tokens that are not padding.
func counted(seq []int32) []int {
	var tokens []int
	for t, s := range seq {
		if s >= 0 {
			tokens = append(tokens, t)
		}
	}
	return tokens
}

func balance(logits, gates matrix, seq []int32) (loss, loads matrix) {
	tokens, experts := counted(seq), logits.cols
	if len(tokens) == 0 {
		return matrix{1, 1, make([]number, 1)}, matrix{1, experts, make([]number, experts)}
	}
	n := exact(float64(len(tokens)))
	loads = fill(1, experts, func(_, e int) number {
		places := sum(len(tokens), func(i int) number {
			if gates.at(tokens[i], e).v > 0 {
				return exact(1)
			}
			return exact(0)
		})
		return exact(places.v).over(exact(2 * n.v))
	})
	var rows [][]number
	for _, t := range tokens {
		p, _ := softmax(logits.row(t))
		rows = append(rows, p)
	}
	mixed := sum(experts, func(e int) number {
		mean := sum(len(rows), func(i int) number { return rows[i][e] }).over(n)
		return loads.at(0, e).times(mean)
	})
	return matrix{1, 1, []number{exact(float64(experts)).times(mixed)}}, loads
}

func balanceGrad(dloss number, logits, loads matrix, seq []int32) matrix {
	factor := dloss.times(exact(float64(logits.cols))).over(exact(float64(max(1, len(counted(seq))))))
	return rowsOf(logits.rows, logits.cols, func(t int) []number {
		d := make([]number, logits.cols)
		if seq[t] < 0 {
			return d
		}
		p, _ := softmax(logits.row(t))
		mean := sum(len(p), func(e int) number { return loads.at(0, e).times(p[e]) })
		for i := range d {
			d[i] = factor.times(p[i]).times(loads.at(0, i).minus(mean))
		}
		return d
	})
}

// crossEntropy is the loss, its gradient towards h, and the logarithm of each token's probability.
func crossEntropy(h, w matrix, targets []int32) (loss, dh, logProb matrix) {
	dh = matrix{h.rows, h.cols, make([]number, h.rows*h.cols)}
	logProb = matrix{1, h.rows, make([]number, h.rows)}
	var losses []number
	for t, target := range targets {
		if target < 0 {
			continue
		}
		logits := linear(matrix{1, h.cols, h.row(t)}, w, matrix{}, matrix{}).row(0)
		p, lse := softmax(logits)
		losses = append(losses, lse.minus(logits[target]))
		logProb.row(0)[t] = logits[target].minus(lse)
		p[target] = p[target].minus(exact(1))
		for i := range h.cols {
			dh.row(t)[i] = sum(len(p), func(v int) number { return p[v].stored().times(w.at(v, i)) })
		}
	}
	loss = matrix{1, 1, []number{sum(len(losses), func(i int) number { return losses[i] })}}
	return loss, dh, logProb
}
