package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// TestSampleAgreesWithCPU draws from long rows with many equal logits, and from rows of what is no number.
func TestSampleAgreesWithCPU(t *testing.T) {
	reference, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rules := []kernels.Sampling{
		{},
		{Temperature: 1},
		{Temperature: 0.7, TopK: 1},
		{Temperature: 0.7, TopK: 7},
		{Temperature: 1.5, TopP: 0.8},
		{Temperature: 2, TopK: 1000, TopP: 0.95},
		{Temperature: 1e-30},
		{Temperature: 1e50},
		{Temperature: 1, TopK: 1 << 30, TopP: 1e-300},
	}
	for _, float32Mode := range []bool{true, false} {
		b := openEmulated(t, float32Mode)
		for name, rows := range sampleRows(9001) {
			for _, rule := range rules {
				t.Run(fmt.Sprintf("%v, %s, %+v", b, name, rule), func(t *testing.T) {
					want, got := drawn(t, reference, rows, rule), drawn(t, b, rows, rule)
					for i := range want {
						if got[i] != want[i] {
							t.Errorf("ids[%d] is %v, want %v", i, got[i], want[i])
						}
					}
				})
			}
		}
	}
}

// sampleRows are logits that bf16 can hold.
func sampleRows(n int) map[string][][]float64 {
	r, inf, nan := rand.New(rand.NewPCG(3, 4)), math.Inf(1), math.NaN()
	large := make([]float64, n)
	for i := range large {
		large[i] = float64(kernels.ToBFloat16(float32(3 * r.NormFloat64())).Float32())
	}
	spoilt := slices.Clone(large)
	for i := range spoilt {
		if i%3 == 0 {
			spoilt[i] = nan
		}
	}
	return map[string][][]float64{
		"many words": {large, spoilt},
		"no numbers": {{nan, nan, nan}, {nan, -inf, nan}, {-inf, -inf, -inf}, {nan, 2, inf}, {nan, nan, 5}, {-inf, 1, nan}, {0, math.Copysign(0, -1), nan}},
	}
}

// sampler is a backend's part that is tested.
type sampler interface {
	kernels.Storage
	Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling)
}

// drawn is the ids that each of some u chooses from each row.
func drawn(t *testing.T, b sampler, rows [][]float64, rule kernels.Sampling) []float64 {
	t.Helper()
	var logits, us []float64
	for i, u := range []float64{0, 0.3217, 0.7711, 1 - 0x1p-20, math.NaN()} {
		for j, row := range rows {
			logits, us = append(logits, row...), append(us, u+float64(i*j)*1e-7)
		}
	}
	n := len(rows[0])
	ids := place(t, b, kernels.I32, make([]float64, len(us)), len(us))
	b.Sample(ids, place(t, b, b.Float(), logits, len(us), n), place(t, b, b.Param(), us, len(us)), rule)
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	return fetch(b, ids)
}
