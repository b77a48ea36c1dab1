package cpu

import (
	"fmt"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/kernelstest"
)

// TestContract runs the suite for each type and matrix library, with more threads than most tests have rows.
func TestContract(t *testing.T) {
	for _, o := range []Options{
		{Matrix: "openblas"}, {Matrix: "go"}, {Matrix: "go", Threads: 1}, {Matrix: "openblas", Float64: true}, {Matrix: "go", Float64: true, Threads: 5},
	} {
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
