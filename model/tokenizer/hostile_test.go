package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// TestParseRefuses changes one thing in testdata/small.json.
func TestParseRefuses(t *testing.T) {
	text, err := os.ReadFile("testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"version", `"version": "1.0"`, `"version": "2.0"`, `x.json: version "2.0" is not supported`},
		{"truncation", `"truncation": null`, `"truncation": {"max_length": 5}`, "truncation is not supported"},
		{"padding", `"padding": null`, `"padding": {}`, "padding is not supported"},
		{"key at the top", `"padding": null`, `"filling": null`, `unknown field "filling"`},
		{"merge of an unknown token", `"l l"`, `"l lx"`, `model.merges[1]: merge of "l" and "lx": "lx" is not in the vocabulary`},
		{"merge into an unknown token", `"l l"`, `"l z"`, `model.merges[1]: merge of "l" and "z": "lz" is not`},
		{"merge of three", `"l l"`, `"l l l"`, `model.merges[1]: expected "a b", or ["a", "b"] all along, got "l l l"`},
		{"merge of one", `"l l"`, `"l"`, `model.merges[1]: expected`},
		{"merges spelled both ways", `"l l"`, `["l", "l"]`, `model.merges[1]: expected "a b", or ["a", "b"] all along, got ["l","l"]`},
		{"merge of numbers", `"l l"`, `7`, `model.merges[1]: expected`},
		{"merges are an object", `"merges": [
      "h e", "l l", "he ll", "hell o", "Ġ w", "o r",
      "Ġw or", "l d", "Ġwor ld", "a a", "aa aa", "aaaa aaaa"
    ]`, `"merges": {}`, `model.merges: expected an array`},
		{"merge of one in an array", `"h e", "l l", "he ll", "hell o", "Ġ w", "o r",
      "Ġw or", "l d", "Ġwor ld", "a a", "aa aa", "aaaa aaaa"`, `["h", "e"], ["l"]`, `model.merges[1]: expected`},
		{"merge of a number in an array", `"h e", "l l", "he ll", "hell o", "Ġ w", "o r",
      "Ġw or", "l d", "Ġwor ld", "a a", "aa aa", "aaaa aaaa"`, `["h", "e"], ["l", 7]`, `model.merges[1]: expected`},

		{"no merges", `"merges"`, `"Merger"`, `unknown field "Merger"`},
		{"two tokens with one id", `"ll": 259`, `"ll": 258`, `tokens "he" and "ll" have the same id 258`},
		{"a token twice", `"ll": 259`, `"he": 259`, `token "he" is listed twice`},
		{"negative id", `"ll": 259`, `"ll": -1`, `token "ll": expected an id from 0`},
		{"huge id", `"ll": 259`, `"ll": 99999999999999999999`, `token "ll": expected an id from 0`},
		{"fractional id", `"ll": 259`, `"ll": 259.5`, `token "ll": expected an id from 0`},
		{"id is text", `"ll": 259`, `"ll": "259"`, `token "ll": expected an id from 0`},
		{"added token with a foreign id", `"id": 270, "content": "<l>"`, `"id": 300, "content": "<l>"`, `added_tokens[2]: token "<l>" has id 300, but by the vocabulary and the tokens before it its id is 270`},
		{"added token twice", `"content": "<r>"`, `"content": "<l>"`, `added_tokens[3]: token "<l>" is empty or listed twice`},
		{"empty added token", `"content": "<r>"`, `"content": ""`, `added_tokens[3]: token "" is empty`},
		{"added token with another key", `"id": 271, `, `"id": 271, "greedy": true, `, `added_tokens[3]: unknown field "greedy"`},
		{"normalizer", `{"type": "NFC"}`, `{"type": "Lowercase"}`, `normalizer: type "Lowercase" is not supported, expected one of Sequence, NFC`},
		{"normalizer inside", `{"type": "NFC"}`, `{"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}`, `normalizer.normalizers[1]: type "Nmt"`},
		{"normalizer without type", `{"type": "NFC"}`, `{}`, `normalizer: no "type"`},
		{"normalizer is text", `{"type": "NFC"}`, `"NFC"`, `normalizer: expected an object, got a JSON string`},
		{"pre-tokenizer", `"type": "Digits", "individual_digits": true`, `"type": "Metaspace"`, `pre_tokenizer.pretokenizers[0]: type "Metaspace" is not supported`},
		{"pre-tokenizer option", `"individual_digits": true`, `"individual_digits": "yes"`, `pre_tokenizer.pretokenizers[0].individual_digits: expected true or false, got a JSON string`},
		{"behavior", `"type": "Digits", "individual_digits": true`, `"type": "Split", "pattern": {"String": "a"}, "behavior": "Kept"`, `behavior "Kept" is not supported`},
		{"no pattern", `"type": "Digits", "individual_digits": true`, `"type": "Split", "behavior": "Removed"`, `pretokenizers[0].pattern: expected {"Regex"`},
		{"pattern", `"type": "Digits", "individual_digits": true`, `"type": "Split", "pattern": {"Regex": "a++"}, "behavior": "Removed"`, `regular expression "a++", character 3: a quantifier after a quantifier`},
		{"split after ByteLevel", `"use_regex": true}
  ]}`, `"use_regex": true}, {"type": "Digits"}
  ]}`, `pretokenizers[2]: Digits after ByteLevel is not supported`},
		{"post-processor", `"type": "TemplateProcessing"`, `"type": "RobertaProcessing"`, `post_processor: type "RobertaProcessing" is not supported`},
		{"template without its token", `"special_tokens": {"<s>"`, `"special_tokens": {"<t>"`, `post_processor.single[0]: "<s>" is not among special_tokens`},
		{"template with a foreign id", `"ids": [0]`, `"ids": [4711]`, `"<s>" has id 4711, which no token has`},
		{"template of two texts", `{"Sequence": {"id": "A", "type_id": 0}}],
    "pair"`, `{"Sequence": {"id": "B", "type_id": 0}}],
    "pair"`, `post_processor.single[1]: sequence "B" is not supported`},
		{"decoder", `"decoder": {"type": "ByteLevel"`, `"decoder": {"type": "WordPiece"`, `decoder: type "WordPiece" is not supported`},
		{
			"decoder after the last", `"decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}`,
			`"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}`, `decoder.decoders[1]: ByteFallback is not supported where`,
		},
		{"model", `"type": "BPE"`, `"type": "Unigram"`, `model: type "Unigram" is not supported, expected one of BPE`},
		{"dropout", `"dropout": null`, `"dropout": 0.1`, `model: dropout 0.1 is not supported`},
		{"subword prefix", `"continuing_subword_prefix": null`, `"continuing_subword_prefix": "##"`, `continuing_subword_prefix "##"`},
		{"word suffix", `"end_of_word_suffix": null`, `"end_of_word_suffix": "</w>"`, `end_of_word_suffix "</w>"`},
		{"unknown token", `"unk_token": null`, `"unk_token": "<unk>"`, `unk_token "<unk>" is not in the vocabulary`},
		{"syntax", `"padding": null,`, `"padding": nul,`, `x.json:4:17: invalid character`},
		{"lone surrogate", `"<l>"`, `"\ud800"`, `x.json:8:29: \ud800 is half a character`},
		{"surrogates the wrong way", `"<l>"`, `"\udc00\ud800"`, `\udc00 is half a character`},
		{"invalid UTF-8", `"<l>"`, "\"\xff\"", `x.json:8:29: not valid UTF-8`},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(string(text), c.old, c.new, 1)
			if changed == string(text) {
				t.Fatalf("%s is not in small.json", c.old)
			}
			_, err := Parse("x.json", []byte(changed))
			if err == nil {
				t.Fatal("no error")
			}
			first, advice, _ := strings.Cut(err.Error(), "\n")
			if !strings.HasPrefix(first, "x.json") || !strings.Contains(first, c.want) || advice == "" {
				t.Errorf("got %q\nwant %q in the first line and advice in the second", err, c.want)
			}
		})
	}
}

// TestParseTruncated cuts the file anywhere: an error that says where, no panic.
func TestParseTruncated(t *testing.T) {
	text, err := os.ReadFile("testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.TrimRightFunc(string(text), unicode.IsSpace))
	for n := 0; n < len(text); n += 13 {
		_, err := Parse("x.json", text[:n])
		if err == nil || !strings.HasPrefix(err.Error(), "x.json:") || !strings.Contains(err.Error(), "unexpected end") {
			t.Errorf("the first %d bytes: got error %v, want one with the place", n, err)
		}
	}
}

// TestParseMutated changes bytes at random: Parse may accept or refuse, and
// what it accepts must encode.
func TestParseMutated(t *testing.T) {
	text, err := os.ReadFile("testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(r *rapid.T) {
		changed := slices.Clone(text)
		for range rapid.IntRange(1, 4).Draw(r, "changes") {
			at := rapid.IntRange(0, len(changed)-1).Draw(r, "at")
			changed[at] = rapid.SampledFrom([]byte(`"{}[]:,01\ \uad\x00-`)).Draw(r, "byte")
		}
		tok, err := Parse("x.json", changed)
		if err == nil {
			tok.Decode(tok.Encode("hello <l> cat 12 \xff", true), true)
		}
	})
}

// TestHoles has ids that no token has: they take no memory and decode to
// nothing.
func TestHoles(t *testing.T) {
	tok, err := Parse("x.json", []byte(`{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 3, "b": 2147483646}, "merges": []}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.VocabSize(); got != 2147483647 {
		t.Errorf("VocabSize: got %d, want 2147483647", got)
	}
	if got := tok.Encode("abc", true); !slices.Equal(got, []int32{3, 2147483646}) {
		t.Errorf("Encode: got %v, want [3 2147483646]; c has no id", got)
	}
	if got := tok.Decode([]int32{0, 3, 4, 2147483646}, true); got != "a b" {
		t.Errorf("Decode: got %q, want %q, as without a decoder", got, "a b")
	}
}

func TestOpenReadsConfig(t *testing.T) {
	text, err := os.ReadFile("testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		config string
		bos    int32
		eos    []int32
		err    string
	}{
		{`{"eos_token": "<l>", "bos_token": {"content": "<r>"}, "chat_template": "x"}`, 271, []int32{270, 1}, ""},
		{`{"eos_token": null}`, 0, []int32{1}, ""},
		{`{"eos_token": "<gone>"}`, 0, nil, `tokenizer_config.json: eos_token: "<gone>" is not a token of tokenizer.json`},
		{`{"bos_token": 7}`, 0, nil, "tokenizer_config.json: bos_token: expected a string"},
		{`{"bos_token": `, 0, nil, "tokenizer_config.json: unexpected end"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "tokenizer.json")
		for name, data := range map[string]string{path: string(text), filepath.Join(dir, "tokenizer_config.json"): c.config} {
			if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tok, err := Open(path)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got error %v, want %q", c.config, err, c.err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.config, err)
		case tok.BOS() != c.bos || !slices.Equal(tok.EOS(), c.eos):
			t.Errorf("%s: got BOS %d and EOS %v, want %d and %v", c.config, tok.BOS(), tok.EOS(), c.bos, c.eos)
		}
	}
}
