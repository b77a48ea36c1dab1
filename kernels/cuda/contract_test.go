package cuda_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/emulator"
	"loratrain/kernels/kernelstest"
)

// TestMain runs the tests and then, if all of them ran and passed, asks whether they launched every kernel.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	for _, some := range []string{"test.run", "test.skip", "test.list"} {
		if flag.Lookup(some).Value.String() != "" {
			os.Exit(code)
		}
	}
	if dev, err := emulator.Open(emulator.Options{}); err == nil && code == 0 {
		if unused := dev.Unused(); len(unused) > 0 {
			fmt.Printf("no test launched the kernels\n\t%s\n", strings.Join(unused, "\n\t"))
			code = 1
		}
	}
	os.Exit(code)
}

var _ kernels.Backend = (*cuda.Backend)(nil)

// TestContract runs the suite on the emulator, in both modes and two orders of threads. One operation:
//
//	go test ./kernels/cuda -run 'TestContract/bf16/Sum'
func TestContract(t *testing.T) {
	for _, o := range []struct {
		name string
		cuda.Options
		emulator.Order
	}{
		{"float32", cuda.Options{Float32: true}, emulator.Forward},
		{"bf16", cuda.Options{}, emulator.Backward},
	} {
		t.Run(o.name, func(t *testing.T) {
			kernelstest.Run(t, func(t testing.TB) kernels.Backend {
				b, err := cuda.On(emulator.ForTest(t, emulator.Options{Order: o.Order}), o.Options)
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		})
	}
}

// TestKernelsCompile is separate since the suite runs what compiles.
func TestKernelsCompile(t *testing.T) {
	d := emulator.ForTest(t, emulator.Options{})
	if err := d.Broken(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
