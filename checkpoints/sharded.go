package checkpoints

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

const (
	singleFile = "model.safetensors"
	indexFile  = "model.safetensors.index.json"
)

// Sharded is the weights of a Hugging Face model folder, in one file or several.
// Its tensors are views that end with Close.
type Sharded struct {
	files   []*File
	tensors []Tensor
	index   map[string]int
}

// OpenSharded maps the weights of a Hugging Face folder: model.safetensors, or
// else the shards that model.safetensors.index.json lists. Index and shards must
// agree: every name in its shard, every tensor of a shard in the index, no
// tensor twice, no shard outside of the folder.
func OpenSharded(dir string) (*Sharded, error) {
	s := &Sharded{}
	err := s.open(dir)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.index = indexByName(s.tensors)
	return s, nil
}

func (s *Sharded) open(dir string) error {
	single, index := filepath.Join(dir, singleFile), filepath.Join(dir, indexFile)
	if _, err := os.Stat(single); err == nil {
		return s.add(single)
	}
	data, err := os.ReadFile(index)
	if errors.Is(err, fs.ErrNotExist) {
		return fault("give a Hugging Face model folder whose weights are safetensors",
			"%s: neither %s nor %s is there: %w", dir, singleFile, indexFile, fs.ErrNotExist)
	} else if err != nil {
		return located(index, err)
	}
	shardOf, err := parseIndex(index, data)
	if err != nil {
		return err
	}
	for _, shard := range slices.Sorted(maps.Values(shardOf)) {
		path := filepath.Join(dir, shard)
		if n := len(s.files); n > 0 && s.files[n-1].path == path {
			continue
		}
		if err := s.add(path); err != nil {
			return fmt.Errorf("%s lists a shard: %w", index, err)
		}
	}
	return s.compare(index, dir, shardOf)
}

func (s *Sharded) add(path string) error {
	f, err := Open(path)
	if err != nil {
		return err
	}
	s.files = append(s.files, f)
	s.tensors = append(s.tensors, f.tensors...)
	return nil
}

// parseIndex returns the shard of each tensor.
func parseIndex(path string, data []byte) (map[string]string, error) {
	var weights json.RawMessage
	shardOf := map[string]string{}
	err := eachKey(data, func(key string, value json.RawMessage) error {
		if key == "weight_map" {
			weights = value
		}
		return nil // "metadata" holds totals that the shards tell too
	})
	if err == nil && weights == nil {
		err = errors.New(`no "weight_map"`)
	}
	if err == nil {
		err = eachKey(weights, func(name string, value json.RawMessage) error {
			var shard string
			if err := json.Unmarshal(value, &shard); err != nil {
				return fmt.Errorf("tensor %q: %w", name, err)
			}
			if !filepath.IsLocal(shard) || filepath.Clean(shard) != shard || shard == "." {
				return fmt.Errorf("tensor %q: shard %q is no file name inside the folder", name, shard)
			}
			shardOf[name] = shard
			return nil
		})
	}
	if err != nil {
		return nil, fault(adviceFetch, "%s: %w", path, err)
	}
	return shardOf, nil
}

// compare holds the shards against the index.
func (s *Sharded) compare(index, dir string, shardOf map[string]string) error {
	holder := map[string]string{}
	for _, f := range s.files {
		for _, t := range f.tensors {
			if other, ok := holder[t.Name]; ok {
				return fault(adviceFetch, "%s: tensor %q is in %s too", f.path, t.Name, other)
			}
			holder[t.Name] = f.path
			if _, ok := shardOf[t.Name]; !ok {
				return fault(adviceFetch, "%s: tensor %q is not in %s", f.path, t.Name, indexFile)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(shardOf)) {
		want := filepath.Join(dir, shardOf[name])
		if holder[name] == "" {
			return fault(adviceFetch, "%s: tensor %q is not in its shard %s", index, name, shardOf[name])
		}
		if holder[name] != want {
			return fault(adviceFetch, "%s: tensor %q is said to be in %s and is in %s", index, name, shardOf[name], filepath.Base(holder[name]))
		}
	}
	return nil
}

// Tensor finds a tensor by its name.
func (s *Sharded) Tensor(name string) (Tensor, bool) {
	i, ok := s.index[name]
	if !ok {
		return Tensor{}, false
	}
	return s.tensors[i], true
}

// Tensors returns all tensors, shard by shard in the order of their names.
func (s *Sharded) Tensors() []Tensor { return slices.Clone(s.tensors) }

// Close unmaps all shards. Their tensors must not be used any more.
func (s *Sharded) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	s.files, s.tensors, s.index = nil, nil, nil
	return errors.Join(errs...)
}
