package model

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/x448/float16"

	"loratrain/checkpoints"
	"loratrain/kernels"
)

// Every tensor of the file is in its place, whole and unchanged.
func TestGoldenWeights(t *testing.T) {
	digests := map[string]string{}
	for _, model := range tinyModels {
		b := mustOpen(t, goldenModel(model))
		got := slotsOf(b)
		for _, want := range tensorsOf(t, goldenModel(model)) {
			tensor := kernels.Tensor{Shape: want.Shape, Type: kernels.F32, Mem: kernels.Host(want.Data)}
			sameTensor(t, want.Name, got[want.Name], tensor)
			delete(got, want.Name)
		}
		for name := range got {
			t.Errorf("%s: tensor %q is not in the file", model, name)
		}
		same := &b.Weights.Head.Mem.(kernels.Host)[0] == &b.Weights.Embed.Mem.(kernels.Host)[0]
		if same != b.Arch.Tied {
			t.Errorf("%s: head is embedding: %v, tied: %v", model, same, b.Arch.Tied)
		}
		if other, ok := digests[b.Digest()]; ok {
			t.Errorf("%s has the digest of %s", model, other)
		}
		digests[b.Digest()] = model
	}
}

func TestTensorsRefused(t *testing.T) {
	const q = "model.layers.1.self_attn.q_proj.weight"
	drop := func(name string) func(checkpoints.Tensor) (checkpoints.Tensor, bool) {
		return func(x checkpoints.Tensor) (checkpoints.Tensor, bool) { return x, x.Name != name }
	}
	change := func(name string, f func(*checkpoints.Tensor)) func(checkpoints.Tensor) (checkpoints.Tensor, bool) {
		return func(x checkpoints.Tensor) (checkpoints.Tensor, bool) {
			if x.Name == name {
				f(&x)
			}
			return x, true
		}
	}
	for _, test := range []struct {
		model  string
		config edits
		tensor func(checkpoints.Tensor) (checkpoints.Tensor, bool)
		want   string
	}{
		{"llama", nil, drop(q), `tensor "` + q + `" is missing` + "\n" + adviceFetch},
		{"llama", nil, change(q, func(x *checkpoints.Tensor) { x.Shape = []int{16, 64} }), `tensor "` + q + `" has shape [16 64], want [32 32]` + "\n" + adviceFetch},
		{"llama", nil, change(q, func(x *checkpoints.Tensor) { x.Type = "I32" }), `tensor "` + q + `" has type I32, only F64, F32, BF16 and F16 are supported` + "\n" + adviceFetch},
		{"llama", edits{"num_hidden_layers": 1}, drop(""), `unexpected tensor "model.layers.1.input_layernorm.weight"` + "\nuse the model's own files, without adapters or other additions"},
		{"llama", edits{"num_hidden_layers": 1000000000}, drop(""), "num_hidden_layers is 1000000000, but the weights are 20 tensors\n" + adviceFetch},
		{"llama", edits{"num_hidden_layers": 20}, drop(""), `tensor "model.layers.2.input_layernorm.weight" is missing` + "\n" + adviceFetch},
		{"llama", edits{"attention_bias": true}, drop(""), `tensor "model.layers.0.self_attn.q_proj.bias" is missing` + "\n" + adviceFetch},
		{"llama", edits{"mlp_bias": true}, drop(""), `tensor "model.layers.0.mlp.gate_proj.bias" is missing` + "\n" + adviceFetch},
		{"llama", edits{"tie_word_embeddings": false}, drop(""), `tensor "lm_head.weight" is missing` + "\nif the model shares it with the embedding, set tie_word_embeddings to true in config.json"},
		{"llama31", edits{"tie_word_embeddings": true}, drop(""), `tensor "lm_head.weight" differs from the embedding, which tie_word_embeddings puts in its place` + "\nset tie_word_embeddings to false in config.json if the model has an output projection of its own"},
		{"qwen2", edits{"vocab_size": 96}, drop(""), `tensor "model.embed_tokens.weight" has shape [97 32], want [96 32]` + "\n" + adviceFetch},
		{"qwen3", edits{"head_dim": gone}, drop(""), `tensor "model.layers.0.self_attn.q_norm.weight" has shape [16], want [128]` + "\n" + adviceFetch},
	} {
		t.Run(test.want[:strings.IndexByte(test.want, '\n')], func(t *testing.T) {
			dir := variant(t, test.model, test.config)
			retype(t, dir, test.tensor)
			refused(t, dir, dir, "DIR: "+test.want)
		})
	}
}

// Tensors that say nothing new are let pass: the rotary embedding's cache, a copy of a tied embedding.
func TestTensorsHarmless(t *testing.T) {
	dir := variant(t, "llama", nil)
	tensors := tensorsOf(t, dir)
	for _, x := range tensors {
		if x.Name == "model.embed_tokens.weight" {
			x.Name = "lm_head.weight"
			tensors = append(tensors, x)
		}
	}
	for _, name := range []string{"model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"} {
		tensors = append(tensors, checkpoints.Float32Tensor(name, []int{4}, make([]float32, 4)))
	}
	writeWeights(t, filepath.Join(dir, "model.safetensors"), tensors)
	if got, want := mustOpen(t, dir).Digest(), mustOpen(t, goldenModel("llama")).Digest(); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

// A model of any type has the values of its tensors: F32, BF16 and F64 as they are, F16 widened.
func TestTensorTypes(t *testing.T) {
	narrow := map[checkpoints.Type]func([]byte, float32) []byte{
		checkpoints.F64: func(b []byte, x float32) []byte {
			return binary.LittleEndian.AppendUint64(b, math.Float64bits(float64(x)))
		},
		checkpoints.F16: func(b []byte, x float32) []byte {
			return binary.LittleEndian.AppendUint16(b, float16.Fromfloat32(x).Bits())
		},
		checkpoints.BF16: func(b []byte, x float32) []byte {
			return binary.LittleEndian.AppendUint16(b, uint16(kernels.ToBFloat16(x)))
		},
	}
	types := map[checkpoints.Type]kernels.Type{checkpoints.F64: kernels.F64, checkpoints.F16: kernels.F32, checkpoints.BF16: kernels.BF16}
	for kind, put := range narrow {
		dir := variant(t, "qwen2", nil)
		want := map[string][]float32{}
		retype(t, dir, func(x checkpoints.Tensor) (checkpoints.Tensor, bool) {
			values, err := x.Float32s()
			if err != nil {
				t.Fatal(err)
			}
			x.Type, x.Data = kind, nil
			for _, v := range values {
				x.Data = put(x.Data, v)
			}
			want[x.Name], err = x.Float32s()
			return x, err == nil
		})
		for name, got := range slotsOf(mustOpen(t, dir)) {
			if got.Type != types[kind] {
				t.Errorf("%s: tensor %q has type %v, want %v", kind, name, got.Type, types[kind])
			}
			if diff := cmp.Diff(want[name], floats(widened(got))); diff != "" {
				t.Errorf("%s: tensor %q (-want +got):\n%.600s", kind, name, diff)
			}
		}
	}
}

func floats(t kernels.Tensor) []float32 {
	out := make([]float32, 0, t.Len())
	switch t.Type {
	case kernels.F64:
		for _, x := range kernels.Slice[float64](t) {
			out = append(out, float32(x))
		}
	case kernels.BF16:
		for _, x := range kernels.Slice[kernels.BFloat16](t) {
			out = append(out, x.Float32())
		}
	default:
		out = append(out, kernels.Slice[float32](t)...)
	}
	return out
}

// Any linear layer may have a bias.
func TestBiases(t *testing.T) {
	dir := variant(t, "llama", edits{"attention_bias": true, "mlp_bias": true})
	tensors := tensorsOf(t, dir)
	arch := mustOpen(t, goldenModel("llama")).Arch
	value := func(layer int, target Target) float32 { return float32(100*layer) + float32(target) }
	for layer := range arch.Layers {
		for _, target := range AllTargets() {
			_, out := arch.Shape(target)
			x := checkpoints.Float32Tensor(Module(layer, target)+".bias", []int{out}, slices.Repeat([]float32{value(layer, target)}, out))
			tensors = append(tensors, x)
		}
	}
	writeWeights(t, filepath.Join(dir, "model.safetensors"), tensors)
	for layer, w := range mustOpen(t, dir).Weights.Layers {
		for _, target := range AllTargets() {
			_, out := arch.Shape(target)
			if diff := cmp.Diff(slices.Repeat([]float32{value(layer, target)}, out), floats(w.Bias[target])); diff != "" {
				t.Errorf("bias of %s (-want +got):\n%s", Module(layer, target), diff)
			}
		}
	}
}

// Weights that lie askew in the file, as the format allows, are copied to where kernels can read them.
func TestUnalignedWeights(t *testing.T) {
	for shift := range 4 {
		dir := variant(t, "llama", nil)
		path := filepath.Join(dir, "model.safetensors")
		data := read(t, path)
		length := binary.LittleEndian.Uint64(data)
		askew := binary.LittleEndian.AppendUint64(nil, length+uint64(shift))
		askew = append(append(askew, data[8:8+length]...), strings.Repeat(" ", shift)...)
		write(t, path, string(askew)+string(data[8+length:]))
		differ(t, mustOpen(t, dir), mustOpen(t, goldenModel("llama")))
	}
}

// A model in several files is the model in one.
func TestSharded(t *testing.T) {
	for _, model := range tinyModels {
		dir := variant(t, model, nil)
		shards, weights := [3][]checkpoints.Tensor{}, map[string]string{}
		for i, x := range tensorsOf(t, dir) {
			shards[i%3] = append(shards[i%3], x)
			weights[x.Name] = fmt.Sprintf("model-%05d-of-00003.safetensors", i%3+1)
		}
		if err := os.Remove(filepath.Join(dir, "model.safetensors")); err != nil {
			t.Fatal(err)
		}
		for i, tensors := range shards {
			writeWeights(t, filepath.Join(dir, fmt.Sprintf("model-%05d-of-00003.safetensors", i+1)), tensors)
		}
		index, err := json.Marshal(map[string]any{"metadata": map[string]any{}, "weight_map": weights})
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "model.safetensors.index.json"), string(index))
		got, want := mustOpen(t, dir), mustOpen(t, goldenModel(model))
		differ(t, got, want)
		if got.Digest() != want.Digest() {
			t.Errorf("%s: digest %s, in one file %s", model, got.Digest(), want.Digest())
		}
	}
}

// One bit of one tensor, or another name for it, is another model.
func TestDigestTells(t *testing.T) {
	want := mustOpen(t, goldenModel("llama")).Digest()
	for i := range tensorsOf(t, goldenModel("llama")) {
		dir, n := variant(t, "llama", nil), 0
		retype(t, dir, func(x checkpoints.Tensor) (checkpoints.Tensor, bool) {
			if n == i {
				x.Data[len(x.Data)-1] ^= 1
			}
			n++
			return x, true
		})
		if mustOpen(t, dir).Digest() == want {
			t.Errorf("the digest is blind to tensor %d", i)
		}
	}
}

// A file cut short anywhere is refused with its name.
func TestTruncatedSafetensors(t *testing.T) {
	dir := variant(t, "llama", nil)
	path := filepath.Join(dir, "model.safetensors")
	data := read(t, path)
	for at := 0; at < len(data); at += 1 + len(data)/97 {
		write(t, path, string(data[:at]))
		if _, err := Open(dir); err == nil || !strings.HasPrefix(err.Error(), path+": ") || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%d of %d bytes: error %q", at, len(data), err)
		}
	}
}
