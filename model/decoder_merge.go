package model

import (
	"fmt"

	"loratrain/kernels"
	"loratrain/router"
)

// mergedChoice is what the serving copy holds.
type mergedChoice struct {
	set     bool
	ids     [router.Top]int32
	weights [router.Top]float32
}

// switches says whether each step merges its token's experts.
func (d *Decoder) switches() bool {
	return d.adapter != nil && d.mode == Merged && d.adapter.Spec.Granularity == router.Token
}

// prepareMerge makes the serving copy.
func (d *Decoder) prepareMerge() error {
	s, b := d.adapter, d.base.Backend
	copied, jobs, err := d.base.copyTargets(s.Spec.Targets, func(l int, t Target) servedLinear { return s.layers[l].linears[t] })
	if err == nil {
		if d.merging, err = b.PrepareMerge(jobs); err != nil {
			freeCopies(b, jobs)
			err = headline{err}
		}
	}
	if err != nil {
		return fmt.Errorf("mode merged: %w\nuse --mode fused, which needs no copy", err)
	}
	d.serving = copied.Bind(d.x)
	if s.Spec.Granularity == router.None {
		return s.merge(d.x, d.merging, []int32{0}, []float32{1})
	}
	return nil
}

// switchExperts merges the experts of the token that is run next, unless they are those in force. It waits for the token.
func (d *Decoder) switchExperts() error {
	if d.lengths[0] == stopped {
		return nil
	}
	token := kernels.NewHost(kernels.I32, 1)
	d.base.Backend.Read(token, d.state.Tokens)
	want := mergedChoice{set: true}
	want.ids, want.weights = d.adapter.Table(kernels.Slice[int32](token)[0])
	if want == d.merged {
		return nil
	}
	d.merged = mergedChoice{} // until it has worked
	if err := d.adapter.merge(d.x, d.merging, want.ids[:], want.weights[:]); err != nil {
		return err
	}
	d.merged = want
	return nil
}
