//go:build gpu

package testgpu

import "loratrain/kernels/cuda/driver"

var cards = []Backend{{"card", driver.NewBackend, "LORA_GPU"}}
