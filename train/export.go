package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/model"
)

// Formats that a run's adapter can be exported in.
const (
	FormatSwitch = "switch" // the serving format, see checkpoints/FORMAT.md
	FormatPEFT   = "peft"   // an adapter of Python's peft for each expert
)

// Exported is what Export wrote.
type Exported struct {
	Step      int             `json:"step"`
	Agreement model.Agreement `json:"agreement"` // with FormatSwitch
}

// Export writes the adapter of a run, its best checkpoint if it was measured while training and else its newest, to a new folder. The
// options name the run's folder, its base and what computes.
func Export(cfg Config, o RunOptions, out, format string) (Exported, error) {
	dir := (&RunFolder{Dir: o.Dir}).CheckpointsDir()
	latest, err := checkpoints.LatestState(dir)
	if errors.Is(err, checkpoints.ErrNoState) {
		return Exported{}, fmt.Errorf("%s: has no checkpoint to export\nlet the run take some steps first", o.Dir)
	}
	if err != nil {
		return Exported{}, err
	}
	var state progressState
	if err := json.Unmarshal(latest.Meta, &state); err != nil {
		return Exported{}, fmt.Errorf("%s: %w", latest.Path, err)
	}
	spec, err := adapterSpec(cfg.Adapter)
	if err != nil {
		return Exported{}, err
	}
	e := Exported{Step: latest.Step}
	path := latest.Path
	if state.BestStep > 0 {
		e.Step, path = state.BestStep, stepFolder(dir, state.BestStep)
	}
	if was, err := ReadRunInfo(o.Dir); err == nil && was.ModelDigest != o.Base.Digest() {
		return Exported{}, fmt.Errorf("%s: was trained on %s (%s), this is %s (%s)\nname the model that the run was trained on with --model", o.Dir,
			was.Model, was.ModelDigest, o.Base.Name, o.Base.Digest())
	}
	prompts, err := promptsOf(cfg, o)
	if err != nil {
		return Exported{}, err
	}
	m := model.Adapted{Base: o.Base, Bank: model.NewBank(o.Base.Arch, spec)}
	host := kernels.NewHost(o.Backend.Param(), m.Bank.Size())
	if err := LoadAdapter(path, m.Bank, host); err != nil {
		return Exported{}, err
	}
	positions := 1
	for _, p := range prompts {
		positions = max(positions, len(p))
	}
	if m.Placed, err = model.Place(o.Backend, o.Base.Arch, o.Base.Weights, positions); err != nil {
		return Exported{}, err
	}
	if m.Params, err = o.Backend.Place(host); err != nil {
		return Exported{}, err
	}
	switch format {
	case FormatPEFT:
		return e, m.ExportPEFT(out)
	case FormatSwitch:
		e.Agreement, err = m.Export(out, prompts)
		return e, err
	default:
		return e, UsageError{fmt.Errorf("unknown format %q\nuse %s or %s", format, FormatSwitch, FormatPEFT)}
	}
}

func stepFolder(dir string, step int) string { return filepath.Join(dir, fmt.Sprintf("step-%d", step)) }

// spareTexts are what an export is verified on where the data that the run was trained on is gone.
var spareTexts = []string{
	"Question: Which of these is a fruit?\nAnswer:", "The capital of France is", "Once upon a time there was a", "2 + 2 =",
}

// promptsOf is ids of prompts to verify an export on: the run's own, if its data can still be read.
func promptsOf(cfg Config, o RunOptions) ([][]int32, error) {
	if data, err := loadData(cfg, o.Base, o.Catalog); err == nil {
		return data.prompts(), nil
	}
	tok, err := o.Base.NeedTokenizer()
	if err != nil {
		return nil, err
	}
	var list [][]int32
	for _, text := range spareTexts {
		list = append(list, tok.Encode(text, true))
	}
	return list, nil
}
