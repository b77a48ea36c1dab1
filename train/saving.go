package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/model"
)

// progressState is what a checkpoint holds besides the tensors. The sampler's order, the learning rate and dropout follow from the step
// and the settings.
type progressState struct {
	Step      int      `json:"step"`       // taken
	Measured  int      `json:"measured"`   // the last step after which the adapter was evaluated
	BestStep  int      `json:"best_step"`  // 0: nothing was measured yet
	BestValue *float64 `json:"best_value"` // larger is better
	Worse     int      `json:"worse"`      // measurements since the best
	Inputs    inputs   `json:"inputs"`
}

// inputs are what decides a run. Checkpoints hold them as well as config.yaml and run.json, which somebody may edit.
type inputs struct {
	Settings    map[string]string `json:"settings"` // by key, those that a resumed run must share
	ModelDigest string            `json:"model_digest"`
	DataDigests map[string]string `json:"data_digests"`
}

func (r *run) inputs() inputs {
	return inputs{r.cfg.decisive(), r.Base.Digest(), r.data.digests}
}

// checkSettings refuses settings that differ from those the checkpoint at path was made with.
func (i inputs) checkSettings(path string, now Config) error {
	is := now.decisive()
	for _, key := range slices.Sorted(maps.Keys(i.Settings)) {
		if was := i.Settings[key]; is[key] != was {
			return usage(path, fmt.Sprintf("was made with %s %s, now it is %s", key, was, is[key]),
				fmt.Sprintf("set %s in the run's config.yaml back to %s, or start another run", key, was))
		}
	}
	return nil
}

// check refuses another model or other data than a run in dir began with.
func (i inputs) check(dir string, now inputs, baseName string) error {
	if i.ModelDigest != now.ModelDigest {
		return otherModel(dir, i.ModelDigest, baseName, now.ModelDigest)
	}
	all := maps.Clone(i.DataDigests)
	maps.Copy(all, now.DataDigests)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if was, is := i.DataDigests[name], now.DataDigests[name]; was != is {
			problem := "its items are not those that the run began with"
			switch {
			case was == "":
				problem = "the run began without it"
			case is == "":
				problem = "the run began with it, now it is missing"
			}
			return fmt.Errorf("%s: data %q: %s\nset the run's data back to what it was, or start another run", dir, name, problem)
		}
	}
	return nil
}

func otherModel(dir, was, name, is string) error {
	return fmt.Errorf("%s: was trained on a model with digest %s, that of %s is %s\nname the model that the run was trained on, or start another run",
		dir, was, name, is)
}

// The prefixes of a checkpoint's tensors.
const (
	stateParams = ""
	stateM      = "adamw.m."
	stateV      = "adamw.v."
)

// save writes a checkpoint of the step taken last and removes all but it and the best one.
func (r *run) save() error {
	r.state.Inputs = r.inputs()
	meta, err := json.Marshal(r.state)
	if err != nil {
		return err
	}
	dir := r.folder.CheckpointsDir()
	if !bytes.Equal(meta, r.saved) {
		s := checkpoints.State{Step: r.state.Step, Meta: meta}
		for _, b := range r.buffers() {
			for _, t := range r.bank.Tensors(r.host(b.t)) {
				t.Name = b.prefix + t.Name
				s.Tensors = append(s.Tensors, t)
			}
		}
		// What a device that failed did not send must not take the place of a checkpoint that is whole.
		if err := r.Backend.Sync(); err != nil {
			return fmt.Errorf("saving step %d: %w", r.state.Step, err)
		}
		err := checkpoints.SaveState(dir, s)
		if errors.Is(err, checkpoints.ErrExists) { // from before an evaluation that was interrupted
			err = replaceState(dir, s)
		}
		if err != nil {
			return err
		}
		r.saved = meta
	}
	return checkpoints.Reap(dir, r.state.Step, r.state.BestStep)
}

// host is a copy in host memory.
func (r *run) host(t kernels.Tensor) kernels.Tensor {
	host := kernels.NewHost(t.Type, t.Shape...)
	r.Backend.Read(host, t)
	return host
}

// replacedSuffix ends the name of a checkpoint while another of the same step is written.
const replacedSuffix = ".replaced"

// replaceState writes a checkpoint in place of one of the same step. One of them is complete at any instant; if the process is
// killed restoreReplaced gives it its name back.
func replaceState(dir string, s checkpoints.State) error {
	path := stepFolder(dir, s.Step)
	aside := path + replacedSuffix
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	if err := checkpoints.SaveState(dir, s); err != nil {
		return errors.Join(err, os.Rename(aside, path))
	}
	return os.RemoveAll(aside)
}

// restoreReplaced ends what a process did that was killed in replaceState.
func restoreReplaced(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		name, replaced := strings.CutSuffix(e.Name(), replacedSuffix)
		if !replaced {
			continue
		}
		aside, path := filepath.Join(dir, e.Name()), filepath.Join(dir, name)
		if _, missing := os.Lstat(path); errors.Is(missing, os.ErrNotExist) {
			err = errors.Join(err, os.Rename(aside, path))
		} else {
			err = errors.Join(err, os.RemoveAll(aside))
		}
	}
	return err
}

// buffer is one of those that a checkpoint holds, and the prefix of its tensors' names.
type buffer struct {
	prefix string
	t      kernels.Tensor
}

func (r *run) buffers() []buffer {
	return []buffer{{stateParams, r.stepper.Params}, {stateM, r.stepper.M}, {stateV, r.stepper.V}}
}

// load takes up the newest complete checkpoint; without one the run starts again.
func (r *run) load() error {
	dir := r.folder.CheckpointsDir()
	if err := restoreReplaced(dir); err != nil {
		return err
	}
	latest, state, err := latestState(dir, r.Progress)
	if errors.Is(err, checkpoints.ErrNoState) {
		r.Progress.Log("there is no checkpoint yet: the run starts again")
		return nil
	}
	if err != nil {
		return err
	}
	if err := state.Inputs.checkSettings(latest.Path, r.cfg); err != nil {
		return err
	}
	if err := state.Inputs.check(latest.Path, r.inputs(), r.Base.Name); err != nil {
		return err
	}
	for _, b := range r.buffers() {
		host := kernels.NewHost(b.t.Type, b.t.Shape...)
		if err := r.bank.Load(host, withPrefix(latest.Tensors, b.prefix)); err != nil {
			return notOurs(latest.Path, err)
		}
		r.Backend.Write(b.t, host)
	}
	r.state, r.began, r.saved = state, state.Step, latest.Meta
	r.Progress.Log(fmt.Sprintf("resumed after step %d of %d", r.state.Step, r.total))
	return r.checkBest(dir)
}

// checkBest forgets a best checkpoint that is gone, before a whole run relies on it.
func (r *run) checkBest(dir string) error {
	best := r.state.BestStep
	if best == 0 || best == r.state.Step {
		return nil
	}
	_, err := checkpoints.LoadState(stepFolder(dir, best))
	if err == nil {
		return nil
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	r.Progress.Log(fmt.Sprintf("the best checkpoint so far cannot be read, the best from here on will be exported: %s", first))
	r.state.BestStep, r.state.BestValue, r.state.Worse = 0, nil, 0
	return nil
}

// latestState is the newest complete checkpoint in dir and what it says of the run. It logs those that it passed over.
func latestState(dir string, log Progress) (checkpoints.Latest, progressState, error) {
	var state progressState
	latest, err := checkpoints.LatestState(dir)
	if errors.Is(err, checkpoints.ErrNoState) {
		return latest, state, err
	}
	if err != nil {
		why := strings.SplitN(err.Error(), "\n", 3)
		return latest, state, fmt.Errorf("%s\nbring one back from a copy, or train again with a new --out", strings.Join(why[:min(2, len(why))], ": "))
	}
	for _, skipped := range latest.Skipped {
		first, _, _ := strings.Cut(skipped.Error(), "\n")
		log.Log("passed over: " + first)
	}
	if err := json.Unmarshal(latest.Meta, &state); err != nil {
		return latest, state, notOurs(latest.Path, err)
	}
	return latest, state, nil
}

// withPrefix is the tensors whose names begin with a prefix, without it; the empty prefix stands for those of the adapter itself.
func withPrefix(tensors []checkpoints.Tensor, prefix string) []checkpoints.Tensor {
	var list []checkpoints.Tensor
	for _, t := range tensors {
		if prefix == stateParams && strings.HasPrefix(t.Name, "adamw.") {
			continue
		}
		if name, ok := strings.CutPrefix(t.Name, prefix); ok {
			t.Name = name
			list = append(list, t)
		}
	}
	return list
}

// LoadAdapter reads the adapter of a checkpoint folder into a buffer in host memory.
func LoadAdapter(path string, bank *model.Bank, params kernels.Tensor) error {
	s, err := checkpoints.LoadState(path)
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return fmt.Errorf("%s\nbring it back from a copy; a run that is resumed goes on without it", first)
	}
	if err := bank.Load(params, withPrefix(s.Tensors, stateParams)); err != nil {
		return notOurs(path, err)
	}
	return nil
}

// notOurs is the error for a complete checkpoint that does not fit its run.
func notOurs(path string, err error) error {
	return fmt.Errorf("%s: %w\nthis checkpoint is of another run, or config.yaml was changed: put them together again, or start another run", path, err)
}

func stepFolder(dir string, step int) string { return filepath.Join(dir, fmt.Sprintf("step-%d", step)) }
