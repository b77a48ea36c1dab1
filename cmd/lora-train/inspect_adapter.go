package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"loratrain/checkpoints"
	"loratrain/model"
	"loratrain/router"
)

// exportReport is an adapter in this program's serving format.
type exportReport struct {
	Kind        string                  `json:"kind"`
	Path        string                  `json:"path"`
	Base        checkpoints.Base        `json:"base"`
	Granularity checkpoints.Granularity `json:"granularity"`
	Experts     int                     `json:"experts"`
	Rank        int                     `json:"rank"`
	SharedRank  int                     `json:"shared_rank"`
	Alpha       float64                 `json:"alpha"`
	Scale       float64                 `json:"scale"`
	Targets     []string                `json:"targets"`
	Modes       []model.Mode            `json:"modes"`
	Parameters  int                     `json:"parameters"` // trained
	Digest      string                  `json:"digest"`     // of the tensors
	Tensors     []tensorInfo            `json:"tensors"`
}

func inspectExport(path string) (report, error) {
	e, err := checkpoints.OpenServing(path)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	c := e.Config
	r := exportReport{
		Kind: "export", Path: path, Base: c.Base, Granularity: c.Granularity, Experts: c.Experts, Rank: c.Rank, SharedRank: c.SharedRank,
		Alpha: c.Alpha, Scale: c.Scale(), Targets: c.Targets, Modes: model.Modes(router.Granularity(c.Granularity)),
		Tensors: tensorInfos(e.Tensors()), Digest: checkpoints.Digest(e.Tensors()),
	}
	for _, t := range r.Tensors {
		if !strings.HasPrefix(t.Name, "model.table.") {
			r.Parameters += t.elements()
		}
	}
	return r, nil
}

var granularityText = map[checkpoints.Granularity]string{
	checkpoints.PerToken: "token: two experts a token, the same in the whole model",
	checkpoints.PerBlock: "block: two experts a token in each block",
	checkpoints.PerLayer: "layer: two experts a token at each linear layer",
	checkpoints.Unrouted: "none: plain LoRA",
}

func (r exportReport) print(w io.Writer, all bool) {
	fmt.Fprintf(w, "%s: an exported adapter\n\n", r.Path)
	b := r.Base
	shared := "none"
	if r.SharedRank > 0 {
		shared = fmt.Sprintf("of rank %d, used by every token", r.SharedRank)
	}
	printTable(w, [][]string{
		{"base", b.Name},
		{"", b.Digest},
		{"", fmt.Sprintf("%s of width %d, MLP %d; %s of %d, %s; vocabulary %s", plural(b.Layers, "layer"), b.Width, b.MLPWidth,
			plural(b.Heads, "head"), b.HeadDim, plural(b.KVHeads, "key-value head"), count(b.Vocabulary))},
		{"granularity", granularityText[r.Granularity]},
		{"experts", fmt.Sprintf("%d of rank %d, scaled by %g (alpha %g)", r.Experts, r.Rank, r.Scale, r.Alpha)},
		{"shared expert", shared},
		{"targets", strings.Join(r.Targets, " ")},
		{"modes", strings.Trim(fmt.Sprint(r.Modes), "[]")},
		{"parameters", count(r.Parameters)},
		{"digest", r.Digest},
	})
	printTensors(w, r.Tensors, all)
}

// peftReport is an adapter of Python's peft.
type peftReport struct {
	Kind    string         `json:"kind"`
	Path    string         `json:"path"`
	Config  map[string]any `json:"config"`
	Digest  string         `json:"digest"` // of the tensors
	Tensors []tensorInfo   `json:"tensors"`
	// Experts is where peft's adapters lie, in an export that made one of each expert.
	Experts []string `json:"experts,omitempty"`
}

func inspectPEFT(path string) (report, error) {
	r := peftReport{Kind: "peft", Path: path}
	var err error
	if r.Config, err = readObject(filepath.Join(path, adapterConfig)); err != nil {
		return nil, err
	}
	return r.with(filepath.Join(path, adapterTensors))
}

func inspectPEFTExperts(path string) (report, error) {
	r := peftReport{Kind: "peft_experts", Path: path}
	var err error
	if r.Config, err = readObject(filepath.Join(path, switchJSON)); err != nil {
		return nil, err
	}
	list, _ := r.Config["experts"].([]any)
	for _, name := range list {
		r.Experts = append(r.Experts, fmt.Sprint(name))
	}
	if len(r.Experts) == 0 {
		return nil, failf("export the run again", `%s: expected "experts", a list of folders`, filepath.Join(path, switchJSON))
	}
	return r.with(filepath.Join(path, r.Experts[0], adapterTensors))
}

// with adds the tensors of a file.
func (r peftReport) with(path string) (report, error) {
	f, err := checkpoints.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r.Tensors, r.Digest = tensorInfos(f.Tensors()), checkpoints.Digest(f.Tensors())
	return r, nil
}

// readObject reads a file that is one JSON object.
func readObject(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, failf("check its permissions", "%w", located(err))
	}
	var object map[string]any
	err = json.Unmarshal(data, &object)
	if err == nil && object == nil {
		err = errors.New("null")
	}
	if err != nil {
		return nil, failf("write the adapter again", "%s: expected a JSON object: %w", path, err)
	}
	return object, nil
}

func (r peftReport) print(w io.Writer, all bool) {
	if r.Experts == nil {
		fmt.Fprintf(w, "%s: an adapter of Python's peft\n\n", r.Path)
	} else {
		fmt.Fprintf(w, "%s: experts as adapters of Python's peft\n\n", r.Path)
	}
	printTable(w, append(flatten("", r.Config), []string{"digest", r.Digest}))
	if len(r.Experts) > 1 {
		fmt.Fprintf(w, "\nthe first of %s:", plural(len(r.Experts), "expert"))
	}
	printTensors(w, r.Tensors, all)
}
