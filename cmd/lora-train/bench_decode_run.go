package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/model"
	"loratrain/train"
)

// decodeMeasurement is a measurement of decoding on its way.
type decodeMeasurement struct {
	f        *benchDecodeFlags
	b        kernels.Backend
	ctx      context.Context
	progress train.Progress
	out      decodeBench

	placed *model.Placed
	export *checkpoints.Serving // nil: experts are random
	served *model.Served        // of the last case that had experts
	spec   decodeCase           // what served is, if it is random
}

// warmSteps make a step's memory and its recording, and run that once.
const warmSteps = 3

// room is how many tokens a round adds to a sequence at most.
func (m *decodeMeasurement) room() int { return max(m.f.steps, warmSteps) }

func (m *decodeMeasurement) run() error {
	m.out = decodeBench{Backend: m.b.String(), Rounds: m.f.rounds, Steps: m.f.steps}
	var err error
	if m.out.Copy, err = measureCopy(m.b); err != nil {
		return err
	}
	a, err := m.open()
	if err != nil {
		return err
	}
	defer a.Close() //nolint:errcheck // mapped files that were only read
	var config *checkpoints.Config
	if m.export = a.export; m.export != nil {
		config = &m.export.Config
	}
	cases, err := m.f.cases(config)
	if err != nil {
		return err
	}
	return m.measure(a, cases)
}

// measure measures each case. One that fails, as for want of memory, leaves the others alone.
func (m *decodeMeasurement) measure(a adapted, cases []decodeCase) error {
	if err := m.place(a, cases); err != nil {
		return err
	}
	defer m.release()
	for i, c := range cases {
		row, err := m.row(c)
		if ended := m.ctx.Err(); ended != nil {
			return ended
		}
		if err != nil {
			row.Failed, row.err = err.Error(), err
		} else if base := m.out.backboneOf(c); base != nil {
			row.OfBackbone = row.MS.Median / base.MS.Median
		}
		m.out.Rows = append(m.out.Rows, row)
		m.progress.Log(fmt.Sprintf("%d of %d: %v: %s", i+1, len(cases), c, row.summary()))
	}
	return nil
}

// open opens the files that are named; none for a shape.
func (m *decodeMeasurement) open() (a adapted, err error) {
	if m.f.model == "" && m.f.adapter == "" {
		m.out.Model = cmp.Or(m.f.shape, "tiny")
		return a, nil
	}
	if a, err = openAdapted(m.f.model, m.f.adapter); err == nil {
		m.out.Model, m.out.Adapter = a.base.Name, m.f.adapter
	}
	return a, err
}

// place brings the model to the backend.
func (m *decodeMeasurement) place(a adapted, cases []decodeCase) error {
	positions := 0
	for _, c := range cases {
		positions = max(positions, c.Context+m.room())
	}
	if a.base != nil {
		var err error
		m.placed, err = model.Place(m.b, a.base.Arch, a.base.Weights, positions)
		return err
	}
	arch, err := model.ShapeOf(m.out.Model)
	if err == nil {
		m.placed, err = model.PlaceRandom(m.b, arch, 1, positions)
	}
	return err
}

// adapter is the experts of a case: those of the case before, if they are the same.
func (m *decodeMeasurement) adapter(c decodeCase) (*model.Served, error) {
	if c.Mode == backbone {
		return nil, nil
	}
	kind := decodeCase{Granularity: c.Granularity, Experts: c.Experts, Rank: c.Rank}
	if m.served != nil && m.spec == kind {
		return m.served, nil
	}
	m.release()
	var err error
	if m.export != nil {
		m.served, err = model.Serve(m.placed, m.export)
	} else {
		m.served, err = model.ServeRandom(m.placed, c.spec(), 2)
	}
	m.spec = kind
	return m.served, err
}

func (m *decodeMeasurement) release() {
	if m.served != nil {
		m.served.Close()
		m.served = nil
	}
}

// row measures a case.
func (m *decodeMeasurement) row(c decodeCase) (decodeRow, error) {
	row := decodeRow{decodeCase: c}
	served, err := m.adapter(c)
	if err != nil {
		return row, err
	}
	d, err := model.NewDecoder(m.placed, served, model.Mode(c.Mode), c.Context+m.room(), c.Batch)
	if err != nil {
		return row, err
	}
	defer d.Close()
	s := decodeSteps{m: m, c: c, d: d, random: rand.New(rand.NewPCG(3, 4))}
	if _, err := s.round(warmSteps); err != nil {
		return row, err
	}
	var times []float64
	for range m.f.rounds {
		seconds, err := s.round(m.f.steps)
		if err != nil {
			return row, err
		}
		times = append(times, 1e3*seconds/float64(m.f.steps))
		weights, experts := d.StepBytes()
		row.Weights, row.ExpertBytes = float64(weights), row.ExpertBytes+float64(experts)/float64(m.f.rounds)
	}
	if err := s.sound(); err != nil {
		return row, err
	}
	row.Cache = m.cacheBytes(c)
	row.runsOf(d)
	row.finish(spreadOf(times), m.out.Copy)
	return row, m.b.Sync()
}

// cacheBytes is what a step reads and writes of keys and values, the mean of a round's.
func (m *decodeMeasurement) cacheBytes(c decodeCase) float64 {
	a, tokens := m.placed.Arch, 0
	for step := range m.f.steps {
		sees := c.Context + step + 1
		if a.Window > 0 {
			sees = min(sees, a.Window)
		}
		tokens += sees + 1
	}
	return float64(model.CacheBytes(m.b.Float(), a, c.Batch, tokens)) / float64(m.f.steps)
}

// decodeSteps is a case's steps.
type decodeSteps struct {
	m      *decodeMeasurement
	c      decodeCase
	d      *model.Decoder
	random *rand.Rand
}

// round starts all sequences anew and measures steps behind their prompts.
func (s *decodeSteps) round(steps int) (seconds float64, err error) {
	for seq := range s.c.Batch {
		if err := cmp.Or(s.m.ctx.Err(), s.d.Start(seq, 0, s.tokens(s.c.Context)...)); err != nil {
			return 0, err
		}
	}
	lists := make([][]int32, steps)
	for i := range lists {
		lists[i] = s.tokens(s.c.Batch)
	}
	if err := s.m.b.Sync(); err != nil {
		return 0, err
	}
	started := time.Now()
	for _, ids := range lists {
		if err := cmp.Or(s.m.ctx.Err(), s.d.PutEach(ids)); err != nil {
			return 0, err
		}
		if err := s.d.Step(); err != nil {
			return 0, err
		}
	}
	err = s.m.b.Sync()
	return time.Since(started).Seconds(), err
}

// tokens is n random tokens.
func (s *decodeSteps) tokens(n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = s.random.Int32N(int32(s.m.placed.Arch.Vocab))
	}
	return ids
}

// sound refuses figures of steps that computed what is no number.
func (s *decodeSteps) sound() error {
	for seq := range s.c.Batch {
		for _, x := range s.d.Logits(seq) {
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("sequence %d of %d: the model computes %v", seq, s.c.Batch, x)
			}
		}
	}
	return s.m.b.Sync()
}

// failure is the error of cases that were not measured, if there are any.
func (o *decodeBench) failure() error {
	var first *decodeRow
	n := 0
	for i := range o.Rows {
		if o.Rows[i].err != nil {
			first = cmp.Or(first, &o.Rows[i])
			n++
		}
	}
	switch {
	case n == 0:
		return nil
	case len(o.Rows) == 1:
		return first.err
	}
	return fmt.Errorf("%d of %s not measured; %v: %w", n, plural(len(o.Rows), "row"), first.decodeCase, first.err)
}
