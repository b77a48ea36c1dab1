package model

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/model/tokenizer"
)

// openHF opens a Hugging Face folder; given is the path that stood for it.
func openHF(dir, given string) (_ *Base, err error) {
	p, err := readConfigs(dir)
	if err != nil {
		return nil, err
	}
	weights, err := checkpoints.OpenSharded(dir)
	if err != nil {
		return nil, err
	}
	b := &Base{Name: nameOf(dir), Path: given, Arch: p.arch, EOS: p.eos}
	b.mappings = append(b.mappings, weights)
	if err := b.take(dir, p, weights.Tensors()); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	path := filepath.Join(dir, "tokenizer.json")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		b.noTokenizer = refuse("put the tokenizer.json that belongs to the model beside config.json", "%s: no tokenizer.json", dir)
		return b, nil
	}
	b.setTokenizer(tokenizer.Open(path))
	return b, nil
}

// readConfigs reads config.json, and generation_config.json for the tokens that end a text if it is there.
func readConfigs(dir string) (plan, error) {
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return plan{}, refuse("check its permissions", "%s: %w", path, bare(err))
	}
	p, err := parseConfig(path, data)
	if err != nil {
		return p, err
	}
	path = filepath.Join(dir, "generation_config.json")
	if data, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
		return p, nil
	} else if err != nil {
		return p, refuse("check its permissions", "%s: %w", path, bare(err))
	}
	f, err := parseFields(path, data)
	if err != nil {
		return p, err
	}
	if eos := f.tokens("eos_token_id", p.arch.Vocab); eos != nil {
		p.eos = eos
	}
	return p, f.err
}

// rotaryCache is a tensor that old files carry and that the configuration makes again.
var rotaryCache = regexp.MustCompile(`^model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$`)

// take gives every slot of the model its tensor, and refuses what is missing, mis-shaped or left over.
func (b *Base) take(where string, p plan, tensors []checkpoints.Tensor) error {
	if p.arch.Layers > len(tensors) { // before there is room made for them
		return refuse(adviceFetch, "%s: num_hidden_layers is %d, but the weights are %d tensors", where, p.arch.Layers, len(tensors))
	}
	found := map[string]checkpoints.Tensor{}
	for _, t := range tensors {
		found[t.Name] = t
	}
	all := b.Weights.slots(p.arch, p.bias)
	sources := make([]checkpoints.Tensor, len(all))
	for i, s := range all {
		t, ok := found[s.name]
		switch {
		case !ok && s.name == "lm_head.weight":
			return refuse("if the model shares it with the embedding, set tie_word_embeddings to true in config.json", "%s: tensor %q is missing", where, s.name)
		case !ok:
			return refuse(adviceFetch, "%s: tensor %q is missing", where, s.name)
		case !slices.Equal(t.Shape, s.shape):
			return refuse(adviceFetch, "%s: tensor %q has shape %v, want %v", where, s.name, t.Shape, s.shape)
		}
		sources[i] = t
		delete(found, s.name)
	}
	if err := leftOver(where, p, found, sources[0]); err != nil {
		return err
	}
	err := inParallel(len(all), func(i int) (err error) {
		*all[i].dst, err = hostTensor(sources[i])
		return err
	})
	if err != nil {
		return refuse(adviceFetch, "%s: %w", where, err)
	}
	b.finish(all)
	return nil
}

// leftOver refuses the tensors that no slot took, but for those that change nothing.
func leftOver(where string, p plan, found map[string]checkpoints.Tensor, embed checkpoints.Tensor) error {
	names := make([]string, 0, len(found))
	for name, t := range found {
		switch {
		case rotaryCache.MatchString(name):
		case name == "lm_head.weight" && p.arch.Tied:
			if t.Type != embed.Type || !bytes.Equal(t.Data, embed.Data) {
				return refuse("set tie_word_embeddings to false in config.json if the model has an output projection of its own",
					"%s: tensor %q differs from the embedding, which tie_word_embeddings puts in its place", where, name)
			}
		default:
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		return refuse("use the model's own files, without adapters or other additions",
			"%s: unexpected tensor %q", where, slices.Min(names))
	}
	return nil
}

var hostTypes = map[checkpoints.Type]kernels.Type{
	checkpoints.F64: kernels.F64, checkpoints.F32: kernels.F32, checkpoints.BF16: kernels.BF16,
}

// hostTensor is a tensor of a file for kernels, or F16 that becomes one: a view if they read its type and it is aligned, else a copy.
func hostTensor(t checkpoints.Tensor) (kernels.Tensor, error) {
	if t.Type == checkpoints.F16 {
		return kernels.Tensor{Type: kernels.F32, Shape: t.Shape, Mem: f16(t.Data)}, nil
	}
	kind, ok := hostTypes[t.Type]
	if !ok {
		return kernels.Tensor{}, fmt.Errorf("tensor %q has type %s, only F64, F32, BF16 and F16 are supported", t.Name, t.Type)
	}
	return view(t.Data, kind, t.Shape), nil
}

// view is data as a tensor: a copy if it is not aligned.
func view(data []byte, kind kernels.Type, shape []int) kernels.Tensor {
	if kernels.Aligned(kind, data) {
		return kernels.Tensor{Shape: shape, Type: kind, Mem: kernels.Host(data)}
	}
	t := kernels.NewHost(kind, shape...)
	copy(t.Mem.(kernels.Host), data)
	return t
}
