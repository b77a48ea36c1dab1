package model

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"loratrain/kernels"
	"loratrain/model/tokenizer"
)

// Base is a frozen model as it lies on disk, its tokenizer and what identifies it.
type Base struct {
	Name      string // the folder's or the file's name without what tells of its storage, for people and run folders
	Path      string // as it was given to [Open]; empty for the embedded default
	Arch      Arch
	Weights   Weights              // in host memory, for [Place]; views of mapped files end with Close
	Tokenizer *tokenizer.Tokenizer // nil if the model has none that can be read: [Base.NeedTokenizer] says why
	EOS       []int32              // the tokens that end a text; none if the model names none

	noTokenizer error
	mappings    []io.Closer
	digest      func() string

	parameters, bytes int
}

// NeedTokenizer is Tokenizer, or an error that says why there is none.
func (b *Base) NeedTokenizer() (*tokenizer.Tokenizer, error) {
	if b.Tokenizer == nil {
		return nil, b.noTokenizer
	}
	return b.Tokenizer, nil
}

// Size is the number of parameters and the bytes that they take in host memory.
func (b *Base) Size() (parameters, bytes int) { return b.parameters, b.bytes }

// Close gives back the mapped files. Weights must not be used any more.
func (b *Base) Close() error {
	var errs []error
	for _, m := range b.mappings {
		errs = append(errs, m.Close())
	}
	b.mappings, b.Weights = nil, Weights{}
	return errors.Join(errs...)
}

// setTokenizer takes what a reader of tokenizers gave. Every token needs a row of the embedding.
func (b *Base) setTokenizer(t *tokenizer.Tokenizer, err error) {
	if err == nil && t.VocabSize() > b.Arch.Vocab {
		err = refuse("use the tokenizer that belongs to the model", "%s: the tokenizer has ids up to %d, the embedding %d rows",
			b.Path, t.VocabSize()-1, b.Arch.Vocab)
	}
	if err != nil {
		b.noTokenizer = err
		return
	}
	b.Tokenizer = t
}

// Open reads a Hugging Face model folder (config.json, safetensors in one file or several, tokenizer.json), a .gguf
// file, or a folder that holds one; a file inside a Hugging Face folder stands for the folder.
//
// Whatever the files ask for that this program does not compute is an error that names it. Weights stay in the mapped
// file where its type is one that kernels read or F16, and become F32 otherwise. A model without a tokenizer, or with one of
// a kind that is not supported, opens all the same.
func Open(path string) (*Base, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, refuse(adviceModel, "%s: %w", path, bare(err))
	}
	if !info.IsDir() {
		return openFile(path)
	}
	if _, err := os.Stat(filepath.Join(path, "config.json")); err == nil {
		return openHF(path, path)
	}
	ggufs, err := filepath.Glob(filepath.Join(escapeGlob(path), "*.gguf"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch len(ggufs) {
	case 0:
		return nil, refuse(adviceModel, "%s: neither config.json nor a .gguf file is there", path)
	case 1:
		return openGGUF(ggufs[0])
	default:
		return nil, refuse("give the path of one of them", "%s: %d .gguf files and no config.json", path, len(ggufs))
	}
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// openFile opens the model that a file is, or is part of. Some stores drop the .gguf of a name, so the file's first
// bytes decide.
func openFile(path string) (*Base, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, refuse("check its permissions", "%s: %w", path, bare(err))
	}
	start := make([]byte, len(ggufMagic))
	n, err := io.ReadFull(f, start)
	f.Close()
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, refuse("check the path and the disk", "%s: %w", path, bare(err))
	}
	if string(start[:n]) == ggufMagic || strings.HasSuffix(path, ".gguf") {
		return openGGUF(path)
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
		return openHF(dir, path)
	}
	return nil, refuse(adviceModel, "%s: no model: not GGUF, and no config.json lies beside it", path)
}

// storage is what file names say about how weights are stored, as in SmolLM2-135M-Instruct.Q4_1.gguf.
var storage = regexp.MustCompile(`(?i)[-._](i?q\d\w*|b?f16|f32)$`)

// nameOf makes a model's name out of its path: the last part that a person would call it by.
func nameOf(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	dir, name := filepath.Split(path)
	// The hub's cache: models--owner--name/snapshots/commit.
	if dir = filepath.Clean(dir); filepath.Base(dir) == "snapshots" {
		owned := strings.Split(filepath.Base(filepath.Dir(dir)), "--")
		return owned[len(owned)-1]
	}
	if short, ok := strings.CutSuffix(name, ".gguf"); ok {
		return storage.ReplaceAllString(short, "")
	}
	return name
}

const (
	adviceModel = "give a Hugging Face model folder or a .gguf file"
	adviceFetch = "fetch the model again, or use another"
)

// bare is an error of the operating system without the path, which our errors begin with.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// refuse is an error of two lines: where and what, and what to do.
func refuse(advice, format string, args ...any) error {
	return fmt.Errorf(format+"\n%s", append(args, advice)...)
}

// slot is one tensor of a base model: what files call it, its shape, and where it goes.
type slot struct {
	name  string // transformers' name
	gguf  string // llama.cpp's name
	shape []int
	dst   *kernels.Tensor
	heads int // of q and k: how many heads its rows belong to; else 0
}

// slots lists every tensor of a model, having made room for its layers. A tied model has no output projection.
func (w *Weights) slots(a Arch, bias [targets]bool) []slot {
	w.Layers = make([]LayerWeights, a.Layers)
	all := []slot{
		{name: "model.embed_tokens.weight", gguf: "token_embd.weight", shape: []int{a.Vocab, a.Width}, dst: &w.Embed},
		{name: "model.norm.weight", gguf: "output_norm.weight", shape: []int{a.Width}, dst: &w.Norm},
	}
	if !a.Tied {
		all = append(all, slot{name: "lm_head.weight", gguf: "output.weight", shape: []int{a.Vocab, a.Width}, dst: &w.Head})
	}
	for l := range w.Layers {
		all = append(all, w.Layers[l].slots(a, bias, l)...)
	}
	return all
}

var ggufTargets = [targets]string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}

func (lw *LayerWeights) slots(a Arch, bias [targets]bool, layer int) []slot {
	hf, gguf := fmt.Sprintf("model.layers.%d.", layer), fmt.Sprintf("blk.%d.", layer)
	all := []slot{
		{name: hf + "input_layernorm.weight", gguf: gguf + "attn_norm.weight", shape: []int{a.Width}, dst: &lw.InputNorm},
		{name: hf + "post_attention_layernorm.weight", gguf: gguf + "ffn_norm.weight", shape: []int{a.Width}, dst: &lw.PostNorm},
	}
	if a.QKNorm {
		all = append(all,
			slot{name: hf + "self_attn.q_norm.weight", gguf: gguf + "attn_q_norm.weight", shape: []int{a.HeadDim}, dst: &lw.QNorm},
			slot{name: hf + "self_attn.k_norm.weight", gguf: gguf + "attn_k_norm.weight", shape: []int{a.HeadDim}, dst: &lw.KNorm})
	}
	heads := [targets]int{QProj: a.Heads, KProj: a.KVHeads}
	for _, t := range AllTargets() {
		in, out := a.Shape(t)
		s := slot{name: Module(layer, t) + ".weight", gguf: gguf + ggufTargets[t] + ".weight", shape: []int{out, in}, dst: &lw.W[t], heads: heads[t]}
		all = append(all, s)
		if bias[t] {
			s.name, s.gguf = Module(layer, t)+".bias", gguf+ggufTargets[t]+".bias"
			s.shape, s.dst = []int{out}, &lw.Bias[t]
			all = append(all, s)
		}
	}
	return all
}

// finish ties the output projection, counts, and makes the digest ready, once every slot has its tensor.
func (b *Base) finish(all []slot) {
	if b.Arch.Tied {
		b.Weights.Head = b.Weights.Embed
	}
	for _, s := range all {
		b.parameters += s.dst.Len()
		b.bytes += storedBytes(*s.dst)
	}
	b.digest = sync.OnceValue(func() string { return digestOf(all) })
}

// inParallel calls f(0) … f(n-1) on as many goroutines as Go runs at once, and returns the first error.
func inParallel(n int, f func(i int) error) error {
	var next atomic.Int64
	errs := make([]error, n)
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				errs[i] = f(i)
			}
		})
	}
	wg.Wait()
	return cmp.Or(errs...)
}
