package kernelstest

import (
	"math"

	"loratrain/kernels"
)

// number is a number of the reference, and how far a backend that is right may be from it. The distance is kept
// to first order (running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.3),
// in two parts since a backend computes in Param and may store intermediate results in Float.
type number struct {
	v   float64
	acc float64 // in units of Param's roundoff
	sto float64 // in units of Float's roundoff
}

// allowance multiplies every bound: for the order of operations, which is a backend's choice.
const allowance = 4

// expError is the error of a backend's exp in units of roundoff, beside that of its argument.
const expError = 16

func exact(v float64) number { return number{v: v} }

// anything is a result that the contract leaves open.
var anything = number{acc: math.Inf(1)}

func (a number) plus(b number) number {
	v := a.v + b.v
	return number{v, a.acc + b.acc + math.Abs(v), a.sto + b.sto}
}

func (a number) minus(b number) number { return a.plus(number{-b.v, b.acc, b.sto}) }

func (a number) times(b number) number {
	v, x, y := a.v*b.v, math.Abs(a.v), math.Abs(b.v)
	return number{v, x*b.acc + y*a.acc + math.Abs(v), x*b.sto + y*a.sto}
}

func (a number) over(b number) number {
	v := a.v / b.v
	return number{v, (a.acc+math.Abs(v)*b.acc)/math.Abs(b.v) + math.Abs(v), (a.sto + math.Abs(v)*b.sto) / math.Abs(b.v)}
}

func (a number) sqrt() number {
	v := math.Sqrt(a.v)
	if v == 0 {
		return number{}
	}
	return number{v, a.acc/(2*v) + v, a.sto / (2 * v)}
}

// exp's argument is reduced by multiplying it with a constant, which costs a rounding of its own size.
func (a number) exp() number {
	v := math.Exp(a.v)
	return number{v, v * (a.acc + math.Abs(a.v) + expError), v * a.sto}
}

func (a number) log() number {
	v := math.Log(a.v)
	return number{v, a.acc/a.v + math.Abs(v) + 1, a.sto / a.v}
}

func (a number) sigmoid() number {
	v, slope := 1/(1+math.Exp(-a.v)), 1/(2+math.Exp(a.v)+math.Exp(-a.v))
	rounding := slope * math.Min(math.Abs(a.v)+expError, math.MaxFloat64)
	return number{v, slope*a.acc + rounding + 2*v, slope * a.sto}
}

// shift is a minus a constant that is no rounded quantity, such as the maximum that a softmax subtracts.
func (a number) shift(by float64) number {
	v := a.v - by
	return number{v, a.acc + math.Abs(v), a.sto}
}

// stored is a as it may come back from memory of type Float.
func (a number) stored() number {
	a.sto += math.Abs(a.v)
	return a
}

// sum is Σ term(i), in any order: n roundings of at most the sum of magnitudes, taken to be independent. Its own
// rounding is compensated (Neumaier, 1974), since what is small would be lost one by one beside outliers.
func sum(n int, term func(i int) number) number {
	var s number
	var size, lost float64
	for i := range n {
		x := term(i)
		v := s.v + x.v
		if math.Abs(s.v) >= math.Abs(x.v) {
			lost += s.v - v + x.v
		} else {
			lost += x.v - v + s.v
		}
		s.v = v
		s.acc += x.acc
		s.sto += x.sto
		size += math.Abs(x.v)
	}
	s.v += lost
	s.acc += math.Sqrt(float64(n)) * size
	return s
}

// dot is the sum of the products of x and y, as sum has it. Most of the reference's time goes here, so it calls nothing, and the race detector, with
// which it takes fifty times as long, is told to pass it by: what it reads is the reference's own.
//
//go:norace
func dot(x, y []number) number {
	var s number
	var size, lost float64
	y = y[:len(x)]
	for i := range x {
		a, b := &x[i], &y[i]
		t := a.v * b.v
		v, at := s.v+t, max(t, -t) // math.Abs is slow with the detector too
		if max(s.v, -s.v) >= at {
			lost += s.v - v + t
		} else {
			lost += t - v + s.v
		}
		s.v = v
		size += at
		if a.acc == 0 && b.acc == 0 && a.sto == 0 && b.sto == 0 { // both exact
			s.acc += at
			continue
		}
		av, bv := max(a.v, -a.v), max(b.v, -b.v)
		s.acc += av*b.acc + bv*a.acc + at
		s.sto += av*b.sto + bv*a.sto
	}
	s.v += lost
	s.acc += math.Sqrt(float64(len(x))) * size
	return s
}

// softmax is exp(x) / Σ exp(x), and the logarithm of that sum.
func softmax(x []number) (p []number, lse number) {
	largest := math.Inf(-1)
	for _, v := range x {
		largest = math.Max(largest, v.v)
	}
	p = make([]number, len(x))
	for i, v := range x {
		p[i] = v.shift(largest).exp()
	}
	total := sum(len(p), func(i int) number { return p[i] })
	for i := range p {
		p[i] = p[i].over(total)
	}
	return p, total.log().plus(exact(largest))
}

// roundoff is half the distance from 1 to the next larger number of type t.
func roundoff(t kernels.Type) float64 {
	switch t {
	case kernels.F64:
		return 0x1p-53
	case kernels.F32:
		return 0x1p-24
	case kernels.BF16:
		return 0x1p-8
	}
	return 0
}

// smallest is below what t can hold without loss, or a backend may flush to zero.
func smallest(t kernels.Type) float64 {
	if t == kernels.F64 {
		return 0x1p-1020
	}
	return 0x1p-124
}

// tolerance is how far from want a number of type t may be that a backend of these types computes.
func tolerance(want number, t, float, param kernels.Type) float64 {
	return allowance*(want.acc*roundoff(param)+want.sto*roundoff(float)) + math.Abs(want.v)*roundoff(t) + smallest(t)
}

// matrix is a tensor of the reference, as rows of its last dimension.
type matrix struct {
	rows, cols int
	elems      []number
}

func (m matrix) at(i, j int) number { return m.elems[i*m.cols+j] }

func (m matrix) row(i int) []number { return m.elems[i*m.cols : (i+1)*m.cols] }

func (m matrix) none() bool { return m.elems == nil }

// slab is the i-th of the matrices with so many rows that m consists of.
func (m matrix) slab(i, rows int) matrix {
	return matrix{rows, m.cols, m.elems[i*rows*m.cols : (i+1)*rows*m.cols]}
}

// fill is the matrix whose elements f gives.
func fill(rows, cols int, f func(i, j int) number) matrix {
	m := matrix{rows, cols, make([]number, 0, rows*cols)}
	for i := range rows {
		for j := range cols {
			m.elems = append(m.elems, f(i, j))
		}
	}
	return m
}

// rowsOf is the matrix whose rows f gives.
func rowsOf(rows, cols int, f func(i int) []number) matrix {
	m := matrix{rows, cols, make([]number, 0, rows*cols)}
	for i := range rows {
		m.elems = append(m.elems, f(i)...)
	}
	return m
}

// plus is for operations that add to their output.
func (m matrix) plus(other matrix) matrix {
	return fill(m.rows, m.cols, func(i, j int) number { return m.at(i, j).plus(other.at(i, j)) })
}

// values is the numbers without their bounds.
func (m matrix) values() []float64 {
	v := make([]float64, len(m.elems))
	for i, x := range m.elems {
		v[i] = x.v
	}
	return v
}
