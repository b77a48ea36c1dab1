package budget

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"loratrain/kernels"
)

// Rates is what a machine does at best.
type Rates struct {
	Flops float64 // of matrix products, a second
	Bytes float64 // read and written, a second
}

// Work is what operations must do.
type Work struct {
	Flops float64 `json:"flops"` // of matrix products
	Bytes float64 `json:"bytes"`
}

// Limit is the least seconds that work takes: of computing or of moving, the longer.
func (r Rates) Limit(w Work) float64 { return max(w.Flops/r.Flops, w.Bytes/r.Bytes) }

// Row is all calls of one operation.
type Row struct {
	Op    string `json:"op"`
	Calls int    `json:"calls"`
	Work
	Limit   float64 `json:"limit_seconds"` // the sum of the calls' limits
	Seconds float64 `json:"seconds"`
}

// Kernel is all launches of one kernel.
type Kernel struct {
	Name     string  `json:"kernel"`
	Op       string  `json:"op"` // that asked for it
	Launches int     `json:"launches"`
	Seconds  float64 `json:"seconds"`
}

// Meter is a backend that measures another one's operations.
type Meter struct {
	kernels.Storage
	b        kernels.Backend
	rates    Rates
	profiler kernels.Profiler // nil: operations are timed by the clock
	on       bool
	err      error // the first that profiling met
	calls    []call
}

// call is one call of an operation.
type call struct {
	op string
	Work
	seconds  float64        // measured by the clock, if there are no launches
	launches []kernels.Took // that the backend told of
}

var _ kernels.Backend = (*Meter)(nil)

// New measures b's operations and holds them against what the machine does at best. Nothing is measured before Start. The
// Meter cannot record operations: see [kernels.Capturer].
func New(b kernels.Backend, r Rates) *Meter {
	m := &Meter{Storage: b, b: b, rates: r}
	m.profiler, _ = b.(kernels.Profiler)
	return m
}

// Start forgets what was measured and measures from here on.
func (m *Meter) Start() { m.on, m.calls = true, nil }

// Stop ends measuring.
func (m *Meter) Stop() { m.on = false }

// Together replaces the times of launches that ran one operation at a time by those that the same launches took in a step
// that ran as a whole, as [kernels.Profiler] told of them.
func (m *Meter) Together(took []kernels.Took) error {
	all := 0
	for _, c := range m.calls {
		all += len(c.launches)
	}
	if len(took) != all {
		return fmt.Errorf("a step launched %d kernels, and %d when its operations ran one at a time", len(took), all)
	}
	for _, c := range m.calls {
		copy(c.launches, took)
		took = took[len(c.launches):]
	}
	return nil
}

// Rows is the operations that were called between Start and Stop, those that took longest first.
func (m *Meter) Rows() []Row {
	byOp := map[string]*Row{}
	for _, c := range m.calls {
		r := byOp[c.op]
		if r == nil {
			r = &Row{Op: c.op}
			byOp[c.op] = r
		}
		r.Calls++
		r.Work = r.and(c.Work)
		r.Limit += m.rates.Limit(c.Work)
		r.Seconds += c.seconds
		for _, t := range c.launches {
			r.Seconds += t.Seconds
		}
	}
	rows := make([]Row, 0, len(byOp))
	for _, r := range byOp {
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Op, b.Op)) })
	return rows
}

// Kernels is the kernels that these operations launched, those that took longest first; none if the backend cannot say.
func (m *Meter) Kernels() []Kernel {
	byName := map[[2]string]*Kernel{}
	for _, c := range m.calls {
		for _, t := range c.launches {
			key := [2]string{c.op, t.Name}
			k := byName[key]
			if k == nil {
				k = &Kernel{Name: t.Name, Op: c.op}
				byName[key] = k
			}
			k.Launches++
			k.Seconds += t.Seconds
		}
	}
	list := make([]Kernel, 0, len(byName))
	for _, k := range byName {
		list = append(list, *k)
	}
	slices.SortFunc(list, func(a, b Kernel) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Op, b.Op))
	})
	return list
}

// Sync implements [kernels.Storage].
func (m *Meter) Sync() error {
	err := cmp.Or(m.err, m.b.Sync())
	m.err = nil
	return err
}

// Close leaves the backend that is measured open: a Meter has nothing of its own.
func (m *Meter) Close() error { return nil }

// Copy implements [kernels.Storage].
func (m *Meter) Copy(dst, src kernels.Tensor) {
	m.do("Copy", moves(dst, src), func() { m.b.Copy(dst, src) })
}

// Zero implements [kernels.Storage].
func (m *Meter) Zero(t kernels.Tensor) {
	m.do("Zero", moves(t), func() { m.b.Zero(t) })
}

// do runs an operation and notes what it took.
func (m *Meter) do(op string, w Work, f func()) {
	if !m.on {
		f()
		return
	}
	c := call{op: op, Work: w}
	if m.profiler != nil {
		var err error
		c.launches, err = m.profiler.Profile(f)
		m.err = cmp.Or(m.err, err)
	} else {
		m.err = cmp.Or(m.err, m.b.Sync())
		started := time.Now()
		f()
		m.err = cmp.Or(m.err, m.b.Sync())
		c.seconds = time.Since(started).Seconds()
	}
	m.calls = append(m.calls, c)
}
