//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"gorgonia.org/cu"
	"loratrain/kernels/cuda/compiled"
)

// kernel is a function on the device.
type kernel struct {
	name       string
	parameters []int // the bytes of each
	offsets    []int // where each lies among the arguments, once it has been launched
	module     cu.Module
	function   C.CUfunction // nil before its first use
	shared     int          // bytes of dynamic shared memory that it may have
}

// loadModules loads all modules; the driver reads their code when a kernel is first used.
func (d *device) loadModules() error {
	d.kernels = map[string]*kernel{}
	loaded := map[string]cu.Module{}
	return d.do(func() error {
		for name, found := range compiled.Find(d.info.Major, d.info.Minor) {
			module, ok := loaded[found.Module.Name]
			if !ok {
				var err error
				if module, err = load(found.Module); err != nil {
					return err
				}
				loaded[found.Module.Name] = module
			}
			d.kernels[name] = &kernel{name: name, parameters: found.Kernel.Parameters, module: module, shared: sharedAlways}
		}
		return nil
	})
}

// load gives the driver the code compiled for its card, or, if it has no use for that, the PTX.
func load(m compiled.Module) (cu.Module, error) {
	if os.Getenv("LORA_CUDA_PTX") != "1" {
		module, err := cu.LoadData(string(m.Fatbin()))
		if err == nil || errors.Is(err, cu.OutOfMemory) {
			return module, err
		}
	}
	module, err := cu.LoadData(string(m.PTX()) + "\x00")
	if err != nil {
		return module, fmt.Errorf("kernels of %s.cu: %w\nthe driver may be too old for this card: install the newest that NVIDIA has for it", m.Name, named(err))
	}
	return module, nil
}

// kernel is the kernel of that name, ready to launch.
func (d *device) kernel(name string) (*kernel, error) {
	k, ok := d.kernels[name]
	if !ok {
		panic(fmt.Sprintf("kernels/cuda/driver: there is no kernel %s", name))
	}
	if k.function != nil {
		return k, nil
	}
	err := d.do(func() error {
		f, err := k.module.Function(name)
		k.function = *(*C.CUfunction)(unsafe.Pointer(&f))
		return err
	})
	return k, err
}
