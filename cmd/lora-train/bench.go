package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/train"
)

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench COMMAND",
		Short: "Measure how fast this machine trains, decodes and switches",
		Example: `  lora-train bench train --shape smollm2-135m --batch 16 --length 512 --profile
  lora-train bench gemm --shape llama2-7b --batch 4 --length 512
  lora-train bench decode --shape llama2-7b --all
  lora-train bench switch --shape llama2-7b`,
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBenchTrainCommand(), newBenchGEMMCommand(), newBenchDecodeCommand(), newBenchSwitchCommand())
	return cmd
}

// benchFlags are those of every measurement.
type benchFlags struct {
	computeFlags
	shape, model, json string
	batch, length      int
}

func (f *benchFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.shape, "shape", "", "random weights of this shape: "+strings.Join(model.ShapeNames(), ", "))
	flags.StringVar(&f.model, "model", "", "in place of a shape, a Hugging Face folder or .gguf")
	flags.IntVar(&f.batch, "batch", 4, "sequences a step")
	flags.IntVar(&f.length, "length", 512, "tokens a sequence")
	flags.StringVar(&f.json, "json", "", "write the figures to this file; - for standard output, in place of the table")
	f.computeFlags.register(cmd)
}

func (f *benchFlags) check() error {
	if f.shape != "" && f.model != "" {
		return usagef("leave one out", "--shape %s and --model %s: expected one of them", f.shape, f.model)
	}
	if f.shape != "" {
		if _, err := model.ShapeOf(f.shape); err != nil {
			return train.UsageError{Err: err}
		}
	}
	const most = 1 << 24
	if err := atLeast("batch", f.batch, 1); err != nil {
		return err
	}
	if err := atLeast("length", f.length, 2); err != nil {
		return err
	}
	if f.batch > most || f.length > most || f.batch*f.length > most {
		return usagef("give smaller ones", "--batch %d --length %d: a step has at most %s", f.batch, f.length, plural(most, "token"))
	}
	return checkJSON(f.json)
}

// atLeast is the error of a flag with too small a value.
func atLeast(flag string, value, least int) error {
	if value < least {
		return usagef("give a larger number", "--%s %d: expected %d or more", flag, value, least)
	}
	return nil
}

// spread is a figure that was measured several times.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(xs []float64) spread {
	sorted := slices.Sorted(slices.Values(xs))
	n := len(sorted)
	return spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// machineRates is what a machine does at best, measured.
type machineRates struct {
	Rows  int     `json:"gemm_rows"` // of the square matrices multiplied
	Flops float64 `json:"gemm_flops_per_second"`
	Bytes float64 `json:"copy_bytes_per_second"` // read and written
}

// The sizes of the measurements: the largest whose single run is not longer than enough time to be sure of it.
const (
	minSquare, maxSquare = 256, 8192
	minCopy, maxCopy     = 1 << 24, 1 << 28
)

// enough is shorter in tests that ask for the form of the figures alone.
var enough = 20 * time.Millisecond

// measureRates multiplies large random matrices and copies large tensors.
func measureRates(b kernels.Backend, noise *model.Noise) (machineRates, error) {
	var r machineRates
	for n := minSquare; n <= maxSquare; n *= 2 {
		p, err := timeLinear(b, noise, n, n, n, false)
		if err != nil {
			return r, fmt.Errorf("GEMM rate: %w", err)
		}
		r.Rows, r.Flops = n, p.rate()
		if p.seconds > enough.Seconds() {
			break
		}
	}
	var err error
	r.Bytes, err = measureCopy(b)
	return r, err
}

// measureCopy copies large tensors and returns the bytes a second, read and written.
func measureCopy(b kernels.Backend) (rate float64, err error) {
	for n := minCopy; n <= maxCopy; n *= 4 {
		seconds, err := timeCopy(b, n)
		if err != nil {
			return 0, fmt.Errorf("copy rate: %w", err)
		}
		rate = 2 * float64(n) / seconds
		if seconds > enough.Seconds() {
			break
		}
	}
	return rate, nil
}

// linearTime is the time of one frozen linear layer.
type linearTime struct {
	rows, in, out int
	seconds       float64
}

func (p linearTime) rate() float64 {
	return 2 * float64(p.rows) * float64(p.in) * float64(p.out) / p.seconds
}

// timeLinear measures a linear layer on random numbers, forwards or its gradient. Zeros would not do: multiplying them takes
// less power, and a GPU is clocked by that.
func timeLinear(b kernels.Backend, noise *model.Noise, rows, in, out int, backwards bool) (linearTime, error) {
	p := linearTime{rows: rows, in: in, out: out}
	var ts [3]kernels.Tensor
	var err error
	for i, shape := range [][]int{{rows, in}, {out, in}, {rows, out}} {
		if ts[i], err = noise.Tensor(shape...); err != nil {
			return p, err
		}
		defer b.Free(ts[i])
	}
	x, w, y := ts[0], ts[1], ts[2]
	multiply := func() { b.Linear(y, x, w, kernels.Tensor{}, kernels.Tensor{}) }
	if backwards {
		multiply = func() { b.LinearGrad(x, y, w, kernels.Tensor{}) }
	}
	p.seconds, err = timed(b, multiply)
	return p, err
}

func timeCopy(b kernels.Backend, bytes int) (float64, error) {
	var ts [2]kernels.Tensor
	for i := range ts {
		var err error
		if ts[i], err = b.Alloc(kernels.F32, bytes/4); err != nil {
			return 0, err
		}
		defer b.Free(ts[i])
	}
	return timed(b, func() { b.Copy(ts[0], ts[1]) })
}

// timed is the seconds of one call of f: the middle of three windows of so many calls that the clock is no matter, each of
// which ends when the backend is done with them.
func timed(b kernels.Backend, f func()) (float64, error) {
	window := func(calls int) (float64, error) {
		started := time.Now()
		for range calls {
			f()
		}
		err := b.Sync()
		return time.Since(started).Seconds() / float64(calls), err
	}
	var once float64
	for range 2 { // the first call may load a kernel
		var err error
		if once, err = window(1); err != nil {
			return 0, err
		}
	}
	calls := callsIn(once)
	var times []float64
	for range 3 {
		t, err := window(calls)
		if err != nil {
			return 0, err
		}
		times = append(times, t)
	}
	return spreadOf(times).Median, nil
}

// callsIn is so many calls of so many seconds each that the clock is no matter.
func callsIn(seconds float64) int {
	return min(max(int(5*enough.Seconds()/max(seconds, 1e-9)), 1), 1000)
}
