package model

import (
	"fmt"
	"slices"

	"loratrain/kernels"
	"loratrain/router"
)

// switches says whether each step merges its token's experts.
func (d *Decoder) switches() bool {
	return d.adapter != nil && d.mode == Merged && d.adapter.Spec.Granularity == router.Token
}

// beside says whether each token's experts are applied beside the weights and known before the first layer.
func (d *Decoder) beside() bool { return d.adapter.chosen() > 0 && d.mode == Fused }

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
	d.copied, d.serving = copied, copied.Bind(d.x)
	d.forgetMerged()
	if s.Spec.Granularity == router.None {
		return s.merge(d.x, d.merging, []int32{0}, []float32{1})
	}
	return nil
}

// switchExperts merges the experts of the token that is run, which Advance looked up, unless they are those in force.
func (d *Decoder) switchExperts() {
	s := &d.state
	d.base.Backend.Merge(d.merging, s.Experts.Reshape(router.Top), s.Weights.Reshape(router.Top), s.force, d.adapter.Spec.Scale())
}

// forgetMerged makes the next step merge, whatever the copy holds.
func (d *Decoder) forgetMerged() {
	if f := d.state.force; !f.None() {
		d.base.Backend.Write(f, kernels.FromSlice(slices.Repeat([]int32{-1}, f.Len()), f.Len()))
	}
}
