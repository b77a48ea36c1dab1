package train

import (
	"fmt"
	"slices"
	"strings"

	"loratrain/datasets"
	"loratrain/kernels"
	"loratrain/model"
)

// memory is what a run takes of its backend's, in bytes.
type memory struct {
	tokens      int // of the largest batch
	weights     int
	trainable   int // adapter, gradients and moments
	activations int
	merged      int // for the verification of the export, when there are no activations any more
}

func (m memory) all() int { return m.weights + m.trainable + max(m.activations, m.merged) }

// planMemory says what the run will take; the program of its largest batch is compiled for it, nothing large is allocated.
func (r *run) planMemory() (memory, error) {
	if r.memory.tokens > 0 {
		return r.memory, nil
	}
	sizes, err := r.batchSizes()
	if err != nil {
		return memory{}, err
	}
	m := memory{tokens: slices.Max(sizes), weights: r.weightBytes(), merged: mergedBytes(r)}
	if m.activations, m.trainable, err = r.stepper.Plan(sizes); err == nil {
		r.memory = m
	}
	return m, err
}

func (r *run) weightBytes() int {
	return model.PlacedBytes(r.Backend, r.Base.Arch, r.Base.Weights, r.data.encoder.MaxLength)
}

// plannedSteps is how many steps are looked at to know which batches there will be.
const plannedSteps = 1 << 14

// batchSizes are the token counts that the run's batches are padded to. Of a long run that did not meet all by then, the
// largest possible one is taken for granted.
func (r *run) batchSizes() ([]int, error) {
	all := datasets.Sizes(r.cfg.Train.MicroTokens)
	met := map[int]bool{}
	for k := 0; k < min(r.total, plannedSteps) && len(met) < len(all); k++ {
		batches, err := r.data.batches(r.sampler.Step(k), r.cfg.Train.MicroTokens)
		if err != nil {
			return nil, err
		}
		for _, b := range batches {
			met[len(b.IDs)] = true
		}
	}
	if r.total > plannedSteps {
		met[slices.Max(all)] = true
	}
	return slices.DeleteFunc(all, func(n int) bool { return !met[n] }), nil
}

// mergedBytes is what the copy of weights takes, in float32 on a GPU, that the verification of an export merges the shared expert into.
func mergedBytes(r *run) int {
	if r.bank.Spec.Shared == 0 {
		return 0
	}
	typ := r.Backend.Float()
	if _, ok := r.Backend.(kernels.Exacter); ok {
		typ = kernels.F32
	}
	return model.CopyBytes(typ, r.Base.Arch, r.bank.Spec.Targets)
}

// checkWeights refuses, before anything is placed, what cannot fit whatever its batches are.
func (r *run) checkWeights() error {
	return r.check(memory{weights: r.weightBytes(), trainable: trainableBytes(r.Backend, r.bank)}, 0)
}

// reserve allocates what steps will need, or says that it is not there.
func (r *run) reserve() error {
	m, err := r.planMemory()
	if err != nil {
		return err
	}
	if err := r.check(m, m.weights+r.stepper.allocated()); err != nil {
		return err
	}
	return r.stepper.Reserve()
}

// check compares what is needed with what there is: what is free, and what the run holds already.
func (r *run) check(m memory, held int) error {
	limited, ok := r.Backend.(kernels.Limited)
	if !ok {
		return nil
	}
	there, ok := limited.FreeMemory()
	if !ok {
		return nil
	}
	var parts []string
	if r.placesCopies() {
		parts = append(parts, "weights "+size(m.weights))
	} else {
		held = max(0, held-m.weights)
		m.weights = 0
	}
	there += held
	if m.all() <= there {
		return nil
	}
	parts = append(parts, "adapter with gradients and moments "+size(m.trainable))
	if m.weights > there {
		return fmt.Errorf("the weights need %s of memory, and there are %s\nuse a smaller model or a GPU with more memory, or end other programs on this one",
			size(m.weights), size(there))
	}
	what, lower := "training", []string{"adapter.rank", "adapter.experts"}
	switch {
	case m.tokens == 0:
	case m.merged > m.activations:
		what, parts = "verifying the export", append(parts, "merged weights "+size(m.merged))
		lower = []string{"the number of adapter.targets", "adapter.shared_rank to 0"}
	default:
		what, parts = fmt.Sprintf("a step of %d tokens", m.tokens), append(parts, "activations "+size(m.activations))
		lower = append([]string{"train.micro_tokens"}, lower...)
	}
	advice := "lower " + strings.Join(lower[:len(lower)-1], ", ") + " or " + lower[len(lower)-1]
	if m.tokens > 0 && m.activations >= m.merged && !r.cfg.Train.Recompute {
		advice = "set train.recompute to true, or " + advice
	}
	return fmt.Errorf("%s needs %s of memory (%s), and there are %s\n%s", what, size(m.all()), strings.Join(parts, ", "), size(there), advice)
}

// placesCopies reports whether the backend holds weights in memory of its own, and not where they were read.
func (r *run) placesCopies() bool {
	t, err := r.Backend.Place(kernels.NewHost(kernels.F32, 1))
	if err != nil {
		return true
	}
	_, host := t.Mem.(kernels.Host)
	if !host {
		r.Backend.Free(t)
	}
	return !host
}

// size is bytes in the unit that suits them.
func size(bytes int) string {
	const mib = 1 << 20
	if bytes < 10*mib {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/mib)
	}
	if bytes < 4096*mib {
		return fmt.Sprintf("%.0f MiB", float64(bytes)/mib)
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1024*mib))
}
