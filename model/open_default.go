package model

import (
	"errors"
	"io/fs"

	"github.com/maruel/safetensors"

	"loratrain/checkpoints"
	"loratrain/model/tiny"
	"loratrain/model/tokenizer"
)

// OpenDefault opens the model that is part of the program, [tiny.FS].
func OpenDefault() (*Base, error) { return openEmbedded("tiny", tiny.FS()) }

// openEmbedded opens a Hugging Face folder that the program carries within itself. name is what people and errors
// call it.
func openEmbedded(name string, folder fs.FS) (*Base, error) {
	config, errConfig := fs.ReadFile(folder, "config.json")
	weights, errWeights := fs.ReadFile(folder, "model.safetensors")
	words, errWords := fs.ReadFile(folder, "tokenizer.json")
	if err := errors.Join(errConfig, errWeights, errWords); err != nil {
		return nil, err
	}
	p, err := parseConfig(name+"/config.json", config)
	if err != nil {
		return nil, err
	}
	file, err := safetensors.Parse(weights)
	if err != nil {
		return nil, refuse("build the program again from unchanged sources", "%s/model.safetensors: %w", name, err)
	}
	var tensors []checkpoints.Tensor
	for _, t := range file.Tensors {
		shape := make([]int, len(t.Shape))
		for i, d := range t.Shape {
			shape[i] = int(d)
		}
		tensors = append(tensors, checkpoints.Tensor{Name: t.Name, Type: checkpoints.Type(t.DType), Shape: shape, Data: t.Data})
	}
	b := &Base{Name: name, Arch: p.arch, EOS: p.eos}
	if err := b.take(name, p, tensors); err != nil {
		return nil, err
	}
	b.setTokenizer(tokenizer.Parse(name+"/tokenizer.json", words))
	return b, nil
}
