// Package testgpu opens the CUDA backends that tests can use: the card of this machine, in a program built with the tag gpu,
// and the emulator, which runs the kernels' source on the processor.
package testgpu

import (
	"os"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/emulator"
)

// Backend is one of them.
type Backend struct {
	Name string
	open func(o cuda.Options) (kernels.Backend, error)
	must string // environment variable that makes a missing backend a failure if it says require
}

// All are the backends, the emulator's first.
func All() []Backend {
	return append([]Backend{{"emulator", emulated, "LORA_EMULATOR"}}, cards...)
}

func emulated(o cuda.Options) (kernels.Backend, error) {
	dev, err := emulator.Open(emulator.Options{})
	if err != nil {
		return nil, err
	}
	return cuda.On(dev, o)
}

// Emulated reports whether b is as slow as the emulator is.
func (b Backend) Emulated() bool { return b.Name == "emulator" }

// Open opens b in float32 or bf16 for the length of a test, which it skips where the machine has no such thing.
func (b Backend) Open(t testing.TB, float32 bool) kernels.Backend {
	t.Helper()
	k, err := b.open(cuda.Options{Float32: float32})
	if err != nil {
		if os.Getenv(b.must) == "require" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("closing the %s: %v", b.Name, err)
		}
	})
	return k
}
