package kernelstest

import (
	"math"

	"loratrain/kernels"
)

// The functions in the files reference_*.go are the contract's formulas, named after its operations.

func embed(table matrix, ids []int32) matrix {
	return rowsOf(len(ids), table.cols, func(t int) []number { return table.row(int(ids[t])) })
}

// rmsNorm takes x with the pieces as its rows.
func rmsNorm(x, w matrix, eps float64) matrix {
	return rowsOf(x.rows, x.cols, func(t int) []number {
		y, r := make([]number, x.cols), inverseRMS(x.row(t), eps)
		for i := range y {
			y[i] = x.at(t, i).times(r).times(w.at(0, i))
		}
		return y
	})
}

// inverseRMS is r = 1/√(mean(x²) + eps).
func inverseRMS(x []number, eps float64) number {
	mean := sum(len(x), func(i int) number { return x[i].times(x[i]) }).over(exact(float64(len(x))))
	return exact(1).over(mean.plus(exact(eps)).sqrt())
}

func rmsNormGrad(x, w, dy, plus matrix, eps float64) matrix {
	return rowsOf(x.rows, x.cols, func(t int) []number {
		r := inverseRMS(x.row(t), eps)
		mean := sum(x.cols, func(j int) number {
			return w.at(0, j).times(dy.at(t, j)).times(x.at(t, j))
		}).over(exact(float64(x.cols)))
		dx := make([]number, x.cols)
		for i := range dx {
			back := x.at(t, i).times(r).times(r).times(r).times(mean)
			dx[i] = plus.addTo(r.times(w.at(0, i)).times(dy.at(t, i)).minus(back), t, i)
		}
		return dx
	})
}

func linear(x, w, bias, plus matrix) matrix {
	return fill(x.rows, w.rows, func(t, o int) number {
		y := dot(x.row(t), w.row(o))
		if bias.none() {
			return plus.addTo(y, t, o)
		}
		return plus.before(bias.at(0, o), y, t, o)
	})
}

func linearGrad(dy, w, plus matrix) matrix {
	return fill(dy.rows, w.cols, func(t, i int) number {
		return plus.addTo(sum(w.rows, func(o int) number { return dy.at(t, o).times(w.at(o, i)) }), t, i)
	})
}

// addTo is x + m[t, i], or x if m is none.
func (m matrix) addTo(x number, t, i int) number {
	if m.none() {
		return x
	}
	return x.plus(m.at(t, i))
}

// before is y + part + m[t, i], in any order. A backend may start with m + part and store that before it adds y.
func (m matrix) before(part, y number, t, i int) number {
	if m.none() {
		return y.plus(part)
	}
	terms := []number{y, part, m.at(t, i)}
	all := sum(len(terms), func(k int) number { return terms[k] })
	all.sto += math.Abs(part.v + m.at(t, i).v)
	return all
}

// bank is a [kernels.Switch] of the reference.
type bank struct {
	a, b, gates matrix
	rank        int
	scale       float64
}

func (k bank) cols() int { return k.a.cols }

// down and up are elements of A and B, which a backend may multiply in Float.
func (k bank) down(i, c int) number { return k.a.at(i, c).stored() }
func (k bank) up(c, o int) number   { return k.b.at(c, o).stored() }

// gate is an element of Ĝ = [G ⊗ 1_R | 1].
func (k bank) gate(t, c int) number {
	if !k.gates.none() && c < k.gates.cols*k.rank {
		return k.gates.at(t, c/k.rank)
	}
	return exact(1)
}

func switchHidden(z matrix, k bank) matrix {
	return fill(z.rows, k.cols(), func(t, c int) number {
		return sum(z.cols, func(i int) number { return z.at(t, i).times(k.down(i, c)) })
	})
}

func switchLinear(x, z, w, bias, plus matrix, k bank) (y, u matrix) {
	u, base := switchHidden(z, k), linear(x, w, bias, matrix{})
	y = fill(x.rows, w.rows, func(t, o int) number {
		mixed := sum(k.cols(), func(c int) number {
			return u.at(t, c).stored().times(k.gate(t, c)).stored().times(k.up(c, o))
		})
		return plus.before(exact(k.scale).times(mixed), base.at(t, o), t, o)
	})
	return y, u
}

func switchGradHidden(dy, u matrix, k bank) (du, dg matrix) {
	v := fill(dy.rows, k.cols(), func(t, c int) number {
		return exact(k.scale).times(sum(dy.cols, func(o int) number { return dy.at(t, o).times(k.up(c, o)) })).stored()
	})
	du = fill(dy.rows, k.cols(), func(t, c int) number { return v.at(t, c).times(k.gate(t, c)) })
	if k.gates.none() {
		return du, matrix{}
	}
	dg = fill(dy.rows, k.gates.cols, func(t, e int) number {
		return sum(k.rank, func(r int) number { return v.at(t, e*k.rank+r).times(u.at(t, e*k.rank+r)) })
	})
	return du, dg
}

func switchGradInput(dy, w, du, plus matrix, k bank) matrix {
	base := linearGrad(dy, w, matrix{})
	return fill(dy.rows, w.cols, func(t, i int) number {
		hidden := sum(k.cols(), func(c int) number { return du.at(t, c).times(k.down(i, c)) })
		return plus.before(hidden, base.at(t, i), t, i)
	})
}

func switchGradA(da, z, du matrix) matrix {
	return da.plus(fill(z.cols, du.cols, func(i, c int) number {
		return sum(z.rows, func(t int) number { return z.at(t, i).times(du.at(t, c)) })
	}))
}

func switchGradB(db, u, dy matrix, k bank) matrix {
	return db.plus(fill(u.cols, dy.cols, func(c, o int) number {
		return exact(k.scale).times(sum(u.rows, func(t int) number {
			return u.at(t, c).times(k.gate(t, c)).stored().times(dy.at(t, o))
		}))
	}))
}

func rotary(x, table matrix, pos []int32, backwards bool) matrix {
	d := table.cols
	return fill(x.rows, x.cols, func(t, j int) number {
		p, i, head := int(pos[t]), j%d%(d/2), j/d*d
		c, n := table.at(p, i), table.at(p, d/2+i)
		if backwards {
			n = exact(0).minus(n)
		}
		first, second := x.at(t, head+i), x.at(t, head+d/2+i)
		if j%d < d/2 {
			return first.times(c).minus(second.times(n))
		}
		return second.times(c).plus(first.times(n))
	})
}

func swiGLU(g, u matrix) matrix {
	return fill(g.rows, g.cols, func(t, i int) number {
		return g.at(t, i).times(g.at(t, i).sigmoid()).times(u.at(t, i))
	})
}

func swiGLUGrad(g, u, dy matrix) (dg, du matrix) {
	dg = fill(g.rows, g.cols, func(t, i int) number {
		x, s := g.at(t, i), g.at(t, i).sigmoid()
		slope := s.times(exact(1).plus(x.times(exact(1).minus(s))))
		return dy.at(t, i).times(u.at(t, i)).times(slope)
	})
	du = fill(g.rows, g.cols, func(t, i int) number {
		return dy.at(t, i).times(g.at(t, i)).times(g.at(t, i).sigmoid())
	})
	return dg, du
}

func total(xs []matrix) matrix {
	return fill(xs[0].rows, xs[0].cols, func(t, i int) number {
		return sum(len(xs), func(k int) number { return xs[k].at(t, i) })
	})
}

func scale(x matrix, factor number) matrix {
	return fill(x.rows, x.cols, func(t, i int) number { return factor.times(x.at(t, i)) })
}

func dropout(x matrix, key []int32, site int, rate float64) matrix {
	return fill(x.rows, x.cols, func(t, j int) number {
		if dropped(key, site, t*x.cols+j, rate) {
			return exact(0)
		}
		return x.at(t, j).over(exact(1 - rate))
	})
}

func dropped(key []int32, site, i int, rate float64) bool {
	return float64(kernels.Random(key[0], key[1], site).At(i)>>40) < rate*(1<<24)
}

func norm(g matrix) number {
	return sum(len(g.elems), func(i int) number { return g.elems[i].times(g.elems[i]) }).sqrt()
}

// adamW is one step; norm, rate and n as in [kernels.Optimizer].
func adamW(p, g, m, v matrix, norm, rate number, n float64, c kernels.AdamW) (p2, m2, v2 matrix) {
	clip := exact(1)
	if c.Clip > 0 {
		if s := exact(c.Clip).over(norm.plus(exact(1e-6))); s.v < 1 {
			clip = s
		}
	}
	grad := scale(g, clip)
	m2 = scale(m, exact(c.Beta1)).plus(scale(grad, exact(1-c.Beta1)))
	v2 = fill(v.rows, v.cols, func(i, j int) number {
		squared := grad.at(i, j).times(grad.at(i, j))
		return v.at(i, j).times(exact(c.Beta2)).plus(squared.times(exact(1 - c.Beta2)))
	})
	p2 = fill(p.rows, p.cols, func(i, j int) number {
		mHat, vHat := m2.at(i, j).over(biasOf(c.Beta1, n)), v2.at(i, j).over(biasOf(c.Beta2, n))
		step := rate.times(mHat).over(vHat.sqrt().plus(exact(c.Eps)))
		return p.at(i, j).times(exact(1).minus(rate.times(exact(c.Decay)))).minus(step)
	})
	return p2, m2, v2
}

// biasOf is 1 - betaⁿ; a backend may raise beta to n in Param.
func biasOf(beta, n float64) number {
	power := math.Pow(beta, n)
	return exact(1).minus(number{v: power, acc: power})
}

// nearest is each element rounded to typ, ties to even, as IEEE 754 has it.
func nearest(x matrix, typ kernels.Type) matrix {
	return fill(x.rows, x.cols, func(i, j int) number { return exact(nearestTo(x.at(i, j).v, typ)) })
}

func nearestTo(x float64, typ kernels.Type) float64 {
	digits := map[kernels.Type]int{kernels.F32: 24, kernels.BF16: 8}[typ]
	if digits == 0 || x-x != 0 || x == 0 {
		return x
	}
	_, exponent := math.Frexp(x)
	last := max(exponent, -125) - digits // the exponent of the last digit
	y := math.Ldexp(math.RoundToEven(math.Ldexp(x, -last)), last)
	if math.Abs(y) >= 0x1p128 {
		return math.Inf(int(math.Copysign(1, x)))
	}
	return y
}
