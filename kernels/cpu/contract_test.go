package cpu

import (
	"fmt"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/kernelstest"
)

// TestContract runs the suite for each type and matrix library, with more threads than most tests have rows. With -short, which is for the race
// detector, that is done by the one that has most threads, in the library whose memory accesses the detector sees.
func TestContract(t *testing.T) {
	all := []Options{
		{Matrix: "go", Float64: true, Threads: 5}, {Matrix: "openblas"}, {Matrix: "go"}, {Matrix: "go", Threads: 1}, {Matrix: "openblas", Float64: true},
	}
	if testing.Short() {
		all = all[:1]
	}
	for _, o := range all {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			kernelstest.Run(t, func(t testing.TB) kernels.Backend {
				b, err := New(o)
				if err != nil && o.Matrix == "openblas" {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		})
	}
}
