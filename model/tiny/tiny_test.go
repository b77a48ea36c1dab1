package tiny_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/model/tiny"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := fs.ReadFile(tiny.FS(), name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type config struct {
	ModelType string `json:"model_type"`
	Width     int    `json:"hidden_size"`
	MLP       int    `json:"intermediate_size"`
	Layers    int    `json:"num_hidden_layers"`
	Heads     int    `json:"num_attention_heads"`
	KVHeads   int    `json:"num_key_value_heads"`
	HeadDim   int    `json:"head_dim"`
	Vocab     int    `json:"vocab_size"`
	Tied      bool   `json:"tie_word_embeddings"`
	EOS       int    `json:"eos_token_id"`
}

func readConfig(t *testing.T) config {
	t.Helper()
	var c config
	if err := json.Unmarshal(read(t, "config.json"), &c); err != nil {
		t.Fatal("config.json:", err)
	}
	return c
}

type tensor struct {
	DType   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

// readWeights gives the header of model.safetensors without its metadata, and the bytes that the offsets count in.
func readWeights(t *testing.T) (map[string]tensor, []byte) {
	t.Helper()
	data := read(t, "model.safetensors")
	end := 8 + int(binary.LittleEndian.Uint64(data))
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data[8:end], &raw); err != nil {
		t.Fatal("model.safetensors:", err)
	}
	delete(raw, "__metadata__")
	tensors := make(map[string]tensor, len(raw))
	for name, r := range raw {
		var x tensor
		if err := json.Unmarshal(r, &x); err != nil {
			t.Fatalf("model.safetensors: %s: %v", name, err)
		}
		tensors[name] = x
	}
	return tensors, data[end:]
}

func TestWeightsFitConfig(t *testing.T) {
	c := readConfig(t)
	if c.ModelType != "llama" || !c.Tied {
		t.Errorf("config.json: model_type %q, tied %v, want llama, true", c.ModelType, c.Tied)
	}
	want := map[string][]int{
		"model.embed_tokens.weight": {c.Vocab, c.Width},
		"model.norm.weight":         {c.Width},
	}
	for l := range c.Layers {
		layer := fmt.Sprintf("model.layers.%d.", l)
		want[layer+"input_layernorm.weight"] = []int{c.Width}
		want[layer+"post_attention_layernorm.weight"] = []int{c.Width}
		want[layer+"self_attn.q_proj.weight"] = []int{c.Heads * c.HeadDim, c.Width}
		want[layer+"self_attn.k_proj.weight"] = []int{c.KVHeads * c.HeadDim, c.Width}
		want[layer+"self_attn.v_proj.weight"] = []int{c.KVHeads * c.HeadDim, c.Width}
		want[layer+"self_attn.o_proj.weight"] = []int{c.Width, c.Heads * c.HeadDim}
		want[layer+"mlp.gate_proj.weight"] = []int{c.MLP, c.Width}
		want[layer+"mlp.up_proj.weight"] = []int{c.MLP, c.Width}
		want[layer+"mlp.down_proj.weight"] = []int{c.Width, c.MLP}
	}
	tensors, _ := readWeights(t)
	got := make(map[string][]int, len(tensors))
	for name, x := range tensors {
		got[name] = x.Shape
		if x.DType != "BF16" {
			t.Errorf("%s: dtype %s, want BF16", name, x.DType)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("shapes (-config +file):\n", diff)
	}
}

// TestWeightsTrained catches a file that is whole and yet no model: not finite, zeros, or one row copied over.
func TestWeightsTrained(t *testing.T) {
	tensors, data := readWeights(t)
	for name, x := range tensors {
		if x.Offsets[0] < 0 || x.Offsets[0] >= x.Offsets[1] || x.Offsets[1] > len(data) {
			t.Errorf("%s: bytes %v of %d", name, x.Offsets, len(data))
			continue
		}
		values := map[uint16]bool{}
		for b := data[x.Offsets[0]:x.Offsets[1]]; len(b) > 0; b = b[2:] {
			bits := binary.LittleEndian.Uint16(b)
			if v := math.Float32frombits(uint32(bits) << 16); math.Abs(float64(v)) > 100 || v != v {
				t.Fatalf("%s: a weight of %v", name, v)
			}
			values[bits] = true
		}
		if len(values) < 30 {
			t.Errorf("%s: %d distinct values, want at least 30", name, len(values))
		}
	}
}

func TestTokenizerFitsConfig(t *testing.T) {
	c := readConfig(t)
	var tok struct {
		Added []struct {
			ID      int
			Content string
		} `json:"added_tokens"`
		Model struct {
			Type   string
			Vocab  map[string]int
			Merges [][2]string
		}
	}
	if err := json.Unmarshal(read(t, "tokenizer.json"), &tok); err != nil {
		t.Fatal("tokenizer.json:", err)
	}
	if tok.Model.Type != "BPE" || len(tok.Model.Vocab) != c.Vocab {
		t.Errorf("%s vocabulary of %d, want BPE of %d", tok.Model.Type, len(tok.Model.Vocab), c.Vocab)
	}
	byID := make(map[int]string, len(tok.Model.Vocab))
	for text, id := range tok.Model.Vocab {
		if id < 0 || id >= c.Vocab || byID[id] != "" {
			t.Errorf("token %q has id %d, also %q's, or not under %d", text, id, byID[id], c.Vocab)
		}
		byID[id] = text
	}
	for i, m := range tok.Model.Merges {
		if _, ok := tok.Model.Vocab[m[0]+m[1]]; !ok {
			t.Errorf("merge %d: %q is not in the vocabulary", i, m[0]+m[1])
		}
	}
	// What the prompt of every question is made of, and one word of the world with and without the space before it.
	for _, word := range []string{"Question", ":", "ĠWhere", "?", "Ċ", "Answer", "Anna", "ĠAnna", "ĠDenby"} {
		if _, ok := tok.Model.Vocab[word]; !ok {
			t.Errorf("%q is not one token", word)
		}
	}
	if len(tok.Added) != 1 || tok.Added[0].ID != c.EOS {
		t.Errorf("special tokens %v, want one, the end-of-sequence %d of config.json", tok.Added, c.EOS)
	}
}

// TestSize holds the weight that every binary of the program carries.
func TestSize(t *testing.T) {
	total := 0
	for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json"} {
		total += len(read(t, name))
	}
	if limit := 2_200_000; total > limit {
		t.Errorf("%d bytes embedded, at most %d", total, limit)
	}
}
