package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// computeFlags choose what computes. Every command that computes has them.
type computeFlags struct{ compute }

func (f *computeFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.backend, "backend", backendAuto, "what computes: cpu or cuda; auto: cuda where the program and the machine have it")
	flags.IntVar(&f.threads, "threads", 0, "processor threads; 0: as many as there are")
	flags.IntVar(&f.device, "device", 0, "which GPU, as nvidia-smi counts")
	flags.BoolVar(&f.float32, "float32", false, "compute in float32 on a GPU too, for checks; slow")
}

// open makes the backend, and says on standard error what a user may not expect.
func (f *computeFlags) open(cmd *cobra.Command) (kernels.Backend, error) { return f.compute.open(cmd) }

// The names of backends.
const (
	backendAuto = "auto"
	backendCPU  = "cpu"
	backendCUDA = "cuda"
)

// compute is what a user wants to compute with.
type compute struct {
	backend string
	threads int  // of the processor; 0: all
	device  int  // of the GPUs
	float32 bool // on a GPU
}

// openCUDA opens a GPU; nil where the program was built without.
var openCUDA func(device int, float32 bool) (kernels.Backend, error)

// open makes the backend. One that was not asked for by name is the processor where a GPU cannot be had; in a program that was
// built for one the user is told why.
func (c compute) open(cmd *cobra.Command) (kernels.Backend, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	// A device is a wish for a GPU, which nothing else fulfils.
	if c.backend == backendCUDA || c.backend == backendAuto && c.device > 0 {
		return openGPU(c)
	}
	if c.backend == backendAuto && openCUDA != nil {
		b, err := openGPU(c)
		if err == nil {
			return b, nil
		}
		if reason, _, _ := strings.Cut(err.Error(), "\n"); !quiet(cmd) {
			fmt.Fprintf(cmd.ErrOrStderr(), "computing on the CPU: %s\n", reason)
		}
	}
	return cpu.New(cpu.Options{Threads: c.threads})
}

func openGPU(c compute) (kernels.Backend, error) {
	if openCUDA == nil {
		return nil, usagef("build it with make gpu, or use --backend cpu", "this program was built without GPU support")
	}
	return openCUDA(c.device, c.float32)
}

func (c compute) check() error {
	switch {
	case c.backend != backendAuto && c.backend != backendCPU && c.backend != backendCUDA:
		return usagef("--backend takes auto, cpu or cuda", "unknown backend %q", c.backend)
	case c.threads < 0 || c.threads > 4096:
		return usagef("leave --threads out to use all processors", "--threads %d: expected 0 to 4096", c.threads)
	case c.device < 0:
		return usagef("nvidia-smi -L lists them, from 0 on", "--device %d: expected the index of a GPU", c.device)
	case c.backend == backendCPU && c.device > 0:
		return usagef("leave --device out, or use --backend cuda", "--device %d: the CPU computes, there is no choice of devices", c.device)
	}
	return nil
}
