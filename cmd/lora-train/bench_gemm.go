package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/model"
)

func newBenchGEMMCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "gemm",
		Short: "Measure products of matrices, a model's own among them",
		Long: `Gemm measures products of square matrices and, with --shape or --model, those of that model's linear
layers without experts, forwards and backwards, on random numbers. A product of (rows, in) and (in, out) is 2·rows·in·out flops.`,
		Example: `  lora-train bench gemm
  lora-train bench gemm --shape llama2-7b --batch 4 --length 512`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.gemm(cmd) },
	}
	f.register(cmd)
	return cmd
}

// gemmBench is what --json of bench gemm writes.
type gemmBench struct {
	Backend  string        `json:"backend"`
	Model    string        `json:"model,omitempty"`
	Rates    machineRates  `json:"rates"`
	Products []gemmProduct `json:"products"`
}

type gemmProduct struct {
	Name      string  `json:"name"`
	Rows      int     `json:"rows"`
	In        int     `json:"in"`
	Out       int     `json:"out"`
	Seconds   float64 `json:"seconds"`
	Flops     float64 `json:"flops_per_second"`
	Backwards bool    `json:"backwards,omitempty"`
}

func (f *benchFlags) gemm(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	b, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer b.Close()
	noise, err := model.NewNoise(b, b.Float(), 1)
	if err != nil {
		return err
	}
	defer noise.Close()
	out := gemmBench{Backend: b.String()}
	if out.Rates, err = measureRates(b, noise); err != nil {
		return err
	}
	add := func(name string, rows, in, width int, backwards bool) error {
		p, err := timeLinear(b, noise, rows, in, width, backwards)
		if err == nil {
			err = cmd.Context().Err()
		}
		out.Products = append(out.Products, gemmProduct{name, rows, in, width, p.seconds, p.rate(), backwards})
		return err
	}
	for n := minSquare; n <= out.Rates.Rows; n *= 2 {
		if err := add("square", n, n, n, false); err != nil {
			return err
		}
	}
	if f.shape != "" || f.model != "" {
		arch, name, err := f.arch()
		if err != nil {
			return err
		}
		out.Model = name
		for _, l := range linearsOf(arch) {
			for _, backwards := range []bool{false, true} {
				if err := add(l.name, f.batch*f.length, l.in, l.out, backwards); err != nil {
					return err
				}
			}
		}
	}
	return answer(cmd, f.json, out, out.table())
}

// arch is the shape that was named.
func (f *benchFlags) arch() (model.Arch, string, error) {
	if f.model == "" {
		a, err := model.ShapeOf(f.shape)
		return a, f.shape, err
	}
	base, err := model.Open(f.model)
	if err != nil {
		return model.Arch{}, "", err
	}
	defer base.Close()
	return base.Arch, base.Name, nil
}

type linear struct {
	name    string
	in, out int
}

// linearsOf is the linear layers of a model, those of a size together.
func linearsOf(a model.Arch) []linear {
	var list []linear
	add := func(name string, in, out int) {
		for i, l := range list {
			if l.in == in && l.out == out {
				list[i].name += ", " + name
				return
			}
		}
		list = append(list, linear{name, in, out})
	}
	for _, t := range model.AllTargets() {
		in, out := a.Shape(t)
		add(t.String(), in, out)
	}
	add("output", a.Width, a.Vocab)
	return list
}

func (g gemmBench) table() string {
	var text strings.Builder
	fmt.Fprintf(&text, "backend   %s\ncopy      %s\n\n", g.Backend, copyRate(g.Rates.Bytes))
	rows := [][]string{{"product", "\trows", "\tin", "\tout", "\tms", "\tGflop/s"}}
	for _, p := range g.Products {
		name := p.Name
		if p.Backwards {
			name += ": gradient"
		}
		rows = append(rows, []string{
			name, "\t" + count(p.Rows), "\t" + count(p.In), "\t" + count(p.Out), fmt.Sprintf("\t%.3f", 1e3*p.Seconds), "\t" + count(int(p.Flops/1e9)),
		})
	}
	printTable(&text, rows)
	return text.String()
}

func copyRate(bytes float64) string {
	return fmt.Sprintf("%s GB/s read and written", count(int(math.Round(bytes/1e9))))
}
