//go:build gpu

package main

import (
	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/driver"
)

func init() {
	openCUDA = func(device int, float32 bool) (kernels.Backend, error) {
		return driver.NewBackend(cuda.Options{Device: device, Float32: float32})
	}
}
