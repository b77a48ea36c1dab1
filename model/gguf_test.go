package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"loratrain/kernels"
)

// A GGUF file made of a Hugging Face folder is the same model.
func TestGGUFIsTheFolder(t *testing.T) {
	for _, test := range []struct{ model, arch string }{
		{"llama", "llama"},
		{"llama31", "llama"},
		{"mistral", "llama"},
		{"qwen2", "qwen2"},
		{"qwen3", "qwen3"},
		{"qwen2", "llama"}, // a Llama with attention_bias: the biases of q and k are permuted too
	} {
		t.Run(test.model+" as "+test.arch, func(t *testing.T) {
			want := mustOpen(t, goldenModel(test.model))
			path, dir := save(t, ggufOf(want, test.arch).bytes())
			got := mustOpen(t, path)
			if alone := mustOpen(t, dir); alone.Name != "m" || alone.Digest() != got.Digest() {
				t.Errorf("the folder opens as %q with digest %s", alone.Name, alone.Digest())
			}
			differ(t, got, want)
			if got.Digest() != want.Digest() {
				t.Errorf("digest %s, want %s", got.Digest(), want.Digest())
			}
			if diff := cmp.Diff(want.EOS, got.EOS); diff != "" {
				t.Errorf("EOS (-want +got):\n%s", diff)
			}
			for i, f := range want.Arch.Frequencies() {
				if g := got.Arch.Frequencies()[i]; math.Abs(g-f) > 1e-7*f {
					t.Errorf("frequency %d is %v, want %v", i, g, f)
				}
			}
			a := want.Arch
			a.Family, a.Scaling, a.FreqFactors = test.arch, nil, got.Arch.FreqFactors
			if diff := cmp.Diff(a, got.Arch); diff != "" {
				t.Errorf("architecture (-want +got):\n%s", diff)
			}
		})
	}
}

// What files leave out has llama.cpp's defaults, and the vocabulary is the embedding's.
func TestGGUFDefaults(t *testing.T) {
	want := mustOpen(t, goldenModel("llama"))
	g := ggufOf(want, "llama")
	for _, key := range []string{
		"attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base",
		"vocab_size", "attention.sliding_window",
	} {
		g.set("llama."+key, nil)
	}
	g.set("llama.expert_count", 0)
	g.set("somebody.quantize_version", 2)
	g.set("llama.rope.scaling.factor", 1.0)
	path, _ := save(t, g.bytes())
	if diff := cmp.Diff(want.Arch, mustOpen(t, path).Arch); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Data that is not aligned for its type is copied.
func TestGGUFUnaligned(t *testing.T) {
	want := mustOpen(t, goldenModel("qwen2"))
	g := ggufOf(want, "qwen2")
	g.align = 1
	g.set("general.alignment", 1)
	for extra := range 4 {
		g.set("general.name", strings.Repeat("x", extra))
		path, _ := save(t, g.bytes())
		differ(t, mustOpen(t, path), want)
	}
}

func TestGGUFTokenizer(t *testing.T) {
	g := ggufOf(mustOpen(t, goldenModel("llama")), "llama")
	g.set("tokenizer.ggml.model", "gpt2")
	g.set("tokenizer.ggml.pre", "gpt-2")
	g.set("tokenizer.ggml.tokens", []string{"a", "b", "ab", "<end>"})
	g.set("tokenizer.ggml.token_type", []int{1, 1, 1, 3})
	g.set("tokenizer.ggml.merges", []string{"a b"})
	g.set("tokenizer.ggml.eos_token_id", 3)
	g.set("tokenizer.ggml.bos_token_id", 3)
	g.set("tokenizer.ggml.add_bos_token", true)
	path, _ := save(t, g.bytes())
	b := mustOpen(t, path)
	tok, err := b.NeedTokenizer()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int32{3, 2, 1, 0, 3}, tok.Encode("abba<end>", true)); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}

	many := make([]string, 98)
	for i := range many {
		many[i] = fmt.Sprint("token", i)
	}
	g.set("tokenizer.ggml.tokens", append([]string{"a", "b", "ab"}, many[3:]...))
	g.set("tokenizer.ggml.token_type", nil)
	path, dir := save(t, g.bytes())
	_, err = mustOpen(t, path).NeedTokenizer()
	want := "DIR/m.gguf: the tokenizer has ids up to 97, the embedding 97 rows\nuse the tokenizer that belongs to the model"
	if err == nil || strings.ReplaceAll(err.Error(), dir, "DIR") != want {
		t.Errorf("a tokenizer that is too large: %v, want %s", err, want)
	}
}

func TestGGUFRefused(t *testing.T) {
	const (
		fetch   = "\nfetch the model again, or use another"
		convert = "\n" + adviceGGUF
		remove  = "\nif it does not change what the model computes, remove it; else use another model"
	)
	set := func(key string, v any) func(*ggufModel) { return func(g *ggufModel) { g.set(key, v) } }
	huge := func(kind ...byte) []byte { return append(kind, 0, 0, 0, 0, 0, 0, 0, 0x10) } // 2^60 at the end
	for _, test := range []struct {
		want   string
		change func(*ggufModel)
	}{
		{`architecture "gemma" is not supported, only llama (Mistral says llama too), qwen2 and qwen3` + "\n" + adviceFamily, set("general.architecture", "gemma")},
		{`architecture "" is not supported, only llama (Mistral says llama too), qwen2 and qwen3` + "\n" + adviceFamily, set("general.architecture", nil)},
		{`general.type is "adapter", want a model` + "\ngive the model itself", set("general.type", "adapter")},
		{"the model is split into 2 files, only one is supported\njoin them with llama.cpp's llama-gguf-split --merge", set("split.count", 2)},
		{"llama.embedding_length is missing, want a whole number from 1 to 2^30" + fetch, set("llama.embedding_length", nil)},
		{`llama.embedding_length is "32", want a whole number from 1 to 2^30` + fetch, set("llama.embedding_length", "32")},
		{"llama.block_count is 0, want a whole number from 1 to 2^30" + fetch, set("llama.block_count", 0)},
		{"block_count is 1000000000, but there are 20 tensors" + convert, set("llama.block_count", 1000000000)},
		{`llama.feed_forward_length is ["[]int32"], want a whole number from 1 to 2^30` + fetch, set("llama.feed_forward_length", []int{56, 56})},
		{"llama.attention.layer_norm_rms_epsilon is NaN, want a number above 0" + fetch, set("llama.attention.layer_norm_rms_epsilon", math.NaN())},
		{"llama.attention.head_count 4 is no multiple of attention.head_count_kv 3" + fetch, set("llama.attention.head_count_kv", 3)},
		{"llama.rope.dimension_count is 4, which is only supported if it is the size of a head, 8\nuse another model", set("llama.rope.dimension_count", 4)},
		{`rope type "yarn" is not supported, only none and the factors of tensor rope_freqs` + "\nuse a model without it", set("llama.rope.scaling.type", "yarn")},
		{"llama.rope.scaling.factor 4 is not supported, only 1\nuse a model without it", set("llama.rope.scaling.factor", 4.0)},
		{"llama.expert_count is 8, and what that means is not known here" + remove, set("llama.expert_count", 8)},
		{"llama.embedding_length 32 is no multiple of attention.head_count 5, and there is no attention.key_length" + convert, func(g *ggufModel) {
			g.set("llama.attention.head_count", 5)
			g.set("llama.attention.key_length", nil)
		}},
		{"llama.attention.causal is false\nuse a model that predicts the next token", set("llama.attention.causal", false)},
		{`llama.attention.causal is "no", want true or false` + fetch, set("llama.attention.causal", "no")},
		{`tensor_data_layout "sideways" is not known` + convert, set("llama.tensor_data_layout", "sideways")},
		{"tokenizer.ggml.eos_token_id is 97, want token ids below the vocabulary's size 97" + fetch, set("tokenizer.ggml.eos_token_id", 97)},
		{"general.alignment is 3, want a power of two" + convert, set("general.alignment", 3)},
		{"general.alignment is 32, want a power of two" + convert, set("general.alignment", 32.0)},
		{"general.tags claims 1152921504606846976 strings, and the file has SIZE bytes" + convert, set("general.tags", huge(9, 0, 0, 0, 8, 0, 0, 0))},
		{"general.tags claims 1152921504606846976 values, and the file has SIZE bytes" + convert, set("general.tags", huge(9, 0, 0, 0, 0, 0, 0, 0))},
		{"general.tags is an array of type 9, which is not supported" + convert, set("general.tags", []byte{9, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})},
		{"general.tags is of type 13, which is not supported" + convert, set("general.tags", []byte{13, 0, 0, 0})},
		{`metadata key "general.name" is there twice` + convert, func(g *ggufModel) {
			g.values = append(g.values, ggufKV{"general.name", "again"})
		}},

		{`tensor "token_embd.weight" is there twice` + convert, func(g *ggufModel) { g.tensors = append(g.tensors, g.tensors[0]) }},
		{`tensor "output_norm.weight" is missing` + convert, func(g *ggufModel) { g.tensors = slices.Delete(g.tensors, 1, 2) }},
		{`tensor "blk.1.ffn_up.weight" has shape [56 32], want [32 56]` + convert, func(g *ggufModel) {
			slices.Reverse(g.tensor("blk.1.ffn_up.weight").shape)
		}},
		{`unexpected tensor "blk.0.attn_norm_2.weight"` + convert, func(g *ggufModel) {
			g.tensors = append(g.tensors, ggufTensor{"blk.0.attn_norm_2.weight", []int{1}, 0, make([]byte, 4)})
		}},
		{`tensor "blk.1.attn_q.bias" is missing` + convert, func(g *ggufModel) {
			g.tensors = append(g.tensors, ggufTensor{"blk.0.attn_q.bias", []int{32}, 0, make([]byte, 128)})
		}},
		{`tensor "rope_freqs.weight" is F32 [3], want F32 [4]` + convert, func(g *ggufModel) {
			g.tensors = append(g.tensors, ggufTensor{"rope_freqs.weight", []int{3}, 0, make([]byte, 12)})
		}},
		{`tensor "rope_freqs.weight" holds 0, want numbers above 0` + convert, func(g *ggufModel) {
			g.tensors = append(g.tensors, ggufTensor{"rope_freqs.weight", []int{4}, 0, make([]byte, 16)})
		}},
		{`tensor "output_norm.weight" has type IQ4_XS, only [F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K] are supported` + convert, func(g *ggufModel) {
			g.tensor("output_norm.weight").kind = 23
		}},
		{`tensor "blk.0.attn_norm.weight" of type Q4_K has rows of 32, want a multiple of 256` + convert, func(g *ggufModel) {
			g.tensor("blk.0.attn_norm.weight").kind = 12
		}},
		{`tensor "token_embd.weight" has an impossible shape [32 1152921504606846976]` + convert, func(g *ggufModel) { g.tensors[0].shape[0] = 1 << 60 }},
		{`tensor "token_embd.weight" has an impossible shape [32 0]` + convert, func(g *ggufModel) { g.tensors[0].shape[0] = 0 }},
		{`tensor "token_embd.weight" has an impossible shape [1073741824 1073741824 1073741824]` + convert, func(g *ggufModel) {
			g.tensors[0].shape = []int{1 << 30, 1 << 30, 1 << 30}
		}},
		{`tensor "token_embd.weight" has 5 dimensions` + convert, func(g *ggufModel) { g.tensors[0].shape = []int{97, 32, 1, 1, 1} }},
	} {
		t.Run(test.want[:strings.IndexByte(test.want, '\n')], func(t *testing.T) {
			g := ggufOf(mustOpen(t, goldenModel("llama")), "llama")
			test.change(g)
			data := g.bytes()
			path, dir := save(t, data)
			refused(t, path, dir, "DIR/m.gguf: "+strings.ReplaceAll(test.want, "SIZE", fmt.Sprint(len(data))))
		})
	}
}

// Counts and offsets that lie are refused before anything believes them.
func TestGGUFHostileHeader(t *testing.T) {
	g := ggufOf(mustOpen(t, goldenModel("llama")), "llama")
	good := g.bytes()
	offset := func(name string) int { // of the tensor's offset in the header
		return strings.Index(string(good), name) + len(name) + 4 + 8*len(g.tensor(name).shape) + 4
	}
	for _, test := range []struct {
		want  string
		at    int
		bytes []byte
	}{
		{`not a GGUF file: it begins with "GGML"`, 0, []byte("GGML")},
		{"GGUF version 1 is not supported, only 2 and 3 in little-endian order", 4, []byte{1}},
		{"GGUF version 50331648 is not supported, only 2 and 3 in little-endian order", 4, []byte{0, 0, 0, 3}},
		{"the header claims 1152921504606846996 tensors, and the file has SIZE bytes", 15, []byte{0x10}},
		{"the header claims 1152921504606846992 metadata values, and the file has SIZE bytes", 23, []byte{0x10}},
		{"truncated: a metadata key ends at byte 1152921504606847028, file has SIZE", 31, []byte{0x10}},
		{`a metadata key at byte 24 is "general\u0000architecture"`, 39, []byte{0}},
		{"a metadata key at byte 32 claims 18374686479671623700 bytes", 31, []byte{0xff}},
		{
			`truncated: tensor "blk.1.ffn_down.weight" of 7168 bytes begins at byte 1152921504606922304, file has SIZE`,
			offset("blk.1.ffn_down.weight") + 7,
			[]byte{0x10},
		},
		{`tensor "output_norm.weight" overlaps tensor "token_embd.weight"`, offset("output_norm.weight") + 1, []byte{0}},
		{`tensor "output_norm.weight" is not listed in the order of its place in the file`, offset("token_embd.weight"), []byte{0x81, 0x30}},
	} {
		t.Run(test.want, func(t *testing.T) {
			data := slices.Clone(good)
			copy(data[test.at:], test.bytes)
			path, dir := save(t, data)
			want := strings.ReplaceAll(test.want, "SIZE", fmt.Sprint(len(data)))
			refused(t, path, dir, "DIR/m.gguf: "+want+"\n"+adviceGGUF)
		})
	}
}

// A file cut short anywhere is refused, with one line and a line of advice.
func TestTruncatedGGUF(t *testing.T) {
	data := ggufOf(mustOpen(t, goldenModel("qwen3")), "qwen3").bytes()
	cuts := []int{len(data) - 1}
	for at := 0; at < len(data); at += 1 + at/40 {
		cuts = append(cuts, at)
	}
	for _, at := range cuts {
		path, _ := save(t, data[:at])
		_, err := Open(path)
		if err == nil || !strings.HasPrefix(err.Error(), path+": ") || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%d of %d bytes: error %v", at, len(data), err)
		}
	}
}

// Whatever a header says, reading it ends in a model or an error.
func TestGarbledGGUF(t *testing.T) {
	g := ggufOf(mustOpen(t, goldenModel("llama31")), "llama")
	g.set("tokenizer.ggml.model", "gpt2")
	g.set("tokenizer.ggml.tokens", []string{"a", "b", "ab"})
	good, header := g.bytes(), len(g.header(make([]uint64, len(g.tensors))))
	path, _ := save(t, good)
	random := rand.New(rand.NewPCG(1, 2))
	opened := 0
	for range 500 {
		data := slices.Clone(good)
		for range 1 + random.IntN(3) {
			data[random.IntN(header)] = []byte{0, 1, 8, 9, 0x10, 0x7f, 0x80, 0xff, byte(random.Uint32())}[random.IntN(9)]
		}
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		b, err := Open(path)
		if err != nil {
			if !strings.HasPrefix(err.Error(), path+": ") || strings.Count(err.Error(), "\n") != 1 {
				t.Errorf("error %q is not a line and one of advice", err)
			}
			continue
		}
		opened++
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if opened == 0 || opened == 500 {
		t.Errorf("%d of 500 garbled files open", opened)
	}
}

// A real model, which an environment variable names.
func TestSmolLM2(t *testing.T) {
	path := os.Getenv("LORA_SMOLLM2")
	if path == "" {
		t.Skip("LORA_SMOLLM2 names no GGUF file of SmolLM2-135M-Instruct; .ci/run fetches one")
	}
	start := time.Now()
	b := mustOpen(t, path)
	t.Logf("opened in %v", time.Since(start))
	want := Arch{
		Family: "llama", Width: 576, MLP: 1536, Layers: 30, Heads: 9, KVHeads: 3, HeadDim: 64, Vocab: 49152, Context: 8192,
		Theta: 100000, Eps: 1e-5, Tied: true,
	}
	if diff := cmp.Diff(want, b.Arch); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if b.Name != "SmolLM2-135M-Instruct" || !slices.Equal(b.EOS, []int32{2}) {
		t.Errorf("name %q, EOS %v", b.Name, b.EOS)
	}
	for name, tensor := range slotsOf(b) {
		if tensor.Type != kernels.F32 {
			t.Errorf("tensor %q is %v", name, tensor)
		}
	}
	if tok, err := b.NeedTokenizer(); err != nil || tok.VocabSize() != 49152 {
		t.Errorf("tokenizer: %v", err)
	}
}
