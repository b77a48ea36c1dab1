package tokenizer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Metadata is what a GGUF file says of its tokenizer, under the keys
// tokenizer.ggml.*. An id that the file does not give is −1.
type Metadata struct {
	File string // for errors
	// Model is tokenizer.ggml.model and must be "gpt2", byte-level BPE.
	Model string
	// Pre is tokenizer.ggml.pre, which names the pre-tokenizer.
	Pre    string
	Tokens []string
	// Types says of each token whether it is 1 normal, 2 unknown, 3 control,
	// 4 user-defined, 5 unused or 6 a byte; nil makes all normal.
	Types                   []int32
	Merges                  []string
	BOS, EOS, EOT, PAD, UNK int32
	// AddBOS and AddEOS say what surrounds a text; nil where the file does not
	// say leaves the choice to Pre: a BOS for the Llama 3 family.
	AddBOS, AddEOS *bool
}

// Token types of GGUF (llama.cpp, enum llama_token_type).
const (
	typeUnknown     = 2
	typeControl     = 3
	typeUserDefined = 4
)

// A scheme is how texts become words under one name of tokenizer.ggml.pre.
type scheme struct {
	// splits are expressions that each isolate what they find.
	splits []string
	// ignoreMerges and addBOS are not in the file (llama.cpp, llama-vocab.cpp).
	ignoreMerges, addBOS bool
	// normalize is not in the file either and llama.cpp has none, but the
	// models' own tokenizers do.
	normalize normalizer
}

const (
	digitsPattern = `\p{N}`
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

var (
	gpt2Scheme   = scheme{splits: []string{gpt2Pattern}}
	digitsScheme = scheme{splits: []string{digitsPattern, gpt2Pattern}}
	llama3Scheme = scheme{splits: []string{llama3Pattern}, ignoreMerges: true, addBOS: true}
)

// schemes follows llama.cpp; its expressions are given as the models' authors
// wrote them (llama.cpp writes 's as '[sS], which misses U+017F).
var schemes = map[string]scheme{
	"gpt-2":       gpt2Scheme,
	"phi-2":       gpt2Scheme,
	"mpt":         gpt2Scheme,
	"olmo":        gpt2Scheme,
	"exaone4":     gpt2Scheme,
	"modern-bert": gpt2Scheme,
	"smollm":      digitsScheme,
	"starcoder":   digitsScheme,
	"refact":      digitsScheme,
	"command-r":   digitsScheme,
	"codeshell":   digitsScheme,
	"exaone":      digitsScheme,
	"minerva-7b":  digitsScheme,
	"llama3":      llama3Scheme,
	"llama-v3":    llama3Scheme,
	"llama-bpe":   llama3Scheme,
	"falcon3":     llama3Scheme,
	"dbrx":        {splits: []string{llama3Pattern}},
	"smaug-bpe":   {splits: []string{llama3Pattern}},
	"qwen2":       {splits: []string{qwen2Pattern}, normalize: nfc},
	"megrez":      {splits: []string{qwen2Pattern}},
	"stablelm2":   {splits: []string{qwen2Pattern}},
	"default": {splits: []string{
		`[\p{P}\$\+<=>\^~\|]+`, gpt2Pattern, `\p{N}+`, `[0-9][0-9][0-9]`,
	}},
}

const adviceGGUF = "use the GGUF file of a model with byte-level BPE, made by a recent convert_hf_to_gguf.py"

// FromGGUF makes the tokenizer that a GGUF file describes.
func FromGGUF(m Metadata) (*Tokenizer, error) {
	t, err := fromGGUF(&m)
	if err != nil {
		return nil, fmt.Errorf("%s: tokenizer.ggml.%w\n%s", m.File, err, adviceGGUF)
	}
	return t, nil
}

func fromGGUF(m *Metadata) (*Tokenizer, error) {
	if m.Model != "gpt2" {
		return nil, fmt.Errorf(`model: %q is not supported, expected "gpt2"`, m.Model)
	}
	s, ok := schemes[m.Pre]
	if !ok {
		return nil, fmt.Errorf("pre: %q is not supported, expected one of %s", m.Pre,
			strings.Join(slices.Sorted(maps.Keys(schemes)), ", "))
	}
	if err := m.checkIDs(); err != nil {
		return nil, err
	}
	b := builder{normalize: s.normalize, decoder: &decoder{stages: []func() stage{func() stage { return &byteLevel{} }}}}
	if b.normalize == nil {
		b.normalize = func(s string) string { return s }
	}
	b.pre.byteLevel = true
	for _, expr := range s.splits {
		step, err := isolate(expr)
		if err != nil {
			return nil, fmt.Errorf("pre: %w", err)
		}
		b.pre.steps = append(b.pre.steps, step)
	}
	var err error
	if b.model, err = m.model(); err != nil {
		return nil, err
	}
	b.model.ignoreMerges = s.ignoreMerges
	b.added = m.added()
	t := b.build()
	t.bos = m.BOS
	t.setEOS(m.EOS, m.EOT)
	tmpl, err := m.template(s.addBOS)
	t.templates = []template{tmpl}
	return t, err
}

func (m *Metadata) checkIDs() error {
	if len(m.Types) != 0 && len(m.Types) != len(m.Tokens) {
		return fmt.Errorf("token_type: %d types for %d tokens", len(m.Types), len(m.Tokens))
	}
	for _, c := range []struct {
		key string
		id  int32
	}{
		{"bos_token_id", m.BOS},
		{"eos_token_id", m.EOS},
		{"eot_token_id", m.EOT},
		{"padding_token_id", m.PAD},
		{"unknown_token_id", m.UNK},
	} {
		if c.id < -1 || int(c.id) >= len(m.Tokens) {
			return fmt.Errorf("%s: %d, but there are %d tokens", c.key, c.id, len(m.Tokens))
		}
	}
	return nil
}

func (m *Metadata) model() (*bpe, error) {
	vocab := make(map[string]int32, len(m.Tokens))
	for i, token := range m.Tokens {
		if other, twice := vocab[token]; twice || token == "" || !utf8.ValidString(token) {
			return nil, fmt.Errorf("tokens[%d]: %q is empty, not UTF-8, or also tokens[%d]", i, token, other)
		}
		vocab[token] = int32(i)
	}
	model, err := newBPE(vocab)
	if err != nil {
		return nil, err
	}
	if len(m.Merges) == 0 {
		return nil, errors.New("merges: there are none")
	}
	model.merges = make(map[[2]int32]merge, len(m.Merges))
	for rank, line := range m.Merges {
		// The first character may be a space itself.
		space := strings.IndexByte(line[min(1, len(line)):], ' ') + 1
		if space == 0 {
			return nil, fmt.Errorf("merges[%d]: expected two tokens, got %q", rank, line)
		}
		if err := model.addMerge(rank, line[:space], line[space+1:]); err != nil {
			return nil, fmt.Errorf("merges[%d]: %w", rank, err)
		}
	}
	return model, nil
}

// added makes added tokens of those whose type says that text may contain
// them whole.
func (m *Metadata) added() []addedToken {
	var out []addedToken
	for i, kind := range m.Types {
		switch kind {
		case typeControl, typeUnknown, typeUserDefined:
			out = append(out, addedToken{ID: int32(i), Content: m.Tokens[i], Special: kind != typeUserDefined})
		}
	}
	return out
}

func (m *Metadata) template(addBOS bool) (template, error) {
	addEOS := m.AddEOS != nil && *m.AddEOS
	if m.AddBOS != nil {
		addBOS = *m.AddBOS
	}
	var out template
	if addBOS {
		if m.BOS < 0 {
			return nil, errors.New("add_bos_token: is true, but there is no bos_token_id")
		}
		out = append(out, m.BOS)
	}
	out = append(out, textPart)
	if addEOS {
		if m.EOS < 0 {
			return nil, errors.New("add_eos_token: is true, but there is no eos_token_id")
		}
		out = append(out, m.EOS)
	}
	return out, nil
}
