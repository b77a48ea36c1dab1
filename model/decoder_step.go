package model

import (
	"cmp"
	"fmt"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// Step runs the chosen token of every sequence that is neither stopped nor full, and chooses the one that follows.
func (d *Decoder) Step() error {
	for seq, n := range d.lengths {
		if n == 0 && !d.chosen[seq] {
			return fmt.Errorf("sequence %d has no token to run", seq)
		}
		d.release(seq)
	}
	if err := d.run(); err != nil {
		d.setLengths()
		d.forgetMerged()
		return err
	}
	for seq, n := range d.lengths {
		if n >= 0 && n < d.room {
			d.lengths[seq]++
		}
	}
	return nil
}

// run does a step: at once the first time, when memory is taken that others find again, and from a recording later if the backend can.
func (d *Decoder) run() error {
	b := d.base.Backend
	capturer, ok := b.(kernels.Capturer)
	if !ok || !d.warm {
		d.releaseStep()
		err := graph.Catch(b, d.once)
		d.warm = err == nil
		return err
	}
	if d.recording == nil {
		d.releaseStep()
		var failed error
		err := graph.Catch(b, func() { d.recording, failed = capturer.Capture(d.once) })
		if err = cmp.Or(err, failed); err != nil {
			d.recording = nil
			return fmt.Errorf("recording a step: %w", err)
		}
	}
	d.recording.Run()
	return nil
}

// once is a step's operations.
func (d *Decoder) once() {
	d.advance()
	if d.switches() {
		d.switchExperts()
	}
	if d.whole != nil {
		d.runWhole()
	} else {
		d.pass()
	}
	d.choose()
}

// advance finds out what the pass needs.
func (d *Decoder) advance() {
	var ids, gates kernels.Tensor
	if d.tabled() {
		ids, gates = d.adapter.ids, d.adapter.gates
	}
	d.base.Backend.Advance(d.state.Sequences, ids, gates)
}

// pass computes the logits of every sequence from its token.
func (d *Decoder) pass() {
	values, p := d.values, d.stepPass()
	var ad Adapter
	if d.serving != nil {
		values = d.serving
	} else if p != nil {
		ad = p
	}
	s := &d.state
	hidden := Hidden(d.x, values, ad, Inputs{
		IDs: d.bind(s.Tokens), Pos: d.bind(s.Pos), Spans: d.bind(s.Spans), Cache: d.cache, Rows: d.bind(s.Rows),
	})
	d.project(s.logits, hidden.Tensor())
	d.x.Done(hidden)
	d.step = p
}

// bind makes a tensor of the state a value of a pass.
func (d *Decoder) bind(t kernels.Tensor) graph.V { return d.x.Bind("state", t) }

// stepPass is the adapter in a step, or nil.
func (d *Decoder) stepPass() *servedPass {
	if d.adapter == nil {
		return nil
	}
	p := &servedPass{Served: d.adapter, tokens: len(d.lengths)}
	if g := d.adapter.Spec.Granularity; d.tabled() || g == router.None {
		p.ids, p.weights = d.bind(d.state.Experts), d.bind(d.state.Weights)
		if g != router.None {
			p.choices = append(p.choices, p.ids)
		}
	}
	return p
}

// project computes logits (T, V) of the last layer's states.
func (d *Decoder) project(logits, hidden kernels.Tensor) {
	none := kernels.Tensor{}
	d.base.Backend.Linear(logits, hidden, d.values.Head.Tensor(), none, none)
}

// choose draws every sequence's next token.
func (d *Decoder) choose() {
	d.base.Backend.Sample(d.state.Tokens, d.state.logits, d.state.U, d.rule)
}

// forgetRecording makes the next step be recorded again.
func (d *Decoder) forgetRecording() {
	if d.recording != nil {
		d.recording.Close()
		d.recording = nil
	}
}

// releaseStep gives back what the last step left.
func (d *Decoder) releaseStep() {
	if d.step != nil {
		d.step.Release(d.x)
		d.step = nil
	}
}
