package checkpoints

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func one(name string, fill byte) Tensor {
	return Tensor{Name: name, Type: U8, Shape: []int{2}, Data: []byte{fill, fill}}
}

// modelFolder writes files, those that are tensors as safetensors.
func modelFolder(t *testing.T, index string, shards map[string][]Tensor) string {
	t.Helper()
	dir := t.TempDir()
	for name, tensors := range shards {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, encoded(t, tensors, nil), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if index != "" {
		if err := os.WriteFile(filepath.Join(dir, indexFile), []byte(index), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpenSharded(t *testing.T) {
	a, b, c := one("a", 1), one("b", 2), one("c", 3)
	for name, dir := range map[string]string{
		"one file": modelFolder(t, "", map[string][]Tensor{singleFile: {a, b, c}}),
		"two shards": modelFolder(t, `{"metadata":{"total_size":6},"weight_map":{"a":"1.safetensors","c":"2.safetensors","b":"1.safetensors"}}`,
			map[string][]Tensor{"1.safetensors": {a, b}, "2.safetensors": {c}}),
		"shard in a subfolder": modelFolder(t, `{"weight_map":{"a":"x/1.safetensors","b":"2.safetensors","c":"x/1.safetensors"}}`,
			map[string][]Tensor{"x/1.safetensors": {a, c}, "2.safetensors": {b}}),
		"the single file wins": modelFolder(t, `{`, map[string][]Tensor{singleFile: {a, b, c}}),
	} {
		s, err := OpenSharded(dir)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sameTensors(t, s.Tensors(), []Tensor{a, b, c})
		if x, ok := s.Tensor("c"); !ok || x.Data[0] != 3 {
			t.Errorf(`%s: Tensor("c") = %v, %v`, name, x, ok)
		}
		if x, ok := s.Tensor("d"); ok {
			t.Errorf(`%s: Tensor("d") = %v, want none`, name, x)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenShardedRefuses(t *testing.T) {
	a, b := one("a", 1), one("b", 2)
	for name, c := range map[string]struct {
		index  string
		shards map[string][]Tensor
		want   []string
	}{
		"no weights":            {"", nil, []string{"neither model.safetensors nor"}},
		"name in no shard":      {`{"weight_map":{"a":"1.safetensors","b":"1.safetensors"}}`, map[string][]Tensor{"1.safetensors": {a}}, []string{indexFile, `"b" is not in its shard 1.safetensors`}},
		"shard missing":         {`{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}`, map[string][]Tensor{"1.safetensors": {a}}, []string{"2.safetensors: no such file", indexFile}},
		"tensor in two shards":  {`{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}`, map[string][]Tensor{"1.safetensors": {a}, "2.safetensors": {a, b}}, []string{"2.safetensors: tensor \"a\" is in ", "1.safetensors too"}},
		"in another shard":      {`{"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}`, map[string][]Tensor{"1.safetensors": {a}, "2.safetensors": {b}}, []string{`tensor "a" is said to be in 2.safetensors and is in 1.safetensors`}},
		"not in the index":      {`{"weight_map":{"a":"1.safetensors"}}`, map[string][]Tensor{"1.safetensors": {a, b}}, []string{"1.safetensors: tensor \"b\" is not in " + indexFile}},
		"name twice":            {`{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}`, map[string][]Tensor{"1.safetensors": {a}}, []string{`"a" is there twice`}},
		"shard above":           {`{"weight_map":{"a":"../1.safetensors"}}`, nil, []string{indexFile, `tensor "a"`, `"../1.safetensors" is no file name inside`}},
		"shard above, hidden":   {`{"weight_map":{"a":"x/../../1.safetensors"}}`, nil, []string{"no file name inside"}},
		"shard absolute":        {`{"weight_map":{"a":"/etc/passwd"}}`, nil, []string{"no file name inside"}},
		"shard without a name":  {`{"weight_map":{"a":""}}`, nil, []string{"no file name inside"}},
		"shard is the folder":   {`{"weight_map":{"a":"."}}`, nil, []string{"no file name inside"}},
		"shard is a number":     {`{"weight_map":{"a":1}}`, nil, []string{`tensor "a"`}},
		"no map":                {`{"metadata":{}}`, nil, []string{`no "weight_map"`}},
		"map is a list":         {`{"weight_map":[]}`, nil, []string{"not a JSON object"}},
		"index cut short":       {`{"weight_map":{"a":`, nil, []string{indexFile, "ends too early"}},
		"index empty as a file": {" ", nil, []string{"ends too early"}},
	} {
		_, err := OpenSharded(modelFolder(t, c.index, c.shards))
		if err == nil {
			t.Errorf("%s: opened, want %q", name, c.want)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %q, want %q in it", name, err, want)
			}
		}
	}
	if _, err := OpenSharded(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty folder: got %v, want fs.ErrNotExist", err)
	}
}
