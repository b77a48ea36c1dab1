package checkpoints

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/maruel/safetensors"
)

// File is a safetensors file mapped into memory. Its tensors are views of the
// mapping: they are read-only and end with Close.
type File struct {
	path     string
	mapped   safetensors.Mapped
	tensors  []Tensor
	index    map[string]int
	metadata map[string]string
}

// Open maps a safetensors file, after checking all that its header claims.
// Errors name the file and the tensor; a file that is not there is an
// [fs.ErrNotExist].
func Open(path string) (*File, error) {
	if err := checkFile(path); err != nil {
		return nil, err
	}
	f := &File{path: path}
	if err := f.mapped.Open(path); err != nil {
		return nil, fault(adviceForeign, "%s: %w", path, err)
	}
	f.tensors, f.metadata = convert(f.mapped.File)
	f.index = indexByName(f.tensors)
	return f, nil
}

func checkFile(path string) error {
	r, err := os.Open(path)
	if err != nil {
		return located(path, err)
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return located(path, err)
	}
	if !info.Mode().IsRegular() {
		return fault("put the .safetensors file there, or give the path of one", "%s: not a file", path)
	}
	return checkHeader(path, r, info.Size())
}

// located puts the path before an error of the operating system, once.
func located(path string, err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		err = perr.Err
	}
	advice := "check the path, its permissions and the disk"
	return fault(advice, "%s: %w", path, err)
}

// parse reads a whole safetensors file from memory. Tensors are views of data.
func parse(name string, data []byte) ([]Tensor, map[string]string, error) {
	if err := checkHeader(name, bytes.NewReader(data), int64(len(data))); err != nil {
		return nil, nil, err
	}
	f, err := safetensors.Parse(data)
	if err != nil {
		return nil, nil, fault(adviceForeign, "%s: %w", name, err)
	}
	tensors, metadata := convert(f)
	return tensors, metadata, nil
}

// convert returns the tensors in the header's order, without the padding that Write adds.
func convert(f *safetensors.File) ([]Tensor, map[string]string) {
	tensors := make([]Tensor, 0, len(f.Tensors))
	for _, t := range f.Tensors {
		if isPadding(t) {
			continue
		}
		shape := make([]int, len(t.Shape))
		for i, d := range t.Shape {
			shape[i] = int(d)
		}
		tensors = append(tensors, Tensor{Name: t.Name, Type: Type(t.DType), Shape: shape, Data: t.Data[:len(t.Data):len(t.Data)]})
	}
	return tensors, f.Metadata
}

func isPadding(t safetensors.Tensor) bool {
	return strings.HasPrefix(t.Name, paddingPrefix) && t.DType == safetensors.U8 && len(t.Data) < alignment
}

func indexByName(tensors []Tensor) map[string]int {
	index := make(map[string]int, len(tensors))
	for i, t := range tensors {
		index[t.Name] = i
	}
	return index
}

// Tensor finds a tensor by its name.
func (f *File) Tensor(name string) (Tensor, bool) {
	i, ok := f.index[name]
	if !ok {
		return Tensor{}, false
	}
	return f.tensors[i], true
}

// Tensors returns all tensors in the order of the file's header.
func (f *File) Tensors() []Tensor { return slices.Clone(f.tensors) }

// Metadata returns the strings that the header carries beside the tensors.
func (f *File) Metadata() map[string]string { return maps.Clone(f.metadata) }

// Close unmaps the file. Its tensors must not be used any more.
func (f *File) Close() error {
	f.tensors, f.index = nil, nil
	if err := f.mapped.Close(); err != nil {
		return fmt.Errorf("close safetensors: %w", err)
	}
	return nil
}
