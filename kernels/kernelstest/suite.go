package kernelstest

import (
	"slices"
	"testing"

	"loratrain/kernels"
)

// tests is the suite: one subtest for each operation.
var tests = []struct {
	name string
	run  func(t *testing.T, b kernels.Backend)
}{
	{"Storage", testStorage},

	{"Embed", testEmbed},
	{"RMSNorm", testRMSNorm},
	{"Linear", testLinear},
	{"SwitchLinear", testSwitchLinear},
	{"Rotary", testRotary},
	{"Attention", testAttention},
	{"SwiGLU", testSwiGLU},
	{"Sum", testSum},
	{"Scale", testScale},
	{"Dropout", testDropout},
	{"Route", testRoute},
	{"Gate", testGate},
	{"Balance", testBalance},
	{"CrossEntropy", testCrossEntropy},
	{"LogProb", testLogProb},

	{"RMSNormGrad", testRMSNormGrad},
	{"LinearGrad", testLinearGrad},
	{"SwitchGradHidden", testSwitchGradHidden},
	{"SwitchGradInput", testSwitchGradInput},
	{"SwitchGradA", testSwitchGradA},
	{"SwitchGradB", testSwitchGradB},
	{"AttentionGrad", testAttentionGrad},
	{"SwiGLUGrad", testSwiGLUGrad},
	{"RouteGradInput", testRouteGradInput},
	{"RouteGradWeight", testRouteGradWeight},
	{"GateGrad", testGateGrad},
	{"BalanceGrad", testBalanceGrad},
	{"Differences", testDifferences},

	{"Norm", testNorm},
	{"Step", testStep},
	{"Round", testRound},

	{"Top2", testTop2},
	{"Experts", testExperts},
	{"Spread", testSpread},
	{"Transpose", testTranspose},
	{"PrepareMerge", testPrepareMerge},
	{"Merge", testMerge},
	{"Append", testAppend},
	{"Advance", testAdvance},
	{"Sample", testSample},
	{"DecodingStep", testDecodingStep},
}

// Run tests the backend that open makes, and closes it: all of its operations, or those that are named.
func Run(t *testing.T, open func(t testing.TB) kernels.Backend, operations ...string) {
	b := open(t)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	for _, test := range tests {
		if len(operations) == 0 || slices.Contains(operations, test.name) {
			t.Run(test.name, func(t *testing.T) { test.run(t, b) })
		}
	}
}
