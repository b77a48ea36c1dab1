// Package compiled holds the kernels of package cuda in the forms that a driver loads. Start with [Find].
//
// Everything here but the Go files is made by scripts/cuda/kernels.sh: for each .cu file the PTX, which the driver compiles when it
// loads it, a fat binary with the code of the common cards, and a list that says which kernels are inside and of which sources they were
// made. A test fails when a source has changed since.
package compiled

import (
	"embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:embed *.ptx *.fatbin *.txt
var files embed.FS

// Module is one .cu file.
type Module struct {
	Name    string
	Hopper  bool     // code for compute capability 9.0 and no other
	Kernels []Kernel // in alphabetical order
}

// Kernel is what a launch names.
type Kernel struct {
	Name       string
	Parameters []int // the bytes of each
}

// PTX is the module as text for the driver's compiler.
func (m Module) PTX() []byte { return m.file(".ptx") }

// Fatbin is the module as machine code for several cards.
func (m Module) Fatbin() []byte { return m.file(".fatbin") }

func (m Module) file(ending string) []byte {
	data, err := files.ReadFile(m.Name + ending)
	if err != nil {
		panic("compiled: " + err.Error()) // the list and the files come from one script, and a test holds them together
	}
	return data
}

// hopperSuffix ends the names of modules for Hopper.
const hopperSuffix = "_sm90"

// Modules are all modules, in alphabetical order.
var Modules = sync.OnceValue(func() []Module {
	var modules []Module
	lists, err := files.ReadDir(".")
	if err != nil {
		panic("compiled: " + err.Error())
	}
	for _, f := range lists {
		name, ok := strings.CutSuffix(f.Name(), ".txt")
		if !ok {
			continue
		}
		m := Module{Name: name, Hopper: strings.HasSuffix(name, hopperSuffix)}
		list, err := readList(string(m.file(".txt")))
		if err != nil {
			panic(fmt.Sprintf("compiled: %s: %v", f.Name(), err))
		}
		m.Kernels = list.kernels
		modules = append(modules, m)
	}
	return modules
})

// Found is a kernel and the module that holds it.
type Found struct {
	Kernel Kernel
	Module Module
}

// Find is the kernel of each name as a card of the given compute capability takes it: one for Hopper goes before a general one of
// the same name.
func Find(major, minor int) map[string]Found {
	hopper := major == 9 && minor == 0
	found := map[string]Found{}
	for _, m := range Modules() {
		for _, k := range m.Kernels {
			if has, ok := found[k.Name]; m.Hopper && !hopper || ok && has.Module.Hopper {
				continue
			}
			found[k.Name] = Found{k, m}
		}
	}
	return found
}

// list is what NAME.txt says.
type list struct {
	sources, outputs map[string]string // SHA-256 in hexadecimal by file name
	kernels          []Kernel
}

func readList(text string) (list, error) {
	l := list{sources: map[string]string{}, outputs: map[string]string{}}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			return l, fmt.Errorf("line %q", line)
		}
		switch words[0] {
		case "source":
			l.sources[words[1]] = words[len(words)-1]
		case "output":
			l.outputs[words[1]] = words[len(words)-1]
		case "kernel":
			k := Kernel{Name: words[1]}
			for _, word := range words[2:] {
				size, err := strconv.Atoi(word)
				if err != nil || size <= 0 {
					return l, fmt.Errorf("line %q: parameter of %q bytes", line, word)
				}
				k.Parameters = append(k.Parameters, size)
			}
			l.kernels = append(l.kernels, k)
		default:
			return l, fmt.Errorf("line %q", line)
		}
	}
	slices.SortFunc(l.kernels, func(a, b Kernel) int { return strings.Compare(a.Name, b.Name) })
	return l, nil
}
