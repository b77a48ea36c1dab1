package kernelstest

import (
	"testing"

	"loratrain/kernels"
)

// device moves numbers to a backend and back, where the checks of [call] would be in the way.
type device struct {
	t testing.TB
	b kernels.Backend
}

func newDevice(t testing.TB, b kernels.Backend) device { return device{t, b} }

// put is a tensor that lasts as long as the test.
func (d device) put(typ kernels.Type, values []float64, shape ...int) kernels.Tensor {
	d.t.Helper()
	x, err := d.b.Alloc(typ, shape...)
	if err != nil {
		d.t.Fatalf("memory for %v%v: %v", typ, shape, err)
	}
	d.t.Cleanup(func() { d.b.Free(x) })
	d.set(x, values)
	return x
}

func (d device) set(x kernels.Tensor, values []float64) { d.b.Write(x, encode(values, x.Type)) }

func (d device) get(x kernels.Tensor) []float64 {
	host := kernels.NewHost(x.Type, x.Len())
	d.b.Read(host, x)
	return decode(host)
}
