package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"loratrain/checkpoints"
	"loratrain/train"
)

// runReport is a run's folder.
type runReport struct {
	Kind        string              `json:"kind"`
	Path        string              `json:"path"`
	Active      bool                `json:"active"` // a process works on it
	Info        train.RunInfo       `json:"info"`
	Config      any                 `json:"config"`
	LastStep    *train.StepMetrics  `json:"last_step,omitempty"`
	LastEval    json.RawMessage     `json:"last_eval,omitempty"`
	Checkpoints []checkpointSummary `json:"checkpoints"`
	Export      string              `json:"export,omitempty"` // its folder, if there is one

	config train.Config
}

type checkpointSummary struct {
	Step  int    `json:"step"`
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

func inspectRun(path string) (report, error) {
	folder := train.RunFolder{Dir: path}
	r := runReport{Kind: "run", Path: path, Active: train.RunLocked(path)}
	data, err := os.ReadFile(folder.ConfigPath())
	if err != nil {
		return nil, failf("restore the file, or give another run", "%w", located(err))
	}
	if r.config, err = train.Parse(folder.ConfigPath(), data); err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(data, &r.Config); err != nil {
		return nil, fmt.Errorf("%s: %w", folder.ConfigPath(), err)
	}
	if r.Info, err = train.ReadRunInfo(path); errors.Is(err, fs.ErrNotExist) {
		return nil, failf("restore the file, or give another run", "%w", located(err))
	} else if err != nil {
		return nil, err
	}
	if err := r.readMetrics(folder.MetricsPath()); err != nil {
		return nil, err
	}
	if r.Checkpoints, err = listCheckpoints(folder.CheckpointsDir()); err != nil {
		return nil, err
	}
	if exists(filepath.Join(folder.ExportDir(), adapterConfig)) {
		r.Export = folder.ExportDir()
	}
	return r, nil
}

func (r *runReport) readMetrics(path string) error {
	lines, err := train.ReadMetrics(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, l := range slices.Backward(lines) {
		if l.Eval != nil && r.LastEval == nil {
			r.LastEval = l.Eval
		}
		if l.Eval == nil && r.LastStep == nil {
			r.LastStep = &l.StepMetrics
		}
	}
	return err
}

// listCheckpoints is what lies in a run's folder of checkpoints, by step.
func listCheckpoints(dir string) ([]checkpointSummary, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list := []checkpointSummary{}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "step-")
		step, err := strconv.Atoi(digits)
		if !ok || err != nil {
			continue
		}
		c := checkpointSummary{Step: step, Path: filepath.Join(dir, e.Name())}
		if info, err := os.Stat(filepath.Join(c.Path, "state.safetensors")); err == nil {
			c.Bytes = info.Size()
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b checkpointSummary) int { return a.Step - b.Step })
	return list, nil
}

// state says how the run is, in words.
func (r runReport) state() string {
	switch {
	case r.Active:
		return "running now"
	case r.Info.State == train.RunRunning:
		return "killed: it says running, but no process works on it; --resume goes on"
	case r.Info.Error != "":
		first, _, _ := strings.Cut(r.Info.Error, "\n")
		return fmt.Sprintf("%s: %s", r.Info.State, first)
	default:
		return string(r.Info.State)
	}
}

func (r runReport) print(w io.Writer, _ bool) {
	fmt.Fprintf(w, "%s: a run, %s\n\n", r.Path, r.state())
	i := r.Info
	rows := [][]string{{"started", i.Started}}
	for _, at := range i.Resumed {
		rows = append(rows, []string{"resumed", at})
	}
	if i.Finished != "" {
		rows = append(rows, []string{"finished", i.Finished})
	}
	rows = append(rows,
		[]string{"program", fmt.Sprintf("%s, %s, %s, %s", i.Program, i.Go, i.Platform, plural(i.CPUs, "processor"))},
		[]string{"backend", i.Backend},
		[]string{"model", i.Model},
		[]string{"", i.ModelDigest},
	)
	rows = append(rows, configRows(r.config)...)
	for _, name := range slices.Sorted(maps.Keys(i.DataDigests)) {
		rows = append(rows, []string{"", name + " " + i.DataDigests[name]})
	}
	rows = append(rows, r.stepRows()...)
	for _, c := range r.Checkpoints {
		rows = append(rows, []string{"checkpoint", fmt.Sprintf("%s, %s", c.Path, bytesText(c.Bytes))})
	}
	if r.Export != "" {
		rows = append(rows, []string{"export", r.Export})
	}
	printTable(w, rows)
	r.printResults(w)
}

// stepRows is how far training got.
func (r runReport) stepRows() [][]string {
	s := r.LastStep
	if s == nil {
		return nil
	}
	rows := [][]string{{"last step", fmt.Sprintf("%s (epoch %.2f): loss %.4f, balance %.3f, learning rate %.3g, %s",
		count(s.Step), s.Epoch, s.Loss, s.Balance, s.LR, perSecond(s.TokensPerSecond))}}
	if len(s.Loads) > 1 {
		rows = append(rows, []string{"loads", loadsText(s.Loads)})
	}
	return rows
}

// printResults shows the scores at the end of the run, or else the last evaluation on the way.
func (r runReport) printResults(w io.Writer) {
	var o train.Outcome
	data, err := json.Marshal(r.Info.Results)
	if err == nil && json.Unmarshal(data, &o) == nil && len(o.Adapter) > 0 && len(o.Base) == len(o.Adapter) {
		fmt.Fprintln(w)
		if err := train.WriteTable(w, o.Base, o.Adapter); err == nil {
			return
		}
	}
	rows := flatten("evaluation", r.LastEval)
	if r.Info.Results != nil {
		rows = flatten("results", r.Info.Results)
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		printTable(w, rows)
	}
}

// configRows is what makes a run what it is; config.yaml has the rest.
func configRows(c train.Config) [][]string {
	a, t := c.Adapter, c.Train
	adapter := fmt.Sprintf("granularity %s, %s of rank %d", a.Granularity, plural(a.Experts, "expert"), a.Rank)
	if a.SharedRank > 0 {
		adapter += fmt.Sprintf(", shared expert of rank %d", a.SharedRank)
	}
	data := strings.Join(append(slices.Clone(c.Data.Tasks), c.Data.File), " ")
	length := plural(t.Epochs, "epoch")
	if t.MaxSteps > 0 {
		length += fmt.Sprintf(" but at most %s", plural(t.MaxSteps, "step"))
	}
	return [][]string{
		{"adapter", fmt.Sprintf("%s, alpha %g, on %s", adapter, a.Alpha, strings.Join(a.Targets, " "))},
		{"training", fmt.Sprintf("%s, batches of %d, learning rate %g %s, seed %d", length, t.Batch, t.LR, t.Schedule, t.Seed)},
		{"data", fmt.Sprintf("%s, template %s", strings.TrimSpace(data), c.Data.Template)},
	}
}

func loadsText(loads []float64) string {
	var parts []string
	for _, l := range loads {
		parts = append(parts, fmt.Sprintf("%.1f%%", 100*l))
	}
	return strings.Join(parts, " ")
}

// checkpointReport is a state that a run resumes from.
type checkpointReport struct {
	Kind    string          `json:"kind"`
	Path    string          `json:"path"`
	Step    int             `json:"step"`
	Digest  string          `json:"digest"` // of the tensors
	Meta    json.RawMessage `json:"meta"`
	Tensors []tensorInfo    `json:"tensors"`
}

func inspectCheckpoint(path string) (report, error) {
	s, err := checkpoints.LoadState(path)
	if err != nil {
		return nil, err
	}
	return checkpointReport{
		Kind: "checkpoint", Path: path, Step: s.Step, Meta: s.Meta, Tensors: tensorInfos(s.Tensors), Digest: checkpoints.Digest(s.Tensors),
	}, nil
}

func (r checkpointReport) print(w io.Writer, all bool) {
	fmt.Fprintf(w, "%s: a training checkpoint, complete\n\n", r.Path)
	rows := [][]string{{"step", count(r.Step)}, {"digest", r.Digest}}
	printTable(w, append(rows, flatten("meta", r.Meta)...))
	shown := r.Tensors
	if !all { // what is trained is enough: AdamW keeps two moments of each
		shown = slices.DeleteFunc(slices.Clone(shown), func(t tensorInfo) bool { return strings.HasPrefix(t.Name, "adamw.") })
	}
	printTensors(w, shown, all)
	if moments := len(r.Tensors) - len(shown); moments > 0 {
		fmt.Fprintf(w, "\nand %s of AdamW's moments, %s\n", plural(moments, "tensor"), bytesText(totalBytes(r.Tensors)-totalBytes(shown)))
	}
}
