//go:build !(linux && (amd64 || arm64))

package emulator

import (
	"errors"

	"loratrain/kernels/cuda"
)

// Device cannot be had here.
type Device struct{ cuda.Device }

// Open is an error here.
func Open(Options) (*Device, error) {
	return nil, errors.New("kernels/cuda/emulator: it needs Linux on amd64 or arm64")
}

// Broken is what the compiler said about files that it could not compile.
func (d *Device) Broken() error { return nil }

// Unused is the names of the kernels that no device has launched while the process has run, sorted.
func (d *Device) Unused() []string { return nil }
