// Package cuda implements the contract of package kernels on NVIDIA GPUs, A100 and newer.
//
// Start with [On]; package driver's NewBackend opens a GPU. The Go files check an operation's operands and queue its kernels, the .cu files
// beside them are the kernels and carry the contract's comment. Large products are cuBLAS's, opened at run time. What is embedded in the program are the compiled kernels in the folder compiled, which
// scripts/cuda/kernels.sh makes; no CUDA toolkit is needed to run it.
//
// Kernels in files named _sm90.cu are for Hopper (hopper.cuh has its instructions): large products that add the experts on the way, products with
// few columns, attention. Other cards and the emulator use general kernels and cuBLAS for the same; on Hopper cuBLAS is left with frozen linear
// layers, the output projection, biases, rows of no multiple of 8 elements and float32. A decoding step of most models is one such kernel,
// stream_sm90.cu, which follows a schedule that stream_plan.go makes; other cards and models run it as a recording of many.
//
// A device is what the backend asks for memory, launches and products: a GPU (build tag gpu), or the emulator of
// package emulator, which runs the same kernels' source on the processor, for tests.
//
// Caveats. Activations are bf16 and sums, adapters, gradients and the optimizer float32; Options.Float32 makes everything
// float32, without TF32, for checks. Operations are queued: a fault of one shows at the next Read or Sync, with the name
// of its kernel if a trace was asked for. Nothing adds with atomics: the same call gives the same bits.
package cuda

import (
	"fmt"

	"loratrain/kernels"
)

// Options chooses a device and how it computes. The zero Options is the first GPU in bf16.
type Options struct {
	Device  int  // index, as nvidia-smi counts
	Float32 bool // activations in float32, for checks
}

// Backend implements [kernels.Backend] on one device.
type Backend struct {
	dev       Device
	float     kernels.Type
	info      Info
	workspace kernels.Tensor // what operations may use while they run
	// counters are zero between operations: how many blocks of a shared tile have come, see thin.cuh.
	counters kernels.Tensor
	memory   kernels.Account
	borrowed bool // the device is another backend's
}

// workspaceBytes is the memory that operations may use while they run: a chunk of the logits, parts of long sums. An
// operation that needs more works in pieces.
const workspaceBytes = 256 << 20

// On is the backend on a device that is open already.
func On(dev Device, o Options) (*Backend, error) {
	b := &Backend{dev: dev, float: kernels.BF16, info: dev.Info()}
	if o.Float32 {
		b.float = kernels.F32
	}
	var err error
	if b.workspace, err = b.Alloc(kernels.F32, workspaceBytes/4); err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	if b.counters, err = b.Alloc(kernels.I32, counterCount); err != nil {
		return nil, fmt.Errorf("counters: %w", err)
	}
	return b, nil
}

// Name is what a user types to choose the backend: "cpu" or "cuda".
func (b *Backend) Name() string { return "cuda" }

// String says in one line what computes, for people.
func (b *Backend) String() string {
	name := map[kernels.Type]string{kernels.F32: "float32", kernels.BF16: "bf16"}[b.float]
	return fmt.Sprintf("%s, %s, %.0f GB", b.info.Name, name, float64(b.info.Memory)/1e9)
}

// Float is the type of activations.
func (b *Backend) Float() kernels.Type { return b.float }

// Param is the type of trainable tensors and what belongs to them.
func (b *Backend) Param() kernels.Type { return kernels.F32 }
