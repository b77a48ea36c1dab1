package model

import (
	"fmt"
	"slices"

	"loratrain/kernels"
	"loratrain/router"
)

// Recorded says whether the last step was queued as one recording of its operations, and not one by one.
func (d *Decoder) Recorded() bool { return d.recording != nil }

// PutEach is Put for every place at once, which a backend that is asked for many steps ahead need not wait for. What it says of a stopped
// sequence must be a token, too.
func (d *Decoder) PutEach(ids []int32) error {
	if len(ids) != len(d.lengths) {
		return fmt.Errorf("%d tokens for %d sequences", len(ids), len(d.lengths))
	}
	for seq, n := range d.lengths {
		if err := d.fits(max(n, 0), ids[seq:seq+1]); err != nil {
			return err
		}
	}
	d.base.Backend.Write(d.state.Tokens, kernels.FromSlice(ids, len(ids)))
	for seq, n := range d.lengths {
		d.chosen[seq] = n != stopped
	}
	return nil
}

// StepBytes is what a step like the last one moves at least, but for keys and values: the weights that it reads, of the embedding a row for each
// sequence, and with Merged those that it reads and writes to switch; and the experts in use, each read once however many sequences share it,
// with the routers that are computed. It waits for the step.
func (d *Decoder) StepBytes() (weights, experts int) {
	w := &d.base.weights
	read := func(ts ...kernels.Tensor) {
		for _, t := range ts {
			if !t.None() {
				weights += t.Bytes()
			}
		}
	}
	read(w.Norm, w.Head)
	for _, l := range w.Layers {
		read(l.InputNorm, l.PostNorm, l.QNorm, l.KNorm)
		read(l.W[:]...)
		read(l.Bias[:]...)
	}
	weights += len(d.lengths) * w.Embed.Bytes() / w.Embed.Shape[0]
	if d.serving != nil {
		weights += d.copyBytes()
		if !d.switches() {
			return weights, 0
		}
	}
	return weights, d.expertBytes()
}

// copyBytes is what the copy that experts are merged into adds to a step: it is read in place of the weights, which a switch reads to write it.
func (d *Decoder) copyBytes() int {
	n := 0
	for _, l := range d.merging.Layers() {
		if d.switches() {
			n += 2 * l.Dst.Bytes()
		} else {
			n += l.Dst.Bytes() - l.Src.Bytes()
		}
	}
	return n
}

func (d *Decoder) expertBytes() int {
	if d.adapter == nil {
		return 0
	}
	n, of := 0, d.choices()
	reads := func(t kernels.Tensor) {
		if !t.None() {
			n += t.Bytes()
		}
	}
	g := d.adapter.Spec.Granularity
	if g == router.Token && !d.tabled() {
		reads(d.adapter.router)
	}
	i := 0 // of the router that decides
	for l, layer := range d.adapter.layers {
		if g == router.Block {
			reads(layer.router)
			i = l
		}
		for _, e := range layer.linears {
			if e.a.None() {
				continue
			}
			reads(e.router)
			n += of(i) * (e.a.Bytes() + e.b.Bytes()) / e.a.Shape[0]
			if g == router.Layer {
				i++
			}
		}
	}
	return n
}

// choices counts the experts that all sequences together chose in the last step at a router.
func (d *Decoder) choices() (of func(at int) int) {
	if d.adapter.Spec.Granularity == router.None {
		return func(int) int { return 1 }
	}
	var all [][][]int32
	for seq := range d.lengths {
		if list := d.Experts(seq); list != nil {
			all = append(all, list)
		}
	}
	return func(at int) int {
		var ids []int32
		for _, list := range all {
			ids = append(ids, list[at]...)
		}
		slices.Sort(ids)
		return len(slices.Compact(ids))
	}
}
