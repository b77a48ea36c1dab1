package main

import (
	"fmt"
	"math"
	"strings"

	"loratrain/internal/budget"
	"loratrain/model"
)

// trainBench is what --json of bench train writes.
type trainBench struct {
	Backend string `json:"backend"`
	Model   string `json:"model"`
	Batch   int    `json:"batch"`
	Length  int    `json:"length"`

	Granularity string `json:"granularity"`
	Experts     int    `json:"experts"`
	Rank        int    `json:"rank"`
	Shared      int    `json:"shared"`
	Trainable   int    `json:"trainable"`
	Recompute   bool   `json:"recompute,omitempty"`
	Warmup      int    `json:"warmup"`
	Steps       int    `json:"steps"`

	TokensPerSecond spread       `json:"tokens_per_second"` // over windows of steps
	StepMS          spread       `json:"step_ms"`
	PeakBytes       int          `json:"peak_bytes"` // of what was allocated
	Rates           machineRates `json:"rates"`
	FlopsPerToken   modelFlops   `json:"flops_per_token"`
	Share           float64      `json:"share_of_gemm_rate"`
	Loss            float64      `json:"loss"` // of the last step that was measured
	Seconds         struct {
		Weights    float64 `json:"weights"`     // until they were on the backend
		First      float64 `json:"first_step"`  // with all that is prepared for it
		SinceStart float64 `json:"since_start"` // from the program's start to the end of the first step
	} `json:"seconds"`
	Profile *trainProfile `json:"profile,omitempty"`
}

// trainProfile is where the time of one step goes.
type trainProfile struct {
	Operations []budget.Row    `json:"operations"`
	Kernels    []budget.Kernel `json:"kernels,omitempty"`
}

// modelFlops is what a step computes for a token, recomputation aside.
type modelFlops struct {
	Frozen    float64 `json:"frozen"`    // 4 a weight of the linear layers and of the output projection
	Adapter   float64 `json:"adapter"`   // 6 a trained parameter
	Attention float64 `json:"attention"` // 12 a pair of token and key and an element of the query heads
	Total     float64 `json:"total"`
}

// flopsOf is that of sequences of one length, whose last token has no target.
func flopsOf(a model.Arch, trainable, length int) modelFlops {
	weights := 0.0
	for _, t := range model.AllTargets() {
		in, out := a.Shape(t)
		weights += float64(a.Layers) * float64(in) * float64(out)
	}
	t := float64(length)
	weights += float64(a.Width) * float64(a.Vocab) * (t - 1) / t
	f := modelFlops{
		Frozen: 4 * weights, Adapter: 6 * float64(trainable),
		Attention: 12 * float64(a.Layers) * float64(a.Heads*a.HeadDim) * (t + 1) / 2,
	}
	f.Total = f.Frozen + f.Adapter + f.Attention
	return f
}

// describe notes what is measured.
func (m *trainMeasurement) describe(a model.Arch, bank *model.Bank) {
	o, f := &m.out, m.f
	o.Backend, o.Batch, o.Length = m.b.String(), f.batch, f.length
	o.Granularity, o.Experts, o.Rank, o.Shared = f.granularity, f.experts, f.rank, f.shared
	o.Trainable, o.Recompute, o.Warmup, o.Steps = bank.Trainable(), f.recompute, f.warmup, f.steps
	o.FlopsPerToken = flopsOf(a, o.Trainable, f.length)
}

func (o *trainBench) table() string {
	var text strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&text, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	whole := func(x float64) string { return count(int(math.Round(x))) }
	line("model", "%s", o.Model)
	line("backend", "%s", o.Backend)
	line("adapter", "%s: %s of rank %d, shared rank %d, on every linear layer: %s trained", o.Granularity, plural(o.Experts, "expert"), o.Rank, o.Shared,
		plural(o.Trainable, "parameter"))
	recompute := map[bool]string{true: ", blocks computed again in the backward pass"}[o.Recompute]
	line("batch", "%d x %s = %s%s", o.Batch, count(o.Length), plural(o.Batch*o.Length, "token"), recompute)
	line("first step", "%.1f s after start; weights %.1f s, step %.1f s", o.Seconds.SinceStart, o.Seconds.Weights, o.Seconds.First)
	line("GEMM", "%s Gflop/s, %d x %d x %d", whole(o.Rates.Flops/1e9), o.Rates.Rows, o.Rates.Rows, o.Rates.Rows)
	line("copy", "%s", copyRate(o.Rates.Bytes))
	p := o.FlopsPerToken
	line("arithmetic", "%.4g Gflop a token: frozen weights %.4g, adapter %.4g, attention %.4g", p.Total/1e9, p.Frozen/1e9, p.Adapter/1e9, p.Attention/1e9)
	line("tokens/s", "%s (%s to %s in %s of %s)", whole(o.TokensPerSecond.Median), whole(o.TokensPerSecond.Min), whole(o.TokensPerSecond.Max),
		plural(min(windows, o.Steps), "part"), plural(o.Steps, "step"))
	line("ms/step", "%.2f (%.2f to %.2f)", o.StepMS.Median, o.StepMS.Min, o.StepMS.Max)
	line("peak", "%.2f GiB", float64(o.PeakBytes)/(1<<30))
	line("share", "%.1f %% of the GEMM rate", 100*o.Share)
	if o.Profile != nil {
		o.Profile.write(&text, o.StepMS.Median)
	}
	return text.String()
}

// write shows the operations with their budgets, and the kernels.
func (p *trainProfile) write(text *strings.Builder, stepMS float64) {
	total, limit := 0.0, 0.0
	for _, r := range p.Operations {
		total, limit = total+r.Seconds, limit+r.Limit
	}
	rows := [][]string{{"operation", "\tcalls", "\tGflop", "\tMB", "\tlimit ms", "\tms", "\tof limit", "\tof all"}}
	for _, r := range p.Operations {
		rows = append(rows, []string{
			r.Op, "\t" + count(r.Calls), figure(r.Flops / 1e9), figure(r.Bytes / 1e6),
			fmt.Sprintf("\t%.3f", 1e3*r.Limit), fmt.Sprintf("\t%.3f", 1e3*r.Seconds), percent(r.Limit, r.Seconds), percent(r.Seconds, total),
		})
	}
	rows = append(rows, []string{"all", "", "", "", fmt.Sprintf("\t%.3f", 1e3*limit), fmt.Sprintf("\t%.3f", 1e3*total), percent(limit, total), ""})
	fmt.Fprintf(text, "\nthe operations of a step take %.2f ms, a step %.2f ms\n", 1e3*total, stepMS)
	printTable(text, rows)
	if len(p.Kernels) == 0 {
		return
	}
	rows = [][]string{{"kernel", "operation", "\tlaunches", "\tms", "\tof all"}}
	for _, k := range p.Kernels {
		rows = append(rows, []string{k.Name, k.Op, "\t" + count(k.Launches), fmt.Sprintf("\t%.3f", 1e3*k.Seconds), percent(k.Seconds, total)})
	}
	fmt.Fprintln(text)
	printTable(text, rows)
}

// figure is a cell with as many digits as tell something.
func figure(x float64) string {
	switch {
	case x >= 99.95:
		return "\t" + count(int(math.Round(x)))
	case x >= 0.9995:
		return fmt.Sprintf("\t%.1f", x)
	default:
		return fmt.Sprintf("\t%.3f", x)
	}
}

// percent is a cell, empty if there is nothing to be a part of.
func percent(part, all float64) string {
	if all <= 0 {
		return ""
	}
	return fmt.Sprintf("\t%.1f %%", 100*part/all)
}
