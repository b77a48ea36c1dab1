package cuda_test

import (
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/emulator"
	"loratrain/kernels/kernelstest"
)

// TestStream runs the suite's decoding steps through stream_sm90.cu, as blocks that wait for each other.
func TestStream(t *testing.T) {
	for name, order := range map[string]emulator.Order{"forward": emulator.Forward, "backward": emulator.Backward, "late": emulator.Late, "random": 7} {
		t.Run(name, func(t *testing.T) {
			kernelstest.Run(t, func(t testing.TB) kernels.Backend {
				b, err := cuda.On(emulator.ForTest(t, emulator.Options{Order: order, Hopper: true}), cuda.Options{})
				if err != nil {
					t.Fatal(err)
				}
				return b
			}, "DecodingStep")
		})
	}
}
