package main

import (
	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// computeFlags choose what computes. Every command that computes has them.
type computeFlags struct {
	backend string
	threads int
}

func (f *computeFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.backend, "backend", "auto", "what computes: cpu or cuda; auto: cuda where the program and the machine have it")
	cmd.Flags().IntVar(&f.threads, "threads", 0, "processor threads; 0: as many as there are")
}

func (f *computeFlags) open() (kernels.Backend, error) { return openBackend(f.backend, f.threads) }

// openBackend makes the backend of a name.
func openBackend(name string, threads int) (kernels.Backend, error) {
	switch name {
	case "auto", "cpu":
	case "cuda":
		return nil, usagef("build it with -tags gpu, or use --backend cpu", "this program was built without GPU support")
	default:
		return nil, usagef("--backend takes auto, cpu or cuda", "unknown backend %q", name)
	}
	if threads < 0 || threads > 4096 {
		return nil, usagef("leave --threads out to use all processors", "--threads %d: expected 0 to 4096", threads)
	}
	return cpu.New(cpu.Options{Threads: threads})
}
