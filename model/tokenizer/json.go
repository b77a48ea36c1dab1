package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// rawMessage is a component of tokenizer.json that is not read yet.
type rawMessage json.RawMessage

func (r *rawMessage) UnmarshalJSON(b []byte) error {
	*r = append(rawMessage(nil), b...)
	return nil
}

func (r rawMessage) isNull() bool { return len(r) == 0 || string(r) == "null" }

// decode reads the component at the path at; a key that into does not have is
// an error.
func (r rawMessage) decode(at string, into any) error {
	d := json.NewDecoder(bytes.NewReader(r))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mismatch):
		if mismatch.Field != "" {
			at += "." + mismatch.Field
		}
		return fmt.Errorf("%s: expected %s, got a JSON %s", at, jsonName(mismatch), mismatch.Value)
	case err != nil:
		return fmt.Errorf("%s: %s", at, strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// jsonName names the wanted type as the file's author would.
func jsonName(e *json.UnmarshalTypeError) string {
	kind := e.Type.Kind().String()
	switch kind {
	case "slice", "array":
		return "an array"
	case "struct", "map", "ptr":
		return "an object"
	case "string":
		return "a string"
	case "bool":
		return "true or false"
	}
	return "a number that fits " + kind
}

func unsupported(at, kind, known string) error {
	if kind == "" {
		return fmt.Errorf(`%s: no "type"`, at)
	}
	return fmt.Errorf("%s: type %q is not supported, expected one of %s", at, kind, known)
}

const (
	adviceFile = "the tokenizers supported are byte-level BPE ones, as of GPT-2, Llama 3, Qwen and SmolLM2; take tokenizer.json as the model's author published it"
	adviceCopy = "the file may be incomplete: copy or download it again"
)

// Open reads a tokenizer.json file of Hugging Face tokenizers. If there is a
// tokenizer_config.json in the same folder, its bos_token and eos_token
// decide BOS and the first of EOS.
func Open(path string) (*Tokenizer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(filepath.Dir(path), "tokenizer_config.json")
	data, err = os.ReadFile(config)
	if errors.Is(err, os.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	if err := t.readConfig(data); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", config, err, adviceFile)
	}
	return t, nil
}

// Parse reads the text of a tokenizer.json; name is what errors call it.
//
// Whatever it does not know is an error that names it: a part skipped would
// show only as a model that performs worse.
func Parse(name string, text []byte) (*Tokenizer, error) {
	if offset, err := checkJSON(text); err != nil {
		line, column := position(text, offset)
		return nil, fmt.Errorf("%s:%d:%d: %w\n%s", name, line, column, err, adviceCopy)
	}
	t, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", name, err, adviceFile)
	}
	return t, nil
}

// checkJSON finds broken syntax and text that Go would silently replace.
func checkJSON(text []byte) (offset int, err error) {
	var syntax *json.SyntaxError
	if err := json.Unmarshal(text, new(json.RawMessage)); errors.As(err, &syntax) {
		if int(syntax.Offset) >= len(text) {
			return len(text), errors.New("unexpected end of the JSON text")
		}
		return int(syntax.Offset) - 1, syntax
	}
	for i := 0; i < len(text); {
		switch r, n := utf8.DecodeRune(text[i:]); {
		case r == utf8.RuneError && n == 1:
			return i, errors.New("not valid UTF-8")
		case r == '\\':
			n := escapeLength(text[i:])
			if n == 0 {
				return i, fmt.Errorf("%s is half a character", text[i:i+6])
			}
			i += n
		default:
			i += n
		}
	}
	return 0, nil
}

// escapeLength measures a valid JSON escape; 0 stands for a lone surrogate.
func escapeLength(text []byte) int {
	if text[1] != 'u' {
		return 2
	}
	high := codeUnit(text)
	switch {
	case !utf16.IsSurrogate(high):
		return 6
	case len(text) >= 12 && string(text[6:8]) == `\u` && utf16.DecodeRune(high, codeUnit(text[6:])) != utf8.RuneError:
		return 12
	}
	return 0
}

func codeUnit(escape []byte) rune {
	unit, _ := strconv.ParseUint(string(escape[2:6]), 16, 16) // four digits, or the syntax check had failed
	return rune(unit)
}

func position(text []byte, offset int) (line, column int) {
	before := text[:min(offset, len(text))]
	start := bytes.LastIndexByte(before, '\n') + 1
	return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[start:])
}

type fileJSON struct {
	Version       string
	Truncation    rawMessage
	Padding       rawMessage
	AddedTokens   []rawMessage `json:"added_tokens"`
	Normalizer    rawMessage
	PreTokenizer  rawMessage `json:"pre_tokenizer"`
	PostProcessor rawMessage `json:"post_processor"`
	Decoder       rawMessage
	Model         rawMessage
}

func parse(text []byte) (*Tokenizer, error) {
	var f fileJSON
	if err := rawMessage(text).decode("top level", &f); err != nil {
		return nil, err
	}
	switch {
	case f.Version != "1.0":
		return nil, fmt.Errorf(`version %q is not supported, expected "1.0"`, f.Version)
	case !f.Truncation.isNull():
		return nil, errors.New("truncation is not supported, expected null")
	case !f.Padding.isNull():
		return nil, errors.New("padding is not supported, expected null")
	}
	var b builder
	var err error
	if b.normalize, err = parseNormalizer(f.Normalizer, "normalizer"); err != nil {
		return nil, err
	}
	if !f.PreTokenizer.isNull() {
		if err := b.pre.add(f.PreTokenizer, "pre_tokenizer"); err != nil {
			return nil, err
		}
	}
	if b.model, err = parseModel(f.Model); err != nil {
		return nil, err
	}
	if b.added, err = parseAdded(f.AddedTokens, b.model); err != nil {
		return nil, err
	}
	if b.decoder, err = parseDecoder(f.Decoder); err != nil {
		return nil, err
	}
	t := b.build()
	if err := t.parsePost(f.PostProcessor, "post_processor"); err != nil {
		return nil, err
	}
	t.guessEnds()
	return t, nil
}

func parseAdded(raws []rawMessage, model *bpe) ([]addedToken, error) {
	seen := map[string]bool{}
	ids := map[int32]string{}
	// tokenizers ignores the ids in the file and numbers new tokens itself.
	next := int32(len(model.vocab))
	var out []addedToken
	for i, raw := range raws {
		at := fmt.Sprintf("added_tokens[%d]", i)
		var a addedToken
		if err := raw.decode(at, &a); err != nil {
			return nil, err
		}
		if a.Content == "" || seen[a.Content] {
			return nil, fmt.Errorf("%s: token %q is empty or listed twice", at, a.Content)
		}
		seen[a.Content] = true
		want, ok := model.vocab[a.Content]
		if !ok {
			want = next
			next++
		}
		if a.ID != want {
			return nil, fmt.Errorf("%s: token %q has id %d, but by the vocabulary and the tokens before it its id is %d",
				at, a.Content, a.ID, want)
		}
		other, taken := model.tokens[a.ID]
		if !taken {
			other, taken = ids[a.ID]
		}
		if taken && other != a.Content {
			return nil, fmt.Errorf("%s: tokens %q and %q have the same id %d", at, other, a.Content, a.ID)
		}
		ids[a.ID] = a.Content
		out = append(out, a)
	}
	return out, nil
}

// readConfig reads what of tokenizer_config.json this package uses; the rest
// of that file is for other programs.
func (t *Tokenizer) readConfig(text []byte) error {
	var c struct {
		BOS json.RawMessage `json:"bos_token"`
		EOS json.RawMessage `json:"eos_token"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	bos, err := t.configToken("bos_token", c.BOS)
	if err != nil {
		return err
	}
	eos, err := t.configToken("eos_token", c.EOS)
	if err != nil {
		return err
	}
	if bos >= 0 {
		t.bos = bos
	}
	t.setEOS(eos)
	return nil
}

// configToken finds a token that is given as text or as {"content": text}.
func (t *Tokenizer) configToken(key string, raw json.RawMessage) (int32, error) {
	if rawMessage(raw).isNull() {
		return -1, nil
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		var c struct{ Content *string }
		if json.Unmarshal(raw, &c) != nil || c.Content == nil {
			return -1, fmt.Errorf(`%s: expected a string, {"content": …} or null`, key)
		}
		text = *c.Content
	}
	id, ok := t.ID(text)
	if !ok {
		return -1, fmt.Errorf("%s: %q is not a token of tokenizer.json", key, text)
	}
	return id, nil
}
