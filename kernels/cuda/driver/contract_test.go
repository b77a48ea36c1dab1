//go:build gpu

package driver_test

import (
	"os"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/driver"
	"loratrain/kernels/kernelstest"
)

// need skips a test where no GPU can be had, unless LORA_GPU=require says that there must be one.
func need(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("LORA_GPU") != "require" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestContract runs the suite on the GPU in both of its modes.
func TestContract(t *testing.T) {
	for _, c := range []struct {
		name string
		o    cuda.Options
	}{{"float32", cuda.Options{Float32: true}}, {"bf16", cuda.Options{}}} {
		t.Run(c.name, func(t *testing.T) {
			kernelstest.Run(t, func(t testing.TB) kernels.Backend {
				b, err := driver.NewBackend(c.o)
				need(t, err)
				return b
			})
		})
	}
}
