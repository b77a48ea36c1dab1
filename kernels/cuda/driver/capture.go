//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"errors"
	"fmt"

	"loratrain/kernels"
)

// recording is a CUDA graph, and the operations in it, which a trace or a profile runs one by one.
type recording struct {
	d    *device
	name string // in errors
	ops  []operation
	exec C.CUgraphExec
	err  error // what could not be recorded
}

// Capture records what f queues instead of running it, to be run many times.
func (d *device) Capture(f func()) (kernels.Recording, error) {
	if d.fault != nil {
		return nil, d.fault
	}
	if d.recording != nil {
		return nil, errors.New("a capture within a capture")
	}
	d.flush()
	r := &recording{d: d}
	// Tracing waits after each kernel, which a graph does not allow: then the operations are all there is.
	if !d.trace {
		if err := result(C.queue_begin_capture(d.q)); err != nil {
			return nil, d.failure("capture", err)
		}
	}
	d.recording = r
	ended := false
	defer func() {
		if !ended {
			r.end() // f panicked: the stream must not stay in a capture
			r.Close()
		}
	}()
	f()
	ended = true
	n := len(r.ops)
	if err := r.end(); err != nil {
		r.Close()
		return nil, fmt.Errorf("capture of %d operations: %w", n, err)
	}
	if n > 0 {
		r.name = fmt.Sprintf("a recording of %d launches from %s to %s", n, r.ops[0].name, r.ops[n-1].name)
	}
	return r, nil
}

// record adds an operation to the recording that is being made.
func (d *device) record(op operation) {
	r := d.recording
	r.ops = append(r.ops, op)
	if d.trace || r.err != nil {
		return
	}
	if err := op.run(); err != nil {
		r.err = refusal(op.name, err)
	}
}

// end leaves the capture and says what went wrong in it.
func (r *recording) end() error {
	d := r.d
	d.recording = nil
	var err error
	if !d.trace {
		err = result(C.queue_end_capture(d.q, &r.exec))
	}
	if r.err != nil {
		return r.err
	}
	if isFault(err) {
		d.fail("", err)
		return d.fault
	}
	return err
}

// Run queues all operations.
func (r *recording) Run() {
	d := r.d
	if d.fault != nil || len(r.ops) == 0 {
		return
	}
	if d.trace || d.keeps() {
		for _, op := range r.ops {
			d.queue(op.name, op.run)
		}
		return
	}
	d.ran(r.name, result(C.queue_replay(d.q, r.exec)))
}

// Close gives the graph back when it has run.
func (r *recording) Close() {
	if r.exec != nil && r.d.fault == nil {
		C.queue_sync(r.d.q)
		C.queue_free_graph(r.d.q, r.exec)
	}
	r.exec, r.ops = nil, nil
}
