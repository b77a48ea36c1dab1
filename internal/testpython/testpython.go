// Package testpython runs Python scripts in tests: python3 as the environment finds it, with the modules it has.
package testpython

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need skips a test where Python lacks one of some modules, given as an import statement lists them.
func Need(t testing.TB, modules string) {
	t.Helper()
	if out, err := exec.Command("python3", "-c", "import "+modules).CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Skipf("python3 cannot import %s: %v: %s", modules, err, lines[len(lines)-1])
	}
}

// Run runs a script with arguments, which must succeed.
func Run(t testing.TB, args ...string) {
	t.Helper()
	out, err := Try(args...)
	if err != nil {
		t.Fatalf("python3 %v: %v\n%s", args, err, out)
	}
	t.Logf("%s", out)
}

// Try runs a script with arguments and gives what it printed.
func Try(args ...string) (string, error) {
	cmd := exec.Command("python3", args...)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
