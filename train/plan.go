package train

import (
	"fmt"
	"strings"

	"loratrain/datasets"
)

// Describe says what the run would train and the memory it needs at its worst moment, compiling its largest step to know.
func (p *Prepared) Describe() (string, error) {
	r, c, w := p.r, p.r.cfg, &strings.Builder{}
	m, err := r.planMemory()
	if err != nil {
		return "", err
	}
	a, s := r.Base.Arch, r.bank.Spec
	tokens, targets := countTokens(r.data.seqs)
	all, _ := r.Base.Size()
	all += r.bank.Trainable()
	fmt.Fprintf(w, "base       %s: %s, %d layers, width %d, vocabulary %d\n", r.Base.Name, a.Family, a.Layers, a.Width, a.Vocab)
	fmt.Fprintf(w, "adapter    %s: %d experts of rank %d, shared rank %d, alpha %g, on %v\n", s.Granularity, s.Experts, s.Rank, s.Shared, s.Alpha, s.Targets)
	fmt.Fprintf(w, "trained    %d of %d parameters (%.2f %%)\n", r.bank.Trainable(), all, 100*float64(r.bank.Trainable())/float64(all))
	fmt.Fprintf(w, "data       %d sequences, %d tokens, %d learned, %d cut to %d tokens\n", len(r.data.seqs), tokens, targets, r.data.truncated, r.data.encoder.MaxLength)
	for _, t := range r.data.tests {
		fmt.Fprintf(w, "measured   %s: %d items\n", t.Name, len(t.Items)+len(t.Pairs))
	}
	fmt.Fprintf(w, "steps      %d of %d sequences, %d an epoch; learning rate %g, %s, warmup %g\n", r.total, c.Train.Batch, r.sampler.StepsPerEpoch(), c.Train.LR, c.Train.Schedule, c.Train.WarmupRatio)
	fmt.Fprintf(w, "backend    %v\n", r.Backend)
	kept := ""
	if c.Train.Recompute {
		kept = " with blocks recomputed"
	}
	fmt.Fprintf(w, "memory     %s: weights %s, adapter with gradients and moments %s, activations of %d tokens %s%s",
		size(m.all()), size(m.weights), size(m.trainable), m.tokens, size(m.activations), kept)
	if m.merged > 0 {
		fmt.Fprintf(w, "; to verify the export %s", size(m.merged))
	}
	fmt.Fprintln(w)
	return w.String(), nil
}

func countTokens(seqs []datasets.Sequence) (tokens, targets int) {
	for _, s := range seqs {
		tokens += len(s.IDs)
		targets += len(s.IDs) - s.Prompt
	}
	return tokens, targets
}
