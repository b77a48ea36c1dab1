package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
)

// plan is what a model's description says, before any tensor is looked at.
type plan struct {
	arch Arch
	bias [targets]bool
	eos  []int32
}

// family is what transformers' configuration class of a model_type says where config.json is silent.
type family struct {
	class   string // of the model with an output projection
	context int    // max_position_embeddings
	window  int    // sliding_window
	headDim int    // head_dim; 0: hidden_size / num_attention_heads
}

var families = map[string]family{
	"llama":   {class: "LlamaForCausalLM", context: 2048},
	"mistral": {class: "MistralForCausalLM", context: 131072, window: 4096},
	"qwen2":   {class: "Qwen2ForCausalLM", context: 32768, window: 4096},
	"qwen3":   {class: "Qwen3ForCausalLM", context: 32768, window: 4096, headDim: 128},
}

const adviceFamily = "use a model of one of these families"

// parseConfig reads a config.json, in the form of transformers 5 or in the older one of most files on the hub. name is
// what errors call the file.
func parseConfig(name string, data []byte) (plan, error) {
	f, err := parseFields(name, data)
	if err != nil {
		return plan{}, err
	}
	kind := f.text("model_type", "")
	fam, ok := families[kind]
	if !ok {
		f.fail(adviceFamily, "model_type %q is not supported, only %s", kind, strings.Join(slices.Sorted(maps.Keys(families)), ", "))
		return plan{}, f.err
	}
	if classes := f.texts("architectures"); len(classes) > 0 && !slices.Equal(classes, []string{fam.class}) {
		f.fail("use the model that predicts the next token", "architectures %q are not supported, only %s", classes, fam.class)
	}
	if q := f.take("quantization_config"); !empty(q) {
		f.fail("use the model that it was quantised from, or a GGUF file", "weights quantised as quantization_config %s says are not supported", show(q))
	}
	if act := f.text("hidden_act", "silu"); act != "silu" {
		f.fail(adviceFetch, "hidden_act %q is not supported, only silu", act)
	}
	p := plan{arch: f.arch(kind, fam)}
	p.arch.Theta, p.arch.Scaling = f.rope()
	p.arch.Window = f.window(p.arch, fam)
	p.bias = f.biases(kind)
	p.eos = f.tokens("eos_token_id", p.arch.Vocab)
	f.rest(harmlessKey)
	return p, f.err
}

// parseFields decodes a file that holds one JSON object.
func parseFields(name string, data []byte) (*fields, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	f := &fields{where: name}
	err := dec.Decode(&f.values)
	if err == nil && f.values == nil {
		err = errors.New("null where an object should be")
	}
	if err == nil {
		if _, more := dec.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, refuse(adviceFetch, "%s: truncated: the JSON object does not end", name)
	case errors.As(err, &syntax):
		before := data[:min(int(syntax.Offset), len(data))]
		line, column := 1+bytes.Count(before, []byte("\n")), len(before)-1-bytes.LastIndexByte(before, '\n')
		return nil, refuse(adviceFetch, "%s:%d:%d: %w", name, line, column, err)
	case errors.As(err, &kind):
		return nil, refuse(adviceFetch, "%s: a JSON %s where an object should be", name, kind.Value)
	default:
		return nil, refuse(adviceFetch, "%s: %w", name, err)
	}
}

// arch reads what is a plain number or flag.
func (f *fields) arch(kind string, fam family) Arch {
	a := Arch{
		Family:  kind,
		Width:   f.size("hidden_size", 0),
		MLP:     f.size("intermediate_size", 0),
		Layers:  f.size("num_hidden_layers", 0),
		Heads:   f.size("num_attention_heads", 0),
		Vocab:   f.size("vocab_size", 0),
		Context: f.size("max_position_embeddings", fam.context),
		Eps:     f.number("rms_norm_eps", 1e-6),
		Tied:    f.flag("tie_word_embeddings", false),
		QKNorm:  kind == "qwen3",
	}
	if f.err != nil {
		return a
	}
	a.KVHeads = f.size("num_key_value_heads", a.Heads)
	dim := fam.headDim
	if dim == 0 || f.has("head_dim") {
		if f.take("head_dim") == nil && a.Width%a.Heads != 0 {
			f.fail(adviceFetch, "hidden_size %d is no multiple of num_attention_heads %d, and there is no head_dim", a.Width, a.Heads)
		}
		dim = max(a.Width/a.Heads, 1)
	}
	a.HeadDim = f.size("head_dim", dim)
	f.checkHeads(a, "num_attention_heads", "num_key_value_heads", "head_dim")
	return a
}

// checkHeads holds the numbers of an attention layer against each other; the names are for errors.
func (f *fields) checkHeads(a Arch, heads, kv, dim string) {
	switch {
	case a.Heads%a.KVHeads != 0:
		f.fail(adviceFetch, "%s%s %d is no multiple of %s %d", f.prefix, heads, a.Heads, kv, a.KVHeads)
	case a.HeadDim%2 != 0:
		f.fail(adviceFetch, "%s%s %d is odd, and the rotary embedding turns pairs", f.prefix, dim, a.HeadDim)
	case a.Heads > maxSize/a.HeadDim:
		f.fail(adviceFetch, "%s%s %d times %s %d is more than 2^30", f.prefix, heads, a.Heads, dim, a.HeadDim)
	}
}

// biases is which linear layers have a bias.
func (f *fields) biases(kind string) (bias [targets]bool) {
	switch kind {
	case "qwen2":
		bias[QProj], bias[KProj], bias[VProj] = true, true, true
	case "llama", "qwen3":
		b := f.flag("attention_bias", false)
		bias[QProj], bias[KProj], bias[VProj], bias[OProj] = b, b, b, b
	}
	if kind == "llama" {
		b := f.flag("mlp_bias", false)
		bias[GateProj], bias[UpProj], bias[DownProj] = b, b, b
	}
	return bias
}

// window is the sliding window of all layers, 0 if they see everything. A model that mixes the two is refused.
func (f *fields) window(a Arch, fam family) int {
	if fam.window == 0 {
		f.layersAre(a, 0, 0)
		return 0
	}
	w := fam.window
	if f.has("sliding_window") {
		w = f.count("sliding_window", 0)
	}
	first := 0 // layer with a window
	if a.Family != "mistral" {
		if first = f.count("max_window_layers", 28); !f.flag("use_sliding_window", false) {
			w = 0
		}
	}
	if f.layersAre(a, w, first) == 0 {
		return 0
	}
	return w
}

// layersAre counts the layers that slide, which are those from first on if there is a window w, unless layer_types
// says otherwise: none or all of them.
func (f *fields) layersAre(a Arch, w, first int) int {
	sliding := 0
	if w > 0 {
		sliding = max(a.Layers-first, 0)
	}
	if types := f.texts("layer_types"); types != nil {
		listed := 0
		for i, t := range types {
			switch t {
			case "full_attention":
			case "sliding_attention":
				listed++
			default:
				f.fail(adviceFetch, "layer_types[%d] %q is not supported, only full_attention and sliding_attention", i, t)
			}
		}
		if len(types) != a.Layers {
			f.fail(adviceFetch, "layer_types lists %d layers, num_hidden_layers is %d", len(types), a.Layers)
		}
		if listed > 0 && w == 0 || a.Family == "mistral" && listed != sliding {
			f.fail(adviceFetch, "layer_types and sliding_window contradict each other")
		}
		sliding = listed
	}
	if sliding != 0 && sliding != a.Layers {
		f.fail("use a model whose layers are all alike",
			"sliding_window is for %d of %d layers, and a mixture is not supported", sliding, a.Layers)
	}
	return sliding
}

// rope reads the rotary embedding: rope_parameters as transformers 5 writes it, or rope_theta and rope_scaling. A
// file may have both if they agree.
func (f *fields) rope() (theta float64, scaling *RopeScaling) {
	theta = f.number("rope_theta", 10000)
	f.fullRotary(f)
	if old := f.sub("rope_scaling"); old != nil {
		scaling = f.scaling(old)
	}
	now := f.sub("rope_parameters")
	if now == nil {
		return theta, scaling
	}
	newTheta, newScaling := now.number("rope_theta", theta), f.scaling(now)
	bothTheta, bothScaling := f.take("rope_theta") != nil, f.take("rope_scaling") != nil
	if bothTheta && newTheta != theta || bothScaling && !sameScaling(newScaling, scaling) {
		f.fail(adviceFetch, "rope_parameters contradict rope_theta and rope_scaling")
	}
	return newTheta, newScaling
}

func sameScaling(a, b *RopeScaling) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// sub is the fields of an object under a key, nil if there is none.
func (f *fields) sub(key string) *fields {
	switch v := f.take(key).(type) {
	case nil:
	case map[string]any:
		return &fields{where: f.where + ": " + key, values: v}
	default:
		f.wrong(key, v, "an object")
	}
	return nil
}

// scaling reads the part of the rotary embedding that has a type.
func (f *fields) scaling(r *fields) (s *RopeScaling) {
	f.fullRotary(r)
	r.take("rope_theta")
	kind, old := r.text("rope_type", ""), r.text("type", "")
	switch {
	case kind == "":
		kind = old
	case old != "" && old != kind:
		r.fail(adviceFetch, "type %q and rope_type %q contradict each other", old, kind)
	}
	switch kind {
	case "default", "":
	case "llama3":
		s = &RopeScaling{
			Factor:   r.number("factor", 0),
			LowFreq:  r.number("low_freq_factor", 0),
			HighFreq: r.number("high_freq_factor", 0),
			Original: r.size("original_max_position_embeddings", 0),
		}
		if s.HighFreq <= s.LowFreq {
			r.fail(adviceFetch, "high_freq_factor %v is not above low_freq_factor %v", s.HighFreq, s.LowFreq)
		}
	default:
		f.fail("use a model without it", "rope type %q is not supported, only default and llama3", kind)
	}
	if f.err == nil {
		r.rest(func(string) bool { return false })
		f.err = r.err
	}
	return s
}

// fullRotary refuses a rotary embedding of a part of each head.
func (f *fields) fullRotary(r *fields) {
	if part := r.number("partial_rotary_factor", 1); part != 1 {
		r.fail("use a model without it", "partial_rotary_factor %v is not supported, only 1", part)
	}
	if f.err == nil {
		f.err = r.err
	}
}

// harmlessKey reports that a key of config.json changes nothing that this program computes.
func harmlessKey(key string) bool { return harmlessKeys[key] || strings.HasPrefix(key, "unsloth_") }

var harmlessKeys = func() map[string]bool {
	keys := map[string]bool{}
	for key := range strings.FieldsSeq(`
		_name_or_path _commit_hash name_or_path transformers_version transformers.js_config tokenizer_class model_max_length
		is_llama_config max_sequence_length

		torch_dtype dtype use_bfloat16 torchscript pretraining_tp initializer_range attention_dropout use_cache
		_attn_implementation attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
		output_hidden_states output_attentions return_dict chunk_size_feed_forward

		pad_token_id bos_token_id unk_token_id sep_token_id decoder_start_token_id

		num_labels id2label label2id problem_type finetuning_task task_specific_params prefix

		max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
		temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
		encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
		forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
		suppress_tokens begin_suppress_tokens`) {
		keys[key] = true
	}
	return keys
}()
