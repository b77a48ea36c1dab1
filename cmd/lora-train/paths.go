package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"loratrain/checkpoints"
	"loratrain/model"
	"loratrain/train"
)

// pathKind is what lies at a path.
type pathKind string

const (
	kindModel       pathKind = "a model"
	kindTensors     pathKind = "a safetensors file"
	kindRun         pathKind = "a run"
	kindCheckpoint  pathKind = "a training checkpoint"
	kindExport      pathKind = "an exported adapter"
	kindPEFT        pathKind = "a PEFT adapter"
	kindPEFTExperts pathKind = "a PEFT export"
)

const (
	configJSON     = "config.json"
	adapterConfig  = "adapter_config.json"
	adapterTensors = "adapter_model.safetensors"
	switchJSON     = "switch.json"
)

// identify says what lies at a path by the names that belong to each kind; whether it is sound shows when it is read.
func identify(path string) (pathKind, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", failf("check the path", "%w", located(err))
	}
	if !info.IsDir() {
		return identifyFile(path)
	}
	for _, mark := range []struct {
		name string
		kind pathKind
	}{
		{"run.json", kindRun},
		{"config.yaml", kindRun},
		{"state.json", kindCheckpoint},
		{"state.safetensors", kindCheckpoint},
		{switchJSON, kindPEFTExperts},
		{adapterConfig, kindExport},
		{configJSON, kindModel},
		{adapterTensors, kindExport}, // its configuration is missing, which shows when it is read
	} {
		if !exists(filepath.Join(path, mark.name)) {
			continue
		}
		if mark.kind == kindExport && isPEFT(filepath.Join(path, adapterConfig)) {
			return kindPEFT, nil
		}
		return mark.kind, nil
	}
	if names, err := os.ReadDir(path); err == nil {
		for _, n := range names {
			if strings.HasSuffix(n.Name(), ".gguf") {
				return kindModel, nil
			}
		}
	}
	return "", unknownKind(path)
}

func identifyFile(path string) (pathKind, error) {
	if strings.HasSuffix(path, ".safetensors") {
		return kindTensors, nil
	}
	// A file of a Hugging Face folder stands for the folder.
	if isGGUF(path) || exists(filepath.Join(filepath.Dir(path), configJSON)) {
		return kindModel, nil
	}
	return "", unknownKind(path)
}

// isGGUF goes by a file's first bytes, as some stores drop the .gguf of a name, or else by its name.
func isGGUF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return strings.HasSuffix(path, ".gguf")
	}
	defer f.Close()
	magic := make([]byte, 4)
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == "GGUF" || strings.HasSuffix(path, ".gguf")
}

var errUnknownKind = errors.New("neither a model nor a run, a checkpoint, an adapter or a safetensors file")

func unknownKind(path string) error {
	return failf("give a Hugging Face model folder, a .gguf or .safetensors file, a run's folder or one that was exported", "%s: %w", path, errUnknownKind)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isPEFT says whether an adapter_config.json is one of Python's peft.
func isPEFT(path string) bool {
	data, err := os.ReadFile(path)
	var c struct {
		Type string `json:"peft_type"`
	}
	return err == nil && json.Unmarshal(data, &c) == nil && c.Type != ""
}

// openModel opens the base at a path, the embedded default for none.
func openModel(path string) (*model.Base, error) {
	if path == "" {
		return model.OpenDefault()
	}
	return model.Open(path)
}

// findExport is the exported adapter that a path means, and the run that it belongs to, "" if none is near.
func findExport(path string) (export, run string, err error) {
	kind, err := identify(path)
	if errors.Is(err, errUnknownKind) {
		return "", "", failf("give the folder of a run or of an export", "%s: no adapter", path)
	}
	if err != nil {
		return "", "", err
	}
	switch kind {
	case kindExport:
		if parent := filepath.Join(path, ".."); exists(filepath.Join(parent, "config.yaml")) {
			run = filepath.Clean(parent)
		}
		return path, run, nil
	case kindRun:
		export = (&train.RunFolder{Dir: path}).ExportDir()
		if !exists(filepath.Join(export, adapterConfig)) {
			return "", "", failf(fmt.Sprintf("let the run finish, or export it: lora-train export %s --out DIR", path),
				"%s: the run has exported no adapter", path)
		}
		return export, path, nil
	case kindCheckpoint:
		return "", "", failf("export its run: lora-train export RUN --out DIR", "%s: a training checkpoint, expected an exported adapter", path)
	case kindPEFT, kindPEFTExperts:
		return "", "", failf("export the run again without --format peft", "%s: made for Python's peft, expected this program's own format", path)
	default:
		return "", "", failf("give the folder of a run or of an export", "%s: %s, expected an exported adapter", path, kind)
	}
}

// adapted is a base and what was exported for it.
type adapted struct {
	base   *model.Base
	export *checkpoints.Serving // nil: the base alone
}

// openAdapted opens the base at modelPath and the adapter at adapterPath. Without an adapter, "", no model means the
// embedded one; with one, the model that it was trained on, if that can be told.
func openAdapted(modelPath, adapterPath string) (a adapted, err error) {
	if adapterPath == "" {
		a.base, err = openModel(modelPath)
		return a, err
	}
	dir, run, err := findExport(adapterPath)
	if err != nil {
		return a, err
	}
	if a.export, err = checkpoints.OpenServing(dir); err != nil {
		return a, err
	}
	if a.base, err = baseOf(a.export, run, modelPath); err == nil {
		err = a.export.CheckBase(a.base.Name, a.base.Digest(), model.DimsOf(a.base.Arch))
	}
	if err != nil {
		return a, errors.Join(err, a.Close())
	}
	return a, nil
}

// baseOf opens the base of an export: the one given, the one that its run names, or the embedded one.
func baseOf(e *checkpoints.Serving, run, given string) (*model.Base, error) {
	if given != "" {
		return model.Open(given)
	}
	if run != "" {
		path, err := modelOfRun(run)
		if err != nil {
			return nil, err
		}
		base, err := openModel(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, failf("say where it lies with --model; the path is taken from the folder where the program runs",
				"the model that %s names: %s: no such file or directory", filepath.Join(run, "config.yaml"), path)
		}
		if err != nil {
			return nil, fmt.Errorf("the model that %s names: %w", filepath.Join(run, "config.yaml"), err)
		}
		return base, nil
	}
	base, err := model.OpenDefault()
	if err == nil && base.Digest() != e.Config.Base.Digest {
		return nil, failf("say where that model lies with --model",
			"%s: made for base %s (digest %s), which is not the embedded one", e.Dir, e.Config.Base.Name, e.Config.Base.Digest)
	}
	return base, err
}

// modelOfRun is the path of the model that a run trained on, "" for the embedded one.
func modelOfRun(run string) (string, error) {
	path := filepath.Join(run, "config.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", failf("say where the run's model lies with --model", "%w", located(err))
	}
	c, err := train.Parse(path, data)
	return c.Model.Path, err
}

// Close gives back what was mapped.
func (a adapted) Close() error {
	var errs []error
	if a.base != nil {
		errs = append(errs, a.base.Close())
	}
	if a.export != nil {
		errs = append(errs, a.export.Close())
	}
	return errors.Join(errs...)
}
