package train

import (
	"errors"
	"fmt"

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
// options name the run's folder, its base, what computes and whom to tell about damaged checkpoints; format is one of those above.
func Export(cfg Config, o RunOptions, out, format string) (Exported, error) {
	step, path, err := exported(cfg, o)
	if err != nil {
		return Exported{}, err
	}
	spec, err := adapterSpec(cfg.Adapter)
	if err != nil {
		return Exported{}, err
	}
	prompts, err := promptsOf(cfg, o)
	if err != nil {
		return Exported{}, err
	}
	e, m := Exported{Step: step}, model.Adapted{Base: o.Base, Bank: model.NewBank(o.Base.Arch, spec)}
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
	if format == FormatPEFT {
		return e, m.ExportPEFT(out)
	}
	e.Agreement, err = m.Export(out, prompts)
	return e, err
}

// exported is the checkpoint of a run to export, which must have been made with cfg on the base.
func exported(cfg Config, o RunOptions) (step int, path string, err error) {
	dir := (&RunFolder{Dir: o.Dir}).CheckpointsDir()
	latest, state, err := latestState(dir, o.Progress)
	if errors.Is(err, checkpoints.ErrNoState) {
		return 0, "", fmt.Errorf("%s: has no checkpoint to export\nlet the run take some steps first", o.Dir)
	}
	if err != nil {
		return 0, "", err
	}
	if err := state.Inputs.checkSettings(latest.Path, cfg); err != nil {
		return 0, "", err
	}
	if was, is := state.Inputs.ModelDigest, o.Base.Digest(); was != is {
		return 0, "", otherModel(o.Dir, was, o.Base.Name, is)
	}
	if state.BestStep > 0 {
		return state.BestStep, stepFolder(dir, state.BestStep), nil
	}
	return latest.Step, latest.Path, nil
}

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
