//go:build gpu

package driver_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"loratrain/kernels/cuda/driver"
)

// The tests of this file need no GPU: they run scenes in a process of their own, this program again, which finds
// testdata/fake.c compiled in the place of the driver and of cuBLAS.

// sceneVariable names the scene that this process plays.
const sceneVariable = "LORA_DRIVER_SCENE"

func TestMain(m *testing.M) {
	if name := os.Getenv(sceneVariable); name != "" {
		scene, ok := scenes[name]
		if !ok {
			fmt.Println("there is no scene", name)
			os.Exit(2)
		}
		scene()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeDriver is a folder with the fake as libcuda.so.1 and libcublas.so.13.
var fakeDriver = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "driver")
	if err != nil {
		return "", err
	}
	library := filepath.Join(dir, "libcuda.so.1")
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-O1", "-o", library, "testdata/fake.c").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, os.Symlink("libcuda.so.1", filepath.Join(dir, "libcublas.so.13"))
})

// needFake is the folder of the fake driver. It skips a test where nothing can compile one; one that does not compile is an error.
func needFake(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("no C compiler, cc, for the fake driver; .ci/run installs one")
	}
	dir, err := fakeDriver()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// play runs a scene with the fake driver and gives what it printed and what the driver noted.
func play(t *testing.T, scene string, env ...string) (out string, notes []string) {
	t.Helper()
	return playIn(t, needFake(t), scene, env...)
}

func playIn(t *testing.T, dir, scene string, env ...string) (out string, notes []string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append([]string{
		sceneVariable + "=" + scene, "LD_LIBRARY_PATH=" + dir, "FAKE_LOG=" + log, "CUDA_HOME=", "LORA_CUDA_TRACE=", "LORA_CUDA_PTX=",
	}, env...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("scene %s: %v\n%s%s", scene, err, stdout, stderr.String())
	}
	text, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(stdout), strings.Split(strings.TrimSpace(string(text)), "\n")
}

// TestOpenErrors goes through what may be missing. Each error is one line and one of advice.
func TestOpenErrors(t *testing.T) {
	broken := t.TempDir() // has libraries that are none, whatever else is installed
	for _, name := range []string{"libcuda.so.1", "libcublas.so.13", "libcublas.so.12"} {
		if err := os.WriteFile(filepath.Join(broken, name), []byte("none"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, dir string
		env       []string
		want      []string // one in each line
	}{
		{"no driver", broken, nil, []string{"no NVIDIA driver: ", "install NVIDIA's driver 525"}},
		{"old driver", "", []string{"FAKE_VERSION=11040"}, []string{"too old: it supports CUDA 11.4, and 12.0 is needed", "install driver 525"}},
		{"no card", "", []string{"FAKE_INIT=100"}, []string{"no NVIDIA GPU", "nvidia-smi must list one"}},
		{"driver updated", "", []string{"FAKE_INIT=803"}, []string{"does not start: CUDA_ERROR_", "restart"}},
		{"no such index", "", []string{"FAKE_DEVICES=2", "INDEX=2"}, []string{"there is no GPU 2: this machine has 2", "nvidia-smi lists them"}},
		{"negative index", "", []string{"INDEX=-1"}, []string{"there is no GPU -1", "nvidia-smi lists them"}},
		{"old card", "", []string{"FAKE_MAJOR=7"}, []string{"GPU 0, Fake Card, has compute capability 7.0, and bf16 needs 8.0", "A100 or newer"}},
		{"modules refused", "", []string{"FAKE_REFUSE=all"}, []string{".cu: CUDA_ERROR_", "driver may be too old for this card"}},
		{"memory too small", "", []string{"FAKE_MEMORY=1000000"}, []string{"0.034 GB of GPU memory wanted, 0.001 GB of 0.001 GB free", "lower the batch"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out string
			if c.dir != "" {
				out, _ = playIn(t, c.dir, "open", c.env...)
			} else {
				out, _ = play(t, "open", c.env...)
			}
			sayInLines(t, out, c.want)
		})
	}
}

// TestNoBLAS has the fake driver and no cuBLAS.
func TestNoBLAS(t *testing.T) {
	whole, dir := needFake(t), t.TempDir()
	if err := os.Symlink(filepath.Join(whole, "libcuda.so.1"), filepath.Join(dir, "libcuda.so.1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"libcublas.so.13", "libcublas.so.12"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("none"), 0o644); err != nil {
			t.Fatal(err)
		}
		toolkit := filepath.Join("/usr/local/cuda/lib64", name)
		if _, err := os.Stat(toolkit); err == nil {
			t.Skipf("%s is there and would be found: this runs only without it", toolkit)
		}
	}
	out, _ := playIn(t, dir, "open")
	sayInLines(t, out, []string{"GPU 0, Fake Card: no cuBLAS: ", "pip install nvidia-cublas"})
}

func sayInLines(t *testing.T, out string, want []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, expected %d:\n%s", len(lines), len(want), out)
	}
	for i := range want {
		if !strings.Contains(lines[i], want[i]) {
			t.Errorf("line %d is %q, expected %q in it", i+1, lines[i], want[i])
		}
	}
}

// TestModules: the driver gets compiled code, and PTX if it has no use for that or is told to.
func TestModules(t *testing.T) {
	for _, c := range []struct {
		env, last string
	}{{"", "load fatbin"}, {"FAKE_REFUSE=fatbin", "load ptx"}, {"LORA_CUDA_PTX=1", "load ptx"}} {
		out, notes := play(t, "open", c.env)
		if strings.TrimSpace(out) != "open: Fake Card 9.0" {
			t.Errorf("%s: %s", c.env, out)
		}
		var loads []string
		for _, n := range notes {
			if strings.HasPrefix(n, "load ") {
				loads = append(loads, n)
			}
		}
		if len(loads) == 0 || loads[len(loads)-1] != c.last {
			t.Errorf("%s: modules were loaded as %q, expected the last to be %q", c.env, loads, c.last)
		}
		if notes[len(notes)-1] != "release" {
			t.Errorf("%s: after Close the driver noted %q last, expected the context's release", c.env, notes[len(notes)-1])
		}
	}
}

func TestClosesWhenTheCardHangs(t *testing.T) {
	out, _ := play(t, "hang")
	sayInLines(t, out, []string{"GPU 0 does not answer", "end this program"})
}

// scenes are what a process with the fake driver does.
var scenes = map[string]func(){
	"open": func() {
		index := 0
		fmt.Sscan(os.Getenv("INDEX"), &index)
		d, err := driver.Open(index)
		if err != nil {
			fmt.Println(err)
			return
		}
		info := d.Info()
		fmt.Printf("open: %s %d.%d\n", info.Name, info.Major, info.Minor)
		if err := d.Close(); err != nil {
			fmt.Println(err)
		}
	},
	"hang": func() {
		d := mustOpen()
		os.Setenv("FAKE_HANG", "1")
		fmt.Println(d.Close())
	},
	"transfers":  transfersScene,
	"launches":   launchesScene,
	"boxes":      boxesScene,
	"products":   productsScene,
	"captures":   capturesScene,
	"profile":    profileScene,
	"fault":      faultScene,
	"late fault": lateFaultScene,
	"mistakes":   mistakesScene,
}
