package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/gomlx/go-huggingface/models/gguf"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/model"
	"loratrain/model/tokenizer"
)

// modelReport is a base model.
type modelReport struct {
	Kind       string          `json:"kind"`
	Name       string          `json:"name"`
	Path       string          `json:"path,omitempty"`
	Format     string          `json:"format"`
	Arch       archReport      `json:"architecture"`
	Parameters int             `json:"parameters"`
	EOS        []int32         `json:"eos,omitempty"`
	Tokenizer  tokenizerReport `json:"tokenizer"`
	Digest     string          `json:"digest"`
	Tensors    []tensorInfo    `json:"tensors"`
}

type archReport struct {
	Family  string             `json:"family"`
	Layers  int                `json:"layers"`
	Width   int                `json:"hidden_width"`
	MLP     int                `json:"mlp_width"`
	Heads   int                `json:"heads"`
	KVHeads int                `json:"kv_heads"`
	HeadDim int                `json:"head_dim"`
	Vocab   int                `json:"vocab"`
	Context int                `json:"context"`
	Theta   float64            `json:"rope_theta"`
	Scaling *model.RopeScaling `json:"rope_scaling,omitempty"`
	Factors []float64          `json:"rope_factors,omitempty"`
	Eps     float64            `json:"norm_eps"`
	Tied    bool               `json:"tied"`
	QKNorm  bool               `json:"qk_norm"`
	Window  int                `json:"window,omitempty"`
}

type tokenizerReport struct {
	Size  int     `json:"size,omitempty"`
	BOS   *int32  `json:"bos,omitempty"`
	EOS   []int32 `json:"eos,omitempty"`
	Error string  `json:"error,omitempty"` // why there is none

	tokens *tokenizer.Tokenizer
}

func inspectModel(path string) (report, error) {
	base, err := openModel(path)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	a := base.Arch
	weights := weightTensors(base)
	r := modelReport{
		Kind: "model", Name: base.Name, Path: base.Path, Parameters: totalElements(weights), EOS: base.EOS, Digest: base.Digest(),
		Arch: archReport{
			Family: a.Family, Layers: a.Layers, Width: a.Width, MLP: a.MLP, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim,
			Vocab: a.Vocab, Context: a.Context, Theta: a.Theta, Scaling: a.Scaling, Factors: a.FreqFactors, Eps: a.Eps, Tied: a.Tied,
			QKNorm: a.QKNorm, Window: a.Window,
		},
		Tokenizer: describeTokenizer(base),
	}
	if base.Path == "" {
		r.Format, r.Tensors = "embedded", weights
		return r, nil
	}
	r.Format, r.Tensors, err = storedTensors(base.Path)
	return r, err
}

func describeTokenizer(base *model.Base) tokenizerReport {
	t, err := base.NeedTokenizer()
	if err != nil {
		return tokenizerReport{Error: err.Error()}
	}
	r := tokenizerReport{Size: t.VocabSize(), EOS: t.EOS(), tokens: t}
	if bos := t.BOS(); bos >= 0 {
		r.BOS = &bos
	}
	return r
}

// storedTensors is the tensors of a model that [model.Open] took, as its files hold them.
func storedTensors(path string) (format string, list []tensorInfo, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", nil, err
	}
	if !info.IsDir() && isGGUF(path) {
		list, err := ggufTensors(path)
		return "GGUF", list, err
	}
	if !info.IsDir() {
		path = filepath.Dir(path)
	}
	weights, err := checkpoints.OpenSharded(path)
	if err != nil {
		return "", nil, err
	}
	list = tensorInfos(weights.Tensors())
	return "Hugging Face", list, weights.Close()
}

func ggufTensors(path string) ([]tensorInfo, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list := make([]tensorInfo, len(f.TensorInfos))
	for i, t := range f.TensorInfos {
		_, shape := t.GoMLXShape()
		list[i] = tensorInfo{Name: t.Name, Type: t.Type.String(), Shape: shape, Bytes: t.NumBytes()}
	}
	return list, nil
}

// weightTensors is a model's tensors as they are in memory, under transformers' names; what is tied is there once.
func weightTensors(base *model.Base) []tensorInfo {
	var list []tensorInfo
	add := func(name string, t kernels.Tensor) {
		if !t.None() {
			list = append(list, tensorInfo{Name: name, Type: strings.ToUpper(t.Type.String()), Shape: t.Shape, Bytes: int64(t.Bytes())})
		}
	}
	w := base.Weights
	add("model.embed_tokens.weight", w.Embed)
	for l, lw := range w.Layers {
		block := fmt.Sprintf("model.layers.%d.", l)
		add(block+"input_layernorm.weight", lw.InputNorm)
		for _, t := range model.AllTargets() {
			add(model.Module(l, t)+".weight", lw.W[t])
			add(model.Module(l, t)+".bias", lw.Bias[t])
		}
		add(block+"self_attn.q_norm.weight", lw.QNorm)
		add(block+"self_attn.k_norm.weight", lw.KNorm)
		add(block+"post_attention_layernorm.weight", lw.PostNorm)
	}
	add("model.norm.weight", w.Norm)
	if !base.Arch.Tied {
		add("lm_head.weight", w.Head)
	}
	return list
}

func (r modelReport) print(w io.Writer, all bool) {
	what := fmt.Sprintf("%s: a model of the Llama family (%s), %s", r.Path, r.Arch.Family, r.Format)
	if r.Path == "" {
		what = fmt.Sprintf("%s: the embedded model, of the Llama family (%s)", r.Name, r.Arch.Family)
	}
	fmt.Fprintf(w, "%s\n\n", what)
	a := r.Arch
	rows := [][]string{
		{"parameters", count(r.Parameters)},
		{"layers", fmt.Sprintf("%d, of width %d, MLP %d", a.Layers, a.Width, a.MLP)},
		{"attention", a.attention()},
		{"context", plural(a.Context, "token")},
		{"rotary", a.rotary()},
		{"norm", fmt.Sprintf("RMS, eps %g", a.Eps)},
		{"vocabulary", fmt.Sprintf("%s, output projection %s", count(a.Vocab), map[bool]string{true: "tied to the embedding", false: "of its own"}[a.Tied])},
		{"tokenizer", r.Tokenizer.text()},
		{"digest", r.Digest},
	}
	printTable(w, rows)
	printTensors(w, r.Tensors, all)
}

func (a archReport) attention() string {
	text := fmt.Sprintf("%s of %d, %s", plural(a.Heads, "head"), a.HeadDim, plural(a.KVHeads, "key-value head"))
	if a.QKNorm {
		text += ", q and k normed"
	}
	if a.Window > 0 {
		text += ", window of " + plural(a.Window, "token")
	}
	return text
}

func (a archReport) rotary() string {
	text := fmt.Sprintf("theta %g", a.Theta)
	if s := a.Scaling; s != nil {
		text += fmt.Sprintf(", scaled by %g as in Llama 3.1 from %d tokens", s.Factor, s.Original)
	}
	if a.Factors != nil {
		text += ", a factor for each frequency"
	}
	return text
}

func (r tokenizerReport) text() string {
	if r.tokens == nil {
		first, _, _ := strings.Cut(r.Error, "\n")
		return "none: " + first
	}
	text := plural(r.Size, "token")
	if r.BOS != nil {
		text += fmt.Sprintf(", bos %s (%d)", r.tokens.Token(*r.BOS), *r.BOS)
	}
	for i, id := range r.EOS {
		text += fmt.Sprintf("%s %s (%d)", map[bool]string{true: ", eos", false: " or"}[i == 0], r.tokens.Token(id), id)
	}
	return text
}
