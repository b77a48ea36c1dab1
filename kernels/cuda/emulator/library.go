//go:build linux && (amd64 || arm64)

package emulator

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/ebitengine/purego"
)

// emulation is the functions of the library that runtime is compiled to.
type emulation struct {
	describe func(kernels uintptr) string
	launch   func(*launchRequest) int32
	multiply func(*productRequest) int32
}

// launchRequest is runtime's Request.
type launchRequest struct {
	kernels, anchor uintptr
	kernel          uint64
	args            unsafe.Pointer
	blocks, threads [3]uint32
	shared, order   uint64
	message         unsafe.Pointer
	fault           uintptr
}

// productRequest is runtime's Product.
type productRequest struct {
	c, a, b     matrixRequest
	alpha, beta float32
	message     unsafe.Pointer
	fault       uintptr
}

type matrixRequest struct {
	at                                     uintptr
	isBF16, rows, cols, stride, transposed int64
}

// messageBytes is what runtime's messages may have.
const messageBytes = 512

// kernel is one that can be launched.
type kernel struct {
	name            string
	kernels, anchor uintptr // its library's
	index           uint64
	params          []param
	launched        atomic.Bool
}

// param is what a kernel expects: p a pointer, i an integer, f a float, s a struct.
type param struct {
	kind  byte
	bytes int
}

func (p param) String() string {
	return map[byte]string{'p': "a pointer", 'i': "an integer", 'f': "a float", 's': "a struct"}[p.kind] + fmt.Sprintf(" of %d bytes", p.bytes)
}

// theRuntime is loaded once: the libraries of kernels find its functions by name.
var theRuntime = sync.OnceValues(func() (*emulation, error) {
	b, err := newBuild()
	if err != nil {
		return nil, err
	}
	j, err := runtimeJob()
	if err != nil {
		return nil, err
	}
	file, err := b.library(j)
	if err != nil {
		return nil, err
	}
	handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	e := new(emulation)
	purego.RegisterLibFunc(&e.describe, handle, "emulated_describe")
	purego.RegisterLibFunc(&e.launch, handle, "emulated_launch")
	purego.RegisterLibFunc(&e.multiply, handle, "emulated_multiply")
	return e, nil
})

// opened is the kernels of every library that was opened, by file. They are opened once: whether a kernel was launched is
// remembered as long as the process lives.
var opened struct {
	sync.Mutex
	kernels map[string][]*kernel
}

// open is the kernels of a library.
func (e *emulation) open(file string) ([]*kernel, error) {
	opened.Lock()
	defer opened.Unlock()
	if list, ok := opened.kernels[file]; ok {
		return list, nil
	}
	handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var at [2]uintptr
	for i, name := range []string{"emulated_kernels", "emulated_anchor"} {
		if at[i], err = purego.Dlsym(handle, name); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	var list []*kernel
	for i, line := range strings.Split(strings.TrimSpace(e.describe(at[0])), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue // a library without kernels
		}
		k := &kernel{name: words[0], kernels: at[0], anchor: at[1], index: uint64(i)}
		for _, w := range words[1:] {
			n, err := strconv.Atoi(w[1:])
			if err != nil {
				return nil, fmt.Errorf("%s: kernel %q: %w", file, line, err)
			}
			k.params = append(k.params, param{w[0], n})
		}
		list = append(list, k)
	}
	if opened.kernels == nil {
		opened.kernels = map[string][]*kernel{}
	}
	opened.kernels[file] = list
	return list, nil
}
