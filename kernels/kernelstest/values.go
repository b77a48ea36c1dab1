package kernelstest

import (
	"fmt"
	"math"
	"math/rand/v2"

	"loratrain/kernels"
)

// spread is a kind of numbers that an activation may be.
type spread struct {
	name string
	make func(r *rand.Rand, n int) []float64
}

func (s spread) String() string { return s.name }

// normal numbers have deviation 1.
var normal = spread{"normal", func(r *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = r.NormFloat64()
	}
	return x
}}

// outliers are what the residual stream of a large model looks like: small, but huge in few places.
var outliers = spread{"outliers", func(r *rand.Rand, n int) []float64 {
	x := normal.make(r, n)
	for i := range x {
		x[i] *= 1e-3
	}
	for range n/50 + 1 {
		x[r.IntN(n)] = math.Copysign(1e4, r.NormFloat64())
	}
	return x
}}

// zeros are exact; half of them are negative.
var zeros = spread{"zeros", func(r *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = math.Copysign(0, r.NormFloat64())
	}
	return x
}}

var spreads = []spread{normal, outliers, zeros}

// frozen is the types that frozen weights come in.
var frozen = []kernels.Type{kernels.F32, kernels.BF16, kernels.F64}

func (c *call) normal(n int) []float64 { return normal.make(c.rand, n) }

// integers below limit.
func (c *call) integers(n, limit int) []int32 {
	x := make([]int32, n)
	for i := range x {
		x[i] = int32(c.rand.IntN(limit))
	}
	return x
}

// gates is rows with two experts of which the second may have no share, or with none but one if one ≥ 0.
func (c *call) gates(tokens, experts, one int) []float64 {
	g := make([]float64, tokens*experts)
	for t := range tokens {
		row := g[t*experts : (t+1)*experts]
		if one >= 0 {
			row[one] = 1
			continue
		}
		first, step := c.rand.IntN(experts), 1+c.rand.IntN(experts-1)
		share := []float64{0, 0.25, 0.5, 0.9}[c.rand.IntN(4)]
		row[first], row[(first+step)%experts] = 1-share, share
	}
	return g
}

// encode is a host tensor of the given numbers, rounded to its type.
func encode(values []float64, typ kernels.Type) kernels.Tensor {
	t := kernels.NewHost(typ, len(values))
	for i, v := range values {
		switch typ {
		case kernels.F64:
			kernels.Slice[float64](t)[i] = v
		case kernels.F32:
			kernels.Slice[float32](t)[i] = float32(v)
		case kernels.BF16:
			kernels.Slice[kernels.BFloat16](t)[i] = kernels.ToBFloat16(float32(v))
		case kernels.I32:
			kernels.Slice[int32](t)[i] = int32(v)
		}
	}
	return t
}

// decode is the numbers of a host tensor.
func decode(t kernels.Tensor) []float64 {
	switch t.Type {
	case kernels.F64:
		return widen(kernels.Slice[float64](t), func(x float64) float64 { return x })
	case kernels.F32:
		return widen(kernels.Slice[float32](t), func(x float32) float64 { return float64(x) })
	case kernels.BF16:
		return widen(kernels.Slice[kernels.BFloat16](t), func(x kernels.BFloat16) float64 { return float64(x.Float32()) })
	case kernels.I32:
		return widen(kernels.Slice[int32](t), func(x int32) float64 { return float64(x) })
	}
	panic(fmt.Sprintf("kernelstest: %v", t))
}

func widen[E kernels.Element](s []E, f func(E) float64) []float64 {
	x := make([]float64, len(s))
	for i, v := range s {
		x[i] = f(v)
	}
	return x
}

// hostBytes is the memory of a host tensor.
func hostBytes(t kernels.Tensor) []byte { return t.Mem.(kernels.Host) }
