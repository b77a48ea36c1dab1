package checkpoints

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

const adviceExport = "export the adapter again"

// Serving is an adapter as decoders read it, mapped from a folder that
// FORMAT.md describes. Its tensors are read-only views that end with Close.
type Serving struct {
	*File
	Config Config
	Dir    string
}

// WriteServing writes the serving folder dir, which must not exist. The tensors
// have the names and shapes of FORMAT.md; those it stores as BF16 may be given
// as F32 and are rounded to nearest, ties to even. What [OpenServing] would
// refuse is refused here, and then nothing is left behind. checks look at the
// folder, complete but still under another path, before it appears as dir; an
// error of theirs is returned and the folder deleted.
func WriteServing(dir string, c Config, tensors []Tensor, checks ...func(path string) error) error {
	tensors, err := servingTensors(c, tensors)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	config, err := encodeJSON(c.json())
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	f, err := NewFolder(dir)
	if err != nil {
		return err
	}
	_, err = f.writeTensors(tensorFile, tensors, map[string]string{"format": servingFormat, "version": fmt.Sprint(servingVersion)}, true)
	if err == nil {
		err = f.WriteFile(configFile, config)
	}
	for _, check := range checks {
		if err == nil {
			err = check(f.Path())
		}
	}
	if err == nil {
		err = f.Commit()
	}
	if err != nil {
		return errors.Join(err, f.Abort())
	}
	return nil
}

// servingTensors rounds what has to be rounded and checks config and tensors.
func servingTensors(c Config, tensors []Tensor) ([]Tensor, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	tensors = slices.Clone(tensors)
	index := indexByName(tensors)
	if len(index) != len(tensors) {
		return nil, fmt.Errorf("two tensors are called %q", repeatedName(tensors))
	}
	for s := range c.specs() {
		i, ok := index[s.name]
		if !ok {
			break // checkTensors names it
		}
		if s.kind == BF16 && tensors[i].Type == F32 {
			rounded, err := roundToBF16(tensors[i])
			if err != nil {
				return nil, err
			}
			tensors[i] = rounded
		}
	}
	return tensors, checkTensors(c, tensors)
}

func roundToBF16(t Tensor) (Tensor, error) {
	values, err := t.Float32s()
	if err != nil {
		return t, err
	}
	if i := firstNonFinite(t); i >= 0 {
		return t, nonFinite(t, i)
	}
	data := make([]byte, 0, 2*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint16(data, bf16(v))
	}
	return Tensor{Name: t.Name, Type: BF16, Shape: t.Shape, Data: data}, nil
}

// OpenServing maps a serving folder and checks all of it: format, version, every
// key of the config, every tensor's name, type and shape, that no number is NaN
// or infinite and that the routing table holds experts and weights.
func OpenServing(dir string) (*Serving, error) {
	path := filepath.Join(dir, configFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, incomplete(path, located(path, err))
	}
	c, err := parseConfig(data)
	if err != nil {
		return nil, fault("read it with the program that wrote it, or export the adapter again with this one", "%w", inFile(path, err))
	}
	f, err := Open(filepath.Join(dir, tensorFile))
	if err != nil {
		return nil, incomplete(filepath.Join(dir, tensorFile), err)
	}
	if err := checkTensors(c, f.tensors); err != nil {
		return nil, errors.Join(fault(adviceExport, "%s: %w", f.path, err), f.Close())
	}
	return &Serving{File: f, Config: c, Dir: dir}, nil
}

// incomplete is an error of reading a file of an export, with advice for one that is not there.
func incomplete(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault("fetch both files of the export, or export the adapter again", "%s: %w", path, syscall.ENOENT)
	}
	return err
}

// CheckBase says whether the adapter was made for a base model. name is what
// errors call that model, digest is [Digest] of its tensors.
func (s *Serving) CheckBase(name, digest string, dims Dims) error {
	made := s.Config.Base
	if digest != made.Digest {
		return fault("give the model that the adapter was trained on, or train an adapter for this one",
			"%s: made for base %s (digest %s), this is %s (digest %s)", s.Dir, made.Name, made.Digest, name, digest)
	}
	if dims != made.Dims {
		return fault(adviceExport, "%s: its config gives the base %s as %+v, which is %+v", s.Dir, name, made.Dims, dims)
	}
	return nil
}

// checkTensors holds tensors against the config that describes them.
func checkTensors(c Config, tensors []Tensor) error {
	index := indexByName(tensors)
	expected := make(map[string]bool, len(tensors))
	for s := range c.specs() {
		i, ok := index[s.name]
		if !ok {
			return fmt.Errorf("no tensor %q (want %s %v)", s.name, s.kind, s.shape)
		}
		if err := tensors[i].check(); err != nil {
			return err
		}
		if t := tensors[i]; t.Type != s.kind || !slices.Equal(t.Shape, s.shape) {
			return fmt.Errorf("tensor %q is %s %v, config says %s %v", s.name, t.Type, t.Shape, s.kind, s.shape)
		}
		expected[s.name] = true
	}
	for _, t := range tensors {
		if !expected[t.Name] {
			return fmt.Errorf("unexpected tensor %q", t.Name)
		}
	}
	if err := checkFinite(tensors); err != nil {
		return err
	}
	if c.Granularity == PerToken {
		return checkTable(c, tensors[index[TableIDs]], tensors[index[TableWeights]])
	}
	return nil
}

// checkTable checks the routing table: two distinct experts a token, whose
// weights are what a softmax of two gives.
func checkTable(c Config, ids, weights Tensor) error {
	for v := range c.Base.Vocabulary {
		first := int32(binary.LittleEndian.Uint32(ids.Data[8*v:]))
		second := int32(binary.LittleEndian.Uint32(ids.Data[8*v+4:]))
		for _, id := range []int32{first, second} {
			if id < 0 || int(id) >= c.Experts {
				return fmt.Errorf("tensor %q sends token %d to expert %d of %d", ids.Name, v, id, c.Experts)
			}
		}
		if first == second {
			return fmt.Errorf("tensor %q sends token %d to expert %d twice", ids.Name, v, first)
		}
		sum := 0.0
		for k := range 2 {
			w := floatDecoders[F32](weights.Data[8*v+4*k:])
			if w < 0 {
				return fmt.Errorf("tensor %q has %v for token %d, want 0 or more", weights.Name, w, v)
			}
			sum += w
		}
		if math.Abs(sum-1) > 1e-5 {
			return fmt.Errorf("tensor %q gives token %d weights that sum to %v, want 1", weights.Name, v, sum)
		}
	}
	return nil
}
