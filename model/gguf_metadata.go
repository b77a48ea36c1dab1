package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gomlx/go-huggingface/models/gguf"

	"loratrain/model/tokenizer"
)

// metadata brings a file's metadata to the form that [fields] reads. Only the tokenizer has large arrays, and those
// are left to it.
func metadata(path string, file *gguf.File) *fields {
	f := &fields{where: path, values: map[string]any{}}
	for _, kv := range file.KeyValues {
		if !strings.HasPrefix(kv.Key, "tokenizer.") || !isArray(kv.Raw()) {
			f.values[kv.Key] = jsonValue(kv.Raw())
		}
	}
	return f
}

func isArray(v any) bool {
	_, isList := jsonValue(v).([]any)
	return isList
}

// jsonValue is v as package json would have decoded it. A float32 becomes the shortest number that rounds to it, which
// is what the model's author wrote.
func jsonValue(v any) any {
	switch v := v.(type) {
	case bool, string:
		return v
	case float32:
		return json.Number(strconv.FormatFloat(float64(v), 'g', -1, 32))
	case float64:
		return json.Number(strconv.FormatFloat(v, 'g', -1, 64))
	case uint8, int8, uint16, int16, uint32, int32, uint64, int64:
		return json.Number(fmt.Sprint(v))
	default:
		return []any{fmt.Sprintf("%T", v)} // an array, which no key that is read has
	}
}

// ggufPlan reads what the metadata says of the model, apart from its vocabulary's size, which may be left out.
func ggufPlan(f *fields) plan {
	kind := f.text("general.architecture", "")
	if kind != "llama" && kind != "qwen2" && kind != "qwen3" {
		f.fail(adviceFamily, "architecture %q is not supported, only llama (Mistral says llama too), qwen2 and qwen3", kind)
		return plan{}
	}
	if is := f.text("general.type", "model"); is != "model" {
		f.fail("give the model itself", "general.type is %q, want a model", is)
	}
	if n := f.count("split.count", 0); n > 1 {
		f.fail("join them with llama.cpp's llama-gguf-split --merge", "the model is split into %d files, only one is supported", n)
	}
	f.prefix = kind + "."
	a := Arch{
		Family:  kind,
		Width:   f.size("embedding_length", 0),
		MLP:     f.size("feed_forward_length", 0),
		Layers:  f.size("block_count", 0),
		Heads:   f.size("attention.head_count", 0),
		Context: f.size("context_length", 0),
		Eps:     f.number("attention.layer_norm_rms_epsilon", 0),
		Theta:   f.number("rope.freq_base", 10000),
		Window:  f.count("attention.sliding_window", 0),
		QKNorm:  kind == "qwen3",
		Vocab:   f.size("vocab_size", maxSize),
	}
	if f.err == nil {
		a.KVHeads = f.size("attention.head_count_kv", a.Heads)
		f.ggufHeads(&a)
		f.ggufRope()
	}
	f.prefix = ""
	return plan{arch: a}
}

// ggufHeads reads the size of a head, which several keys may tell.
func (f *fields) ggufHeads(a *Arch) {
	if f.take("attention.key_length") == nil && a.Width%a.Heads != 0 {
		f.fail(adviceGGUF, "%sembedding_length %d is no multiple of attention.head_count %d, and there is no attention.key_length", f.prefix, a.Width, a.Heads)
	}
	a.HeadDim = f.size("attention.key_length", max(a.Width/a.Heads, 1))
	for _, key := range []string{"attention.value_length", "rope.dimension_count"} {
		if n := f.size(key, a.HeadDim); n != a.HeadDim {
			f.fail("use another model", "%s%s is %d, which is only supported if it is the size of a head, %d", f.prefix, key, n, a.HeadDim)
		}
	}
	f.checkHeads(*a, "attention.head_count", "attention.head_count_kv", "attention.key_length")
}

// ggufRope refuses every scaling of the rotary embedding but that by the tensor rope_freqs, which has no key.
func (f *fields) ggufRope() {
	if kind := f.text("rope.scaling.type", "none"); kind != "none" {
		f.fail("use a model without it", "rope type %q is not supported, only none and the factors of tensor rope_freqs", kind)
	}
	for _, key := range []string{"rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"} {
		if x := f.take(key); !empty(x) && f.number(key, 1) != 1 {
			f.fail("use a model without it", "%s%s %v is not supported, only 1", f.prefix, key, x)
		}
	}
	f.take("rope.scaling.original_context_length") // means something beside a type only
	f.take("rope.scaling.finetuned")               // likewise
	if layout := f.text("tensor_data_layout", ""); layout != "" && layout != "Meta AI original pth" {
		f.fail(adviceGGUF, "tensor_data_layout %q is not known", layout)
	}
	if !f.flag("attention.causal", true) {
		f.fail("use a model that predicts the next token", "%sattention.causal is false", f.prefix)
	}
}

// ggufEOS reads the tokens that end a text.
func (f *fields) ggufEOS(vocab int) (ids []int32) {
	for _, key := range []string{"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"} {
		for _, id := range f.tokens(key, vocab) {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// ggufNote reports that a key is outside of the architecture's own: for people, for the tokenizer, or a note of whoever
// quantised the model.
func (p plan) ggufNote(key string) bool { return !strings.HasPrefix(key, p.arch.Family+".") }

// ggufTokenizer is what the metadata says of the tokenizer.
func ggufTokenizer(path string, file *gguf.File) tokenizer.Metadata {
	value := func(key string) gguf.Value {
		kv, _ := file.GetKeyValue("tokenizer.ggml." + key)
		return kv.Value
	}
	id := func(key string) int32 {
		if value(key).Raw() == nil {
			return -1
		}
		return int32(min(value(key).Uint64(), math.MaxInt32))
	}
	choice := func(key string) *bool {
		if b, ok := value(key).Raw().(bool); ok {
			return &b
		}
		return nil
	}
	m := tokenizer.Metadata{
		File:   path,
		Model:  value("model").String(),
		Pre:    value("pre").String(),
		Tokens: value("tokens").Strings(),
		Merges: value("merges").Strings(),
		BOS:    id("bos_token_id"),
		EOS:    id("eos_token_id"),
		EOT:    id("eot_token_id"),
		PAD:    id("padding_token_id"),
		UNK:    id("unknown_token_id"),
		AddBOS: choice("add_bos_token"),
		AddEOS: choice("add_eos_token"),
	}
	for _, kind := range value("token_type").Int64s() {
		m.Types = append(m.Types, int32(kind))
	}
	return m
}
