//go:build gpu

package driver

import (
	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// NewBackend is the backend of package cuda on the GPU that o chooses.
func NewBackend(o cuda.Options) (kernels.Backend, error) {
	d, err := Open(o.Device)
	if err != nil {
		return nil, err
	}
	b, err := cuda.On(d, o)
	if err != nil {
		d.Close()
		return nil, err
	}
	return b, nil
}
