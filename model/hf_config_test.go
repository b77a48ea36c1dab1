package model

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGoldenArch(t *testing.T) {
	tinyArch := func(family string, change func(*Arch)) Arch {
		a := Arch{
			Family: family, Width: 32, MLP: 56, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8, Vocab: 97, Context: 256,
			Theta: 10000, Eps: 1e-6,
		}
		change(&a)
		return a
	}
	for model, want := range map[string]Arch{
		"llama": tinyArch("llama", func(a *Arch) { a.Eps, a.Tied = 1e-5, true }),
		"llama31": tinyArch("llama", func(a *Arch) {
			a.Eps, a.Theta = 1e-5, 500000
			a.Scaling = &RopeScaling{Factor: 8, LowFreq: 1, HighFreq: 4, Original: 32}
		}),
		"mistral": tinyArch("mistral", func(a *Arch) { a.HeadDim, a.Window = 12, 5 }),
		"qwen2":   tinyArch("qwen2", func(a *Arch) { a.Tied = true }),
		"qwen3":   tinyArch("qwen3", func(a *Arch) { a.HeadDim, a.Tied, a.QKNorm = 16, true, true }),
	} {
		b := mustOpen(t, goldenModel(model))
		if diff := cmp.Diff(want, b.Arch); diff != "" {
			t.Errorf("%s (-want +got):\n%s", model, diff)
		}
		if eos := []int32{2}; strings.HasPrefix(model, "q") == (len(b.EOS) > 0) || len(b.EOS) > 0 && b.EOS[0] != eos[0] {
			t.Errorf("%s: EOS %v", model, b.EOS)
		}
	}
}

// The older form of config.json, as most files on the hub have it, reads the same.
func TestConfigHubForm(t *testing.T) {
	for _, model := range tinyModels {
		var values map[string]any
		if err := json.Unmarshal(read(t, filepath.Join(goldenModel(model), "config.json")), &values); err != nil {
			t.Fatal(err)
		}
		rope := values["rope_parameters"].(map[string]any)
		old := edits{"rope_parameters": gone, "rope_theta": rope["rope_theta"], "dtype": gone, "torch_dtype": "float32", "layer_types": gone}
		if old["rope_scaling"] = nil; model == "llama31" {
			delete(rope, "rope_theta")
			old["rope_scaling"] = rope
		}
		if diff := cmp.Diff(mustOpen(t, goldenModel(model)).Arch, mustOpen(t, variant(t, model, old)).Arch); diff != "" {
			t.Errorf("%s (-transformers 5 +hub):\n%s", model, diff)
		}
	}
}

// Configurations of the form that well-known models are published with.
func TestConfigPublished(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want plan
	}{
		"SmolLM2-135M": {
			`{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
			"eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
			"intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
			"model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
			"pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
			"rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
			"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
			"transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152}`,
			plan{arch: Arch{
				Family: "llama", Width: 576, MLP: 1536, Layers: 30, Heads: 9, KVHeads: 3, HeadDim: 64, Vocab: 49152, Context: 8192,
				Theta: 1e5, Eps: 1e-5, Tied: true,
			}, eos: []int32{2}},
		},
		"Llama-3.2-1B-Instruct": {
			`{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
			"eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
			"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
			"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
			"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
			"low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
			"tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256}`,
			plan{arch: Arch{
				Family: "llama", Width: 2048, MLP: 8192, Layers: 16, Heads: 32, KVHeads: 8, HeadDim: 64, Vocab: 128256, Context: 131072,
				Theta: 5e5, Eps: 1e-5, Tied: true, Scaling: &RopeScaling{Factor: 32, LowFreq: 1, HighFreq: 4, Original: 8192},
			}, eos: []int32{128001, 128008, 128009}},
		},
		"Mistral-7B-v0.1": {
			`{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
			"hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
			"model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
			"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
			"torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 32000}`,
			plan{arch: Arch{
				Family: "mistral", Width: 4096, MLP: 14336, Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 32000, Context: 32768,
				Theta: 1e4, Eps: 1e-5, Window: 4096,
			}, eos: []int32{2}},
		},
		"Qwen2.5-0.5B": {
			`{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
			"hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
			"max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
			"num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
			"sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
			"use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}`,
			plan{arch: Arch{
				Family: "qwen2", Width: 896, MLP: 4864, Layers: 24, Heads: 14, KVHeads: 2, HeadDim: 64, Vocab: 151936, Context: 32768,
				Theta: 1e6, Eps: 1e-6, Tied: true,
			}, bias: [targets]bool{QProj: true, KProj: true, VProj: true}, eos: []int32{151643}},
		},
		"Qwen3-0.6B": {
			`{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
			"eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
			"intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
			"num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
			"rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
			"torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}`,
			plan{arch: Arch{
				Family: "qwen3", Width: 1024, MLP: 3072, Layers: 28, Heads: 16, KVHeads: 8, HeadDim: 128, Vocab: 151936, Context: 40960,
				Theta: 1e6, Eps: 1e-6, Tied: true, QKNorm: true,
			}, eos: []int32{151645}},
		},
	} {
		got, err := parseConfig("config.json", []byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(plan{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestConfigAccepted(t *testing.T) {
	sliding := []string{"sliding_attention", "sliding_attention"}
	for name, test := range map[string]struct {
		model  string
		config edits
		check  func(*Base) any
		want   any
	}{
		"eps, theta and ties by default": {
			"llama31",
			edits{"rms_norm_eps": gone, "rope_parameters": gone, "tie_word_embeddings": gone, "hidden_act": gone, "max_position_embeddings": gone},
			func(b *Base) any {
				return []any{b.Arch.Eps, b.Arch.Theta, b.Arch.Tied, b.Arch.Context, b.Arch.Scaling == nil}
			},
			[]any{1e-6, 1e4, false, 2048, true},
		},
		"head_dim null": {"llama", edits{"head_dim": nil}, func(b *Base) any { return b.Arch.HeadDim }, 8},
		"scaling by its old key": {
			"llama31",
			edits{"rope_parameters": gone, "rope_theta": 500000, "rope_scaling": edits{
				"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32,
			}},
			func(b *Base) any { return *b.Arch.Scaling },
			RopeScaling{Factor: 8, LowFreq: 1, HighFreq: 4, Original: 32},
		},
		"both forms that agree": {
			"llama", edits{"rope_theta": 10000, "rope_scaling": nil}, func(b *Base) any { return b.Arch.Theta }, 1e4,
		},
		"no window":             {"mistral", edits{"sliding_window": nil}, func(b *Base) any { return b.Arch.Window }, 0},
		"window by default":     {"mistral", edits{"sliding_window": gone}, func(b *Base) any { return b.Arch.Window }, 4096},
		"window and its layers": {"mistral", edits{"layer_types": sliding}, func(b *Base) any { return b.Arch.Window }, 5},
		"window switched off":   {"qwen2", edits{"sliding_window": 7}, func(b *Base) any { return b.Arch.Window }, 0},
		"window in no layer": {
			"qwen2",
			edits{"sliding_window": 7, "use_sliding_window": true, "layer_types": gone},
			func(b *Base) any { return b.Arch.Window }, 0,
		},
		"window in all layers": {
			"qwen3",
			edits{"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 0, "layer_types": gone},
			func(b *Base) any { return b.Arch.Window }, 7,
		},
		"window in all listed layers": {
			"qwen3",
			edits{"sliding_window": 7, "use_sliding_window": true, "layer_types": sliding},
			func(b *Base) any { return b.Arch.Window }, 7,
		},
		"several ends": {"llama", edits{"eos_token_id": []int{5, 96}}, func(b *Base) any { return b.EOS }, []int32{5, 96}},
		"keys that change nothing": {
			"llama",
			edits{"unknown": nil, "use_mrope": false, "pruned_heads": edits{}, "temperature": 0.7, "unsloth_fixed": true},
			func(b *Base) any { return b.Arch.Width }, 32,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.check(mustOpen(t, variant(t, test.model, test.config)))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// generation_config.json decides over config.json, as in transformers.
func TestGenerationConfig(t *testing.T) {
	dir := variant(t, "llama", nil)
	path := filepath.Join(dir, "generation_config.json")
	for text, want := range map[string][]int32{
		`{"eos_token_id": [7, 8], "temperature": 0.6}`: {7, 8},
		`{"eos_token_id": null}`:                       {2},
		`{}`:                                           {2},
	} {
		write(t, path, text)
		if diff := cmp.Diff(want, mustOpen(t, dir).EOS); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	write(t, path, `{"eos_token_id": 97}`)
	refused(t, dir, dir, "DIR/generation_config.json: eos_token_id is 97, want token ids below the vocabulary's size 97\n"+adviceFetch)
}

func TestConfigRefused(t *testing.T) {
	const (
		fetch  = "\nfetch the model again, or use another"
		family = "\nuse a model of one of these families"
		rope   = "\nuse a model without it"
		remove = "\nif it does not change what the model computes, remove it; else use another model"
	)
	scaling := func(change edits) edits {
		r := edits{"rope_theta": 5e5, "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32}
		for k, v := range change {
			if r[k] = v; v == gone {
				delete(r, k)
			}
		}
		return edits{"rope_parameters": r}
	}
	for _, test := range []struct {
		model  string
		config edits
		want   string
	}{
		{"llama", edits{"model_type": "gpt2"}, `model_type "gpt2" is not supported, only llama, mistral, qwen2, qwen3` + family},
		{"llama", edits{"model_type": gone}, `model_type "" is not supported, only llama, mistral, qwen2, qwen3` + family},
		{"llama", edits{"model_type": 3}, "model_type is 3, want a string" + fetch},
		{"llama", edits{"architectures": []string{"LlamaForSequenceClassification"}}, `architectures ["LlamaForSequenceClassification"] are not supported, only LlamaForCausalLM` + "\nuse the model that predicts the next token"},
		{"llama", edits{"architectures": "LlamaForCausalLM"}, `architectures is "LlamaForCausalLM", want a list of strings` + fetch},
		{"llama", edits{"quantization_config": edits{"bits": 4}}, `weights quantised as quantization_config {"bits":4} says are not supported` + "\nuse the model that it was quantised from, or a GGUF file"},
		{"llama", edits{"hidden_act": "gelu"}, `hidden_act "gelu" is not supported, only silu` + fetch},

		{"llama", edits{"hidden_size": gone}, "hidden_size is missing, want a whole number from 1 to 2^30" + fetch},
		{"llama", edits{"hidden_size": "32"}, `hidden_size is "32", want a whole number from 1 to 2^30` + fetch},
		{"llama", edits{"num_hidden_layers": 0}, "num_hidden_layers is 0, want a whole number from 1 to 2^30" + fetch},
		{"llama", edits{"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, want a whole number from 1 to 2^30" + fetch},
		{"llama", edits{"vocab_size": 0}, "vocab_size is 0, want a whole number from 1 to 2^30" + fetch},
		{"llama", edits{"vocab_size": -1}, "vocab_size is -1, want a whole number from 1 to 2^30" + fetch},
		{"llama", edits{"intermediate_size": json.Number("1e30")}, "intermediate_size is 1e30, want a whole number from 1 to 2^30" + fetch},
		{"llama", edits{"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3" + fetch},
		{"llama", edits{"num_attention_heads": 5, "head_dim": gone}, "hidden_size 32 is no multiple of num_attention_heads 5, and there is no head_dim" + fetch},
		{"llama", edits{"head_dim": 7}, "head_dim 7 is odd, and the rotary embedding turns pairs" + fetch},
		{"llama", edits{"head_dim": 1 << 30}, "num_attention_heads 4 times head_dim 1073741824 is more than 2^30" + fetch},
		{"llama", edits{"rms_norm_eps": 0}, "rms_norm_eps is 0, want a number above 0" + fetch},
		{"llama", edits{"rms_norm_eps": json.Number("1e999")}, "rms_norm_eps is 1e999, want a number above 0" + fetch},
		{"llama", edits{"tie_word_embeddings": "yes"}, `tie_word_embeddings is "yes", want true or false` + fetch},
		{"llama", edits{"eos_token_id": []any{2, "x"}}, `eos_token_id is [2,"x"], want token ids below the vocabulary's size 97` + fetch},
		{"llama", edits{"sliding_window": 5}, "sliding_window is 5, and what that means is not known here" + remove},
		{"llama", edits{"attention_multiplier": 0.5}, "attention_multiplier is 0.5, and what that means is not known here" + remove},
		{"mistral", edits{"attention_bias": true}, "attention_bias is true, and what that means is not known here" + remove},

		{"llama", edits{"rope_parameters": edits{"rope_type": "yarn", "factor": 4}}, `rope type "yarn" is not supported, only default and llama3` + rope},
		{"llama", edits{"rope_scaling": edits{"type": "linear", "factor": 2}}, `rope type "linear" is not supported, only default and llama3` + rope},
		{"llama", edits{"rope_scaling": edits{"type": "dynamic", "rope_type": "llama3"}}, `rope_scaling: type "dynamic" and rope_type "llama3" contradict each other` + fetch},
		{"llama", edits{"rope_scaling": 2}, "rope_scaling is 2, want an object" + fetch},
		{"llama", edits{"rope_parameters": edits{"rope_theta": 1e4, "mrope_section": []int{2, 2}}}, "rope_parameters: mrope_section is [2,2], and what that means is not known here" + remove},
		{"llama", edits{"rope_theta": 20000}, "rope_parameters contradict rope_theta and rope_scaling" + fetch},
		{"llama", edits{"rope_theta": -1}, "rope_theta is -1, want a number above 0" + fetch},
		{"llama", edits{"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported, only 1" + rope},
		{"llama31", scaling(edits{"partial_rotary_factor": 0.25}), "rope_parameters: partial_rotary_factor 0.25 is not supported, only 1" + rope},
		{"llama31", scaling(edits{"factor": gone}), "rope_parameters: factor is missing, want a number above 0" + fetch},
		{"llama31", scaling(edits{"original_max_position_embeddings": 0}), "rope_parameters: original_max_position_embeddings is 0, want a whole number from 1 to 2^30" + fetch},
		{"llama31", scaling(edits{"high_freq_factor": 1}), "rope_parameters: high_freq_factor 1 is not above low_freq_factor 1" + fetch},
		{"llama31", scaling(edits{"mscale": 2}), "rope_parameters: mscale is 2, and what that means is not known here" + remove},

		{"mistral", edits{"sliding_window": "wide"}, `sliding_window is "wide", want a whole number from 1 to 2^30` + fetch},
		{"mistral", edits{"layer_types": []string{"full_attention", "full_attention"}}, "layer_types and sliding_window contradict each other" + fetch},
		{"qwen2", edits{"layer_types": []string{"full_attention"}}, "layer_types lists 1 layers, num_hidden_layers is 2" + fetch},
		{"qwen2", edits{"layer_types": []string{"full_attention", "linear_attention"}}, `layer_types[1] "linear_attention" is not supported, only full_attention and sliding_attention` + fetch},
		{"qwen2", edits{"layer_types": []string{"full_attention", "sliding_attention"}, "sliding_window": 7, "use_sliding_window": true}, "sliding_window is for 1 of 2 layers, and a mixture is not supported\nuse a model whose layers are all alike"},
		{"qwen3", edits{"layer_types": gone, "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1}, "sliding_window is for 1 of 2 layers, and a mixture is not supported\nuse a model whose layers are all alike"},
	} {
		t.Run(test.want[:strings.IndexByte(test.want, '\n')], func(t *testing.T) {
			dir := variant(t, test.model, test.config)
			refused(t, dir, dir, "DIR/config.json: "+test.want)
		})
	}
}

func TestConfigSyntax(t *testing.T) {
	dir := variant(t, "llama", nil)
	for text, want := range map[string]string{
		"":                    ": truncated: the JSON object does not end",
		`{"hidden_size": 3`:   ": truncated: the JSON object does not end",
		"{\n  \"a\": 1,\n x}": ":3:2: invalid character 'x' looking for beginning of object key string",
		"[]":                  ": a JSON array where an object should be",
		"null":                ": null where an object should be",
		"{} {}":               ": something follows the object",
	} {
		write(t, filepath.Join(dir, "config.json"), text)
		refused(t, dir, dir, "DIR/config.json"+want+"\n"+adviceFetch)
	}
}
