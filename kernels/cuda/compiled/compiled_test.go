package compiled

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const again = "run scripts/cuda/kernels.sh"

// TestFresh fails when a source is not the one that was compiled.
func TestFresh(t *testing.T) {
	sources, err := filepath.Glob("../*.cu")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources in the folder above (%v)", err)
	}
	var names []string
	for _, path := range sources {
		name := strings.TrimSuffix(filepath.Base(path), ".cu")
		names = append(names, name)
		text, err := os.ReadFile(name + ".txt")
		if err != nil {
			t.Errorf("kernels/cuda/%s.cu was never compiled: %s", name, again)
			continue
		}
		l, err := readList(string(text))
		if err != nil {
			t.Errorf("%s.txt: %v", name, err)
			continue
		}
		for file := range includes(t, name+".cu", map[string]bool{}) {
			if got, want := digest(t, "../"+file), l.sources[file]; got != want {
				t.Errorf("kernels/cuda/%s has changed since %s.ptx was made of it: %s", file, name, again)
			}
		}
		for _, file := range []string{name + ".ptx", name + ".fatbin"} {
			if got, want := digest(t, file), l.outputs[file]; got != want {
				t.Errorf("kernels/cuda/compiled/%s is not the file that was made: SHA-256 %s, expected %s: %s", file, got, want, again)
			}
		}
	}
	made, err := filepath.Glob("*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range made {
		if name := strings.TrimSuffix(file, ".txt"); !slices.Contains(names, name) {
			t.Errorf("kernels/cuda/%s.cu is gone and %s is not: %s", name, file, again)
		}
	}
}

var include = regexp.MustCompile(`(?m)^ *#include "(.*)"`)

// includes adds file and what it includes of the folder above.
func includes(t *testing.T, file string, all map[string]bool) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../" + file)
	if err != nil {
		if file == "emulator.h" || file == "hopper.h" { // of the emulator
			return all // not of the GPU
		}
		t.Fatal(err)
	}
	all[file] = true
	for _, m := range include.FindAllStringSubmatch(string(text), -1) {
		if !all[m[1]] {
			includes(t, m[1], all)
		}
	}
	return all
}

func digest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: %s", err, again)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// TestKernels compares the lists with what the sources declare, each followed by KERNEL(name) when it is not made by a macro.
func TestKernels(t *testing.T) {
	entry := regexp.MustCompile(`(?m)^\.visible \.entry (\w+)\(`)
	parameter := regexp.MustCompile(`\.param .*_param_\d+`)
	seen := map[string]string{}
	for _, m := range Modules() {
		if len(m.Kernels) == 0 {
			t.Errorf("module %s has no kernels", m.Name)
		}
		text := string(m.PTX())
		var want []string
		for _, match := range entry.FindAllStringSubmatchIndex(text, -1) {
			name := text[match[2]:match[3]]
			want = append(want, name)
			head, _, _ := strings.Cut(text[match[1]:], ")")
			i := slices.IndexFunc(m.Kernels, func(k Kernel) bool { return k.Name == name })
			if i < 0 {
				t.Errorf("module %s: kernel %s is not in its list", m.Name, name)
				continue
			}
			if got, want := len(m.Kernels[i].Parameters), len(parameter.FindAllString(head, -1)); got != want {
				t.Errorf("kernel %s: %d parameters in the list, %d in the PTX", name, got, want)
			}
		}
		if len(want) != len(m.Kernels) {
			t.Errorf("module %s: %d kernels in the list, %d in the PTX", m.Name, len(m.Kernels), len(want))
		}
		for _, k := range m.Kernels {
			if other, ok := seen[k.Name]; ok && !m.Hopper && !strings.HasSuffix(other, hopperSuffix) {
				t.Errorf("modules %s and %s both have a kernel %s", other, m.Name, k.Name)
			}
			seen[k.Name] = m.Name
		}
		if len(m.Fatbin()) == 0 {
			t.Errorf("module %s has no code", m.Name)
		}
	}
}

func TestFind(t *testing.T) {
	k, ok := Find(8, 0)["sum_bf16"]
	if !ok || k.Module.Name != "sum" || !slices.Equal(k.Kernel.Parameters, []int{8, 128, 4, 8}) {
		t.Errorf("sum_bf16 on a card of 8.0: %+v, expected parameters of 8, 128, 4 and 8 bytes in module sum", k)
	}
	for _, capability := range [][2]int{{8, 0}, {8, 9}, {9, 1}, {10, 0}, {12, 0}} {
		for name, f := range Find(capability[0], capability[1]) {
			if f.Module.Hopper {
				t.Errorf("kernel %s on a card of %d.%d: from module %s for Hopper", name, capability[0], capability[1], f.Module.Name)
			}
		}
	}
}

func TestReadListRefuses(t *testing.T) {
	for _, text := range []string{"kernel", "kernel x 0", "kernel x -4", "kernel x eight", "other x", "\n"} {
		if l, err := readList(text); err == nil {
			t.Errorf("%q: read as %+v", text, l)
		}
	}
}
