//go:build gpu

package driver

// #cgo LDFLAGS: -lcuda -ldl
// #include <stdlib.h>
// #include "queue.h"
// #include "libcuda.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"gorgonia.org/cu"
	"loratrain/kernels/cuda"
)

// oldestDriver is the CUDA version, in the driver's way of writing 12.0, that the embedded PTX needs.
const oldestDriver = 12000

// Open is the GPU of the given index, as nvidia-smi counts. An error says what is missing and how to get it.
func Open(index int) (cuda.Device, error) {
	if err := start(); err != nil {
		return nil, err
	}
	dev, info, err := find(index)
	if err != nil {
		return nil, err
	}
	library := make(chan blasLibrary, 1)
	go func() { library <- openBLAS() }() // while the driver makes the context
	d := &device{
		index: index, info: info, dev: dev, memory: map[cuda.Address]int{}, trace: os.Getenv("LORA_CUDA_TRACE") == "1",
		q: (*C.queue)(C.calloc(1, C.sizeof_queue)),
	}
	err = d.prepare(func() blasLibrary { return <-library })
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("GPU %d, %s: %w", index, info.Name, err)
	}
	return d, nil
}

// start opens the driver, once in a process.
var start = sync.OnceValue(func() error {
	if why := C.driver_open(); why != nil {
		return fmt.Errorf("no NVIDIA driver: %s\ninstall NVIDIA's driver 525 or newer (in a container: start it with --gpus all), or use --backend cpu",
			C.GoString(why))
	}
	if version := cu.Version(); version < oldestDriver {
		return fmt.Errorf("the NVIDIA driver is too old: it supports CUDA %d.%d, and 12.0 is needed\ninstall driver 525 or newer, or use --backend cpu",
			version/1000, version%1000/10)
	}
	if os.Getenv("CUDA_DEVICE_ORDER") == "" {
		os.Setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID") // count as nvidia-smi does
	}
	switch err := result(C.CUresult(C.driver_init(0))); err {
	case nil:
		return nil
	case code(C.CUDA_ERROR_NO_DEVICE):
		return errors.New("no NVIDIA GPU: the driver finds none\n" +
			"nvidia-smi must list one and CUDA_VISIBLE_DEVICES, if set, must name one; or use --backend cpu")
	default:
		return fmt.Errorf("the NVIDIA driver does not start: %w\nnvidia-smi must work; a restart mends a driver that was updated while in use", err)
	}
})

// find is the card of that index, if it can be used.
func find(index int) (cu.Device, cuda.Info, error) {
	count, err := cu.NumDevices()
	if err != nil {
		return 0, cuda.Info{}, fmt.Errorf("GPUs: %w", named(err))
	}
	if index < 0 || index >= count {
		return 0, cuda.Info{}, fmt.Errorf("there is no GPU %d: this machine has %d, counted from 0\nnvidia-smi lists them; CUDA_VISIBLE_DEVICES hides some", index, count)
	}
	dev, err := cu.GetDevice(index)
	if err != nil {
		return 0, cuda.Info{}, fmt.Errorf("GPU %d: %w", index, named(err))
	}
	info, err := describe(dev)
	if err != nil {
		return 0, cuda.Info{}, fmt.Errorf("GPU %d: %w", index, named(err))
	}
	if info.Major < 8 {
		return 0, cuda.Info{}, fmt.Errorf("GPU %d, %s, has compute capability %d.%d, and bf16 needs 8.0\nuse an A100 or newer, or --backend cpu",
			index, info.Name, info.Major, info.Minor)
	}
	return dev, info, nil
}

func describe(dev cu.Device) (info cuda.Info, err error) {
	if info.Name, err = dev.Name(); err != nil {
		return info, err
	}
	bytes, err := dev.TotalMem()
	if err != nil {
		return info, err
	}
	info.Memory = int(bytes)
	for _, a := range []struct {
		to *int
		of cu.DeviceAttribute
	}{
		{&info.Major, cu.ComputeCapabilityMajor},
		{&info.Minor, cu.ComputeCapabilityMinor},
		{&info.Multiprocessors, cu.MultiprocessorCount},
	} {
		if *a.to, err = dev.Attribute(a.of); err != nil {
			return info, err
		}
	}
	return info, nil
}
