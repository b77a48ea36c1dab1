package checkpoints

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	stateFormat  = "lora-train-state"
	stateVersion = 1
	stateTensors = "state.safetensors"
	stateJSON    = "state.json"
)

// ErrNoState is what [LatestState] returns where no run saved anything.
var ErrNoState = errors.New("no checkpoint")

// State is everything that decides how a run goes on. Which tensors there are
// (adapters, AdamW's moments) and what Meta says (schedule, sampler, random
// state, config, digests) is the caller's matter.
type State struct {
	Step    int             // optimizer steps taken, ≥ 0
	Tensors []Tensor        // at least one
	Meta    json.RawMessage // any JSON value; comes back without white space
}

// stateHeader is state.json.
type stateHeader struct {
	Format        string          `json:"format"`
	Version       int             `json:"version"`
	Step          int             `json:"step"`
	TensorsSHA256 string          `json:"tensors_sha256"`
	TensorNames   []string        `json:"tensor_names"`
	MetaSHA256    string          `json:"meta_sha256"`
	Meta          json.RawMessage `json:"meta"`
}

// SaveState writes the folder step-N in dir, N being s.Step, with
// state.safetensors and state.json. A process killed at any instant leaves the
// folder complete or absent, and what was there before untouched. A complete
// step-N that is there already is [ErrExists]; a damaged one is replaced.
func SaveState(dir string, s State) error {
	if s.Step < 0 {
		return fmt.Errorf("checkpoint of step %d", s.Step)
	}
	final := stepPath(dir, s.Step)
	if _, err := os.Lstat(final); err == nil {
		if _, err := LoadState(final); err == nil {
			return fault("resume from it, or use another run folder", "%s: %w", final, ErrExists)
		}
		if err := discard(final); err != nil {
			return err
		}
	}
	f, err := NewFolder(final)
	if err != nil {
		return err
	}
	if err := f.writeState(s); err != nil {
		return errors.Join(saveFailed(final, err), f.Abort())
	}
	if err := f.Commit(); err != nil {
		return errors.Join(saveFailed(final, err), f.Abort())
	}
	return nil
}

func saveFailed(final string, err error) error {
	first, _, _ := strings.Cut(err.Error(), "\n") // our advice is the better one
	return &saveError{fmt.Sprintf("save checkpoint %s: %s\nfree space or mend the disk, then resume: earlier checkpoints are untouched", final, first), err}
}

type saveError struct {
	text  string
	cause error
}

func (e *saveError) Error() string { return e.text }
func (e *saveError) Unwrap() error { return e.cause }

func (f *Folder) writeState(s State) error {
	sum, err := f.writeTensors(stateTensors, s.Tensors, nil, true)
	if err != nil {
		return err
	}
	meta := s.Meta
	if meta == nil {
		meta = json.RawMessage("null")
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, meta); err != nil {
		return fmt.Errorf("meta: %w", err)
	}
	names := make([]string, len(s.Tensors))
	for i, t := range s.Tensors {
		names[i] = t.Name
	}
	slices.Sort(names)
	data, err := encodeJSON(stateHeader{
		Format: stateFormat, Version: stateVersion, Step: s.Step,
		TensorsSHA256: sum, TensorNames: names, MetaSHA256: hexSum(compact.Bytes()), Meta: compact.Bytes(),
	})
	if err != nil {
		return err
	}
	return f.WriteFile(stateJSON, data)
}

// writeTensors writes a safetensors file inside of the folder and returns its SHA-256.
func (f *Folder) writeTensors(name string, tensors []Tensor, metadata map[string]string, pad bool) (string, error) {
	path := filepath.Join(f.path, name)
	w, err := os.Create(path)
	if err != nil {
		return "", located(path, err)
	}
	sum := sha256.New()
	err = encode(io.MultiWriter(w, sum), tensors, metadata, pad)
	if err := cmp.Or(err, w.Close()); err != nil {
		return "", located(path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// LoadState reads one step's folder into memory and checks every byte of it.
func LoadState(path string) (State, error) {
	s, err := loadState(path)
	if err != nil {
		return State{}, fault("delete this folder and resume from an earlier step", "%s: %w", path, err)
	}
	return s, nil
}

func loadState(path string) (State, error) {
	data, err := os.ReadFile(filepath.Join(path, stateJSON))
	if err != nil {
		return State{}, missingPart(err)
	}
	if err := checkFormat(data, stateFormat, stateVersion); err != nil {
		return State{}, inFile(stateJSON, err)
	}
	var h stateHeader
	if err := strictJSON(data, &h); err != nil {
		return State{}, inFile(stateJSON, err)
	}
	var meta bytes.Buffer
	if err := json.Compact(&meta, h.Meta); err != nil || hexSum(meta.Bytes()) != h.MetaSHA256 {
		return State{}, fmt.Errorf("%s: damaged: its meta has another checksum", stateJSON)
	}
	if h.Step < 0 {
		return State{}, fmt.Errorf("%s: step is %d", stateJSON, h.Step)
	}
	tensors, err := loadStateTensors(filepath.Join(path, stateTensors), h)
	return State{Step: h.Step, Tensors: tensors, Meta: meta.Bytes()}, err
}

func loadStateTensors(path string, h stateHeader) ([]Tensor, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, missingPart(err)
	}
	if hexSum(data) != h.TensorsSHA256 {
		return nil, fmt.Errorf("%s: damaged: its %d bytes have another checksum than %s says", stateTensors, len(data), stateJSON)
	}
	tensors, _, err := parse(stateTensors, data)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(tensors))
	for i, t := range tensors {
		names[i] = t.Name
	}
	slices.Sort(names)
	if !slices.Equal(names, h.TensorNames) {
		return nil, fmt.Errorf("%s: its tensors are not those that %s names", stateTensors, stateJSON)
	}
	return tensors, nil
}

// missingPart tells a folder that lacks a file from one that cannot be read.
func missingPart(err error) error {
	if perr, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", filepath.Base(perr.Path), perr.Err)
	}
	return err
}

// Latest is the newest complete state of a run.
type Latest struct {
	State
	Path    string  // its folder
	Skipped []error // why newer folders were passed over; show them to the user
}

// LatestState loads the newest complete state in dir and says which newer ones
// it had to skip. It returns [ErrNoState] where there is none at all.
func LatestState(dir string) (Latest, error) {
	steps, err := listSteps(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Latest{}, err
	}
	var l Latest
	for _, step := range slices.Backward(steps) {
		l.Path = stepPath(dir, step)
		l.State, err = LoadState(l.Path)
		if err == nil && l.Step != step {
			err = fault("give the folder its own name back", "%s: holds step %d", l.Path, l.Step)
		}
		if err == nil {
			return l, nil
		}
		l.Skipped = append(l.Skipped, err)
	}
	if len(l.Skipped) > 0 {
		return Latest{}, errors.Join(append([]error{fmt.Errorf("%s: none of %d checkpoints is complete", dir, len(steps))}, l.Skipped...)...)
	}
	return Latest{}, fault("start the run without resuming", "%s: %w", dir, ErrNoState)
}

// Reap deletes the states in dir except those of the steps in keep, and what
// killed processes left half-written. None is ever seen half deleted.
func Reap(dir string, keep ...int) error {
	steps, err := listSteps(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, step := range steps {
		if !slices.Contains(keep, step) {
			errs = append(errs, discard(stepPath(dir, step)))
		}
	}
	unlock, err := lockFolder(dir)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer unlock()
	return errors.Join(append(errs, reapStale(dir))...)
}

func stepPath(dir string, step int) string { return filepath.Join(dir, fmt.Sprintf("step-%d", step)) }

// listSteps returns the steps that have a folder in dir, ascending.
func listSteps(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, located(dir, err)
	}
	var steps []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "step-")
		step, err := strconv.Atoi(digits)
		if ok && err == nil && e.IsDir() && strconv.Itoa(step) == digits && step >= 0 {
			steps = append(steps, step)
		}
	}
	slices.Sort(steps)
	return steps, nil
}
