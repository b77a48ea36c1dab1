package kernelstest

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
)

// flaw is a mistake that a backend may have, and what the suite says to it.
type flaw struct {
	name    string
	test    string // the suite's subtest that must fail
	says    string // in one of its failures
	backend func(n naive) kernels.Backend
}

// only are flaws that not all types can show: a narrow tolerance must, or an adapter of another type than Param.
var only = map[string]kernels.Type{
	"Linear multiplies in float32": kernels.F64,
	"Linear multiplies in tf32":    kernels.F32,
	"Linear rounds Param to Float": kernels.BF16,
	"Route rounds its weight":      kernels.BF16,

	"SwitchLinear wants A in Param":    kernels.BF16,
	"SwitchLinear mixes types":         kernels.BF16,
	"SwitchGradInput reads A as Param": kernels.BF16,
}

// floats is the types of a backend that show f: those with the narrowest tolerances and with the widest.
func (f flaw) floats() []kernels.Type {
	if float, ok := only[f.name]; ok {
		return []kernels.Type{float}
	}
	return []kernels.Type{kernels.F64, kernels.BF16}
}

// flaws lie in the files flaws_*_test.go, each beside the backend that has it.
var flaws = slices.Concat(layerFlaws, plusFlaws, attentionFlaws, routingFlaws, transposeFlaws, otherFlaws, stepFlaws)

// flawName is the variable that tells a second run of this test binary which flaw its backend has.
const flawName = "KERNELSTEST_FLAW"

// TestFlawedBackend is what TestSuiteFindsFlaws runs in processes of their own; without the variable it is idle.
func TestFlawedBackend(t *testing.T) {
	name, float, _ := strings.Cut(os.Getenv(flawName), "/")
	if name == "" {
		t.Skip("idle: TestSuiteFindsFlaws runs it in processes of its own")
	}
	n := naives[slices.IndexFunc(naives, func(n naive) bool { return n.float.String() == float })]
	i := slices.IndexFunc(flaws, func(f flaw) bool { return f.name == name })
	Run(t, func(testing.TB) kernels.Backend { return flaws[i].backend(n) })
}

// TestSuiteFindsFlaws proves that the suite can fail.
func TestSuiteFindsFlaws(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flaws {
		for _, float := range f.floats() {
			t.Run(fmt.Sprintf("%s/%v", f.name, float), func(t *testing.T) {
				t.Parallel()
				run := func(flags ...string) ([]byte, error) {
					cmd := exec.Command(self, append(flags, "-rapid.nofailfile", "-test.run", "^TestFlawedBackend$/^"+f.test+"$")...)
					cmd.Env = append(os.Environ(), flawName+"="+f.name+"/"+float.String(), "GOMAXPROCS=1") // others run beside it
					return cmd.CombinedOutput()
				}
				// Mostly the first failure says it, and what comes behind need not run.
				out, err := run("-test.failfast")
				if err != nil && !regexp.MustCompile(f.says).Match(out) {
					out, err = run()
				}
				if err == nil {
					t.Fatal("the suite finds nothing")
				}
				if !strings.Contains(string(out), "--- FAIL: TestFlawedBackend/"+f.test) {
					t.Errorf("no failure of %s in:\n%s", f.test, out)
				}
				if !regexp.MustCompile(f.says).Match(out) {
					t.Errorf("failures do not say %q:\n%s", f.says, out)
				}
			})
		}
	}
}

// edit changes the elements of a host tensor.
func edit(t kernels.Tensor, f func(i int, v float64) float64) {
	values := decode(t)
	for i := range values {
		values[i] = f(i, values[i])
	}
	copy(hostBytes(t), hostBytes(encode(values, t.Type)))
}

// changed is a copy of t with other elements.
func changed(t kernels.Tensor, f func(i int, v float64) float64) kernels.Tensor {
	c := kernels.NewHost(t.Type, t.Shape...)
	copy(hostBytes(c), hostBytes(t))
	edit(c, f)
	return c
}

func finite(_ int, v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return v
}
