package kernelstest

import (
	"reflect"
	"testing"

	"loratrain/kernels"
)

// naives is the types that a backend may have.
var naives = []naive{{kernels.F64, kernels.F64}, {kernels.F32, kernels.F32}, {kernels.BF16, kernels.F32}}

func TestNaive(t *testing.T) {
	for _, n := range naives {
		t.Run(n.float.String(), func(t *testing.T) {
			Run(t, func(testing.TB) kernels.Backend { return n })
		})
	}
}

// TestEveryOperationHasATest notices an operation that joins the contract.
func TestEveryOperationHasATest(t *testing.T) {
	named := map[string]bool{}
	for _, test := range tests {
		named[test.name] = true
	}
	storage := reflect.TypeFor[kernels.Storage]()
	operations := reflect.TypeFor[kernels.Backend]()
	for i := range operations.NumMethod() {
		name := operations.Method(i).Name
		if _, ok := storage.MethodByName(name); !ok && !named[name] {
			t.Errorf("%s has no test", name)
		}
	}
}
