package cuda_test

import (
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/emulator"
)

// openEmulated is a backend on the emulator; it skips the test where there is none.
func openEmulated(t *testing.T, float32Mode bool) *cuda.Backend {
	t.Helper()
	b, err := cuda.On(emulator.ForTest(t, emulator.Options{}), cuda.Options{Float32: float32Mode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// hostTensor is numbers rounded to a type.
func hostTensor(typ kernels.Type, values []float64, shape ...int) kernels.Tensor {
	host := kernels.NewHost(typ, shape...)
	for i, v := range values {
		switch typ {
		case kernels.I32:
			kernels.Slice[int32](host)[i] = int32(v)
		case kernels.BF16:
			kernels.Slice[kernels.BFloat16](host)[i] = kernels.ToBFloat16(float32(v))
		case kernels.F64:
			kernels.Slice[float64](host)[i] = v
		default:
			kernels.Slice[float32](host)[i] = float32(v)
		}
	}
	return host
}

// place brings numbers to the device for as long as the test lasts.
func place(t *testing.T, b kernels.Storage, typ kernels.Type, values []float64, shape ...int) kernels.Tensor {
	t.Helper()
	x, err := b.Place(hostTensor(typ, values, shape...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Free(x) })
	return x
}

// fetch is the numbers of a tensor.
func fetch(b kernels.Storage, x kernels.Tensor) []float64 {
	host := kernels.NewHost(x.Type, x.Shape...)
	b.Read(host, x)
	values := make([]float64, x.Len())
	for i := range values {
		switch x.Type {
		case kernels.I32:
			values[i] = float64(kernels.Slice[int32](host)[i])
		case kernels.BF16:
			values[i] = float64(kernels.Slice[kernels.BFloat16](host)[i].Float32())
		case kernels.F64:
			values[i] = kernels.Slice[float64](host)[i]
		default:
			values[i] = float64(kernels.Slice[float32](host)[i])
		}
	}
	return values
}

func nans(n int) []float64 { return slices.Repeat([]float64{math.NaN()}, n) }
