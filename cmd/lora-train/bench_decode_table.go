package main

import (
	"fmt"
	"strings"

	"loratrain/model"
)

// decodeBench is what --json of bench decode writes.
type decodeBench struct {
	Backend string      `json:"backend"`
	Model   string      `json:"model"`
	Adapter string      `json:"adapter,omitempty"`
	Copy    float64     `json:"copy_bytes_per_second"`
	Rounds  int         `json:"rounds"`
	Steps   int         `json:"steps"` // of a round
	Rows    []decodeRow `json:"rows"`
}

// decodeRow is a case's figures.
type decodeRow struct {
	decodeCase
	MS              spread  `json:"step_ms"` // over rounds
	TokensPerSecond float64 `json:"tokens_per_second"`
	Weights         float64 `json:"weight_bytes"` // moved by a step at least
	ExpertBytes     float64 `json:"expert_bytes"` // with the routers that are computed; the mean of the rounds' last steps
	Cache           float64 `json:"cache_bytes"`  // the mean of a round's steps
	Bytes           float64 `json:"step_bytes"`   // all three
	LimitMS         float64 `json:"limit_ms"`     // which they take at the rate of copying
	Share           float64 `json:"share_of_copy_rate"`
	OfBackbone      float64 `json:"of_backbone,omitempty"` // the time, of a mode with experts
	RunsAs          string  `json:"runs_as"`
	InParts         string  `json:"in_parts,omitempty"` // why it is not one kernel
	Failed          string  `json:"failed,omitempty"`   // why there are no figures

	err error
}

// How steps run.
const (
	oneKernel     = "one kernel"
	recordedGraph = "recorded graph"
	oneByOne      = "one by one"
)

// runsOf notes how a decoder's steps ran.
func (r *decodeRow) runsOf(d *model.Decoder) {
	r.RunsAs = oneKernel
	if why := d.InParts(); why != nil {
		r.InParts, r.RunsAs = why.Error(), oneByOne
		if d.Recorded() {
			r.RunsAs = recordedGraph
		}
	}
}

// finish works out what follows from the times of a step.
func (r *decodeRow) finish(ms spread, copyRate float64) {
	r.MS = ms
	r.TokensPerSecond = 1e3 * float64(r.Batch) / ms.Median
	r.Bytes = r.Weights + r.ExpertBytes + r.Cache
	r.LimitMS = 1e3 * r.Bytes / copyRate
	r.Share = r.LimitMS / ms.Median
}

// summary is a row's time, or why there is none, on one line.
func (r *decodeRow) summary() string {
	if r.err != nil {
		first, _, _ := strings.Cut(r.Failed, "\n")
		return first
	}
	return fmt.Sprintf("%.3f ms", r.MS.Median)
}

// backboneOf is the backbone's row with a case's batch and context, if it was measured.
func (o *decodeBench) backboneOf(c decodeCase) *decodeRow {
	for i := range o.Rows {
		r := &o.Rows[i]
		if r.err == nil && r.Mode == backbone && r.Batch == c.Batch && r.Context == c.Context {
			return r
		}
	}
	return nil
}

func (o *decodeBench) table() string {
	var text strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&text, "%-8s  "+format+"\n", append([]any{name}, args...)...)
	}
	line("model", "%s", o.Model)
	if o.Adapter != "" {
		line("adapter", "%s", o.Adapter)
	}
	line("backend", "%s", o.Backend)
	line("copy", "%s", copyRate(o.Copy))
	line("measured", "%s of %s", plural(o.Rounds, "round"), plural(o.Steps, "step"))
	told := map[string]bool{"": true}
	for _, r := range o.Rows {
		if !told[r.InParts] && r.RunsAs == recordedGraph { // where there could be a kernel
			line("graphs", "%s", r.InParts)
		}
		told[r.InParts] = true
	}
	rows := [][]string{{
		"mode", "\texperts", "\tbatch", "\tcontext", "\tms/step", "\tleast", "\tmost", "\ttokens/s", "\tGB/step", "\tof copy", "\tof backbone", "runs as",
	}}
	for _, r := range o.Rows {
		cells := []string{r.Mode, "", fmt.Sprintf("\t%d", r.Batch), "\t" + count(r.Context)}
		if r.Experts > 0 {
			cells[1] = fmt.Sprintf("\t%d x %d", r.Experts, r.Rank)
		}
		if r.err != nil {
			rows = append(rows, append(cells, "\t-"))
			continue
		}
		ratio := ""
		if r.OfBackbone > 0 {
			ratio = fmt.Sprintf("\t%.3f", r.OfBackbone)
		}
		rows = append(rows, append(cells,
			fmt.Sprintf("\t%.3f", r.MS.Median), fmt.Sprintf("\t%.3f", r.MS.Min), fmt.Sprintf("\t%.3f", r.MS.Max),
			"\t"+threeDigits(r.TokensPerSecond), fmt.Sprintf("\t%.4g", r.Bytes/1e9), fmt.Sprintf("\t%.1f %%", 100*r.Share), ratio, r.RunsAs))
	}
	fmt.Fprintln(&text)
	printTable(&text, rows)
	return text.String()
}
