package train

import (
	"fmt"
	"slices"
	"strings"

	"loratrain/datasets"
	"loratrain/model"
)

// Describe says what the run would train and the memory it needs, compiling its largest step to know.
func (p *Prepared) Describe() (string, error) {
	r, c, w := p.r, p.r.cfg, &strings.Builder{}
	steps := r.sampler.StepsPerEpoch()
	largest := 0
	for k := range min(steps, r.total) {
		batches, err := r.data.batches(r.sampler.Step(k), c.Train.MicroTokens)
		if err != nil {
			return "", err
		}
		for _, b := range batches {
			largest = max(largest, len(b.IDs))
		}
	}
	activations, trainable, err := r.stepper.Plan([]int{largest})
	if err != nil {
		return "", err
	}
	a, s := r.Base.Arch, r.bank.Spec
	tokens, targets := countTokens(r.data.seqs)
	all, weights := r.Base.Size()
	all += r.bank.Trainable()
	fmt.Fprintf(w, "base       %s: %s, %d layers, width %d, vocabulary %d\n", r.Base.Name, a.Family, a.Layers, a.Width, a.Vocab)
	fmt.Fprintf(w, "adapter    %s: %d experts of rank %d, shared rank %d, alpha %g, on %v\n", s.Granularity, s.Experts, s.Rank, s.Shared, s.Alpha, s.Targets)
	fmt.Fprintf(w, "trained    %d of %d parameters (%.2f %%)\n", r.bank.Trainable(), all, 100*float64(r.bank.Trainable())/float64(all))
	fmt.Fprintf(w, "data       %d sequences, %d tokens, %d learned, %d cut to %d tokens\n", len(r.data.seqs), tokens, targets, r.data.truncated, r.data.encoder.MaxLength)
	for _, t := range r.data.tests {
		fmt.Fprintf(w, "measured   %s: %d items\n", t.Name, len(t.Items)+len(t.Pairs))
	}
	fmt.Fprintf(w, "steps      %d of %d sequences, %d an epoch; learning rate %g, %s, warmup %g\n", r.total, c.Train.Batch, steps, c.Train.LR, c.Train.Schedule, c.Train.WarmupRatio)
	fmt.Fprintf(w, "backend    %v\n", r.Backend)
	merged := mergedBytes(r)
	fmt.Fprintf(w, "memory     %s: weights %s, adapter with gradients and moments %s, activations of %d tokens %s, merged weights to verify the export %s\n",
		size(weights+trainable+activations+merged), size(weights), size(trainable), largest, size(activations), size(merged))
	return w.String(), nil
}

func countTokens(seqs []datasets.Sequence) (tokens, targets int) {
	for _, s := range seqs {
		tokens += len(s.IDs)
		targets += len(s.IDs) - s.Prompt
	}
	return tokens, targets
}

// mergedBytes is what the copies of weights take that the verification of an export merges experts into: the shared one once,
// the two of a token in the mode that does.
func mergedBytes(r *run) int {
	spec, copies, n := r.bank.Spec, 0, 0
	if slices.Contains(model.Modes(spec.Granularity), model.Merged) {
		copies++
	}
	if spec.Shared > 0 {
		copies++
	}
	for _, l := range r.Base.Weights.Layers {
		for _, t := range spec.Targets {
			n += l.W[t].Len() * r.Backend.Float().Size()
		}
	}
	return copies * n
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
