package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

// smallMetadata is testdata/small.json as a GGUF file would give it.
func smallMetadata(t *testing.T, pre string) Metadata {
	tok := small(t)
	m := Metadata{File: "x.gguf", Model: "gpt2", Pre: pre, BOS: 0, EOS: 1, EOT: -1, PAD: -1, UNK: -1}
	for id := range int32(tok.VocabSize()) {
		m.Tokens = append(m.Tokens, tok.Token(id))
		switch {
		case tok.special[id]:
			m.Types = append(m.Types, typeControl)
		case id >= 270:
			m.Types = append(m.Types, typeUserDefined)
		default:
			m.Types = append(m.Types, 1)
		}
	}
	m.Merges = []string{"h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "a a", "aa aa"}
	return m
}

func TestGGUFSchemes(t *testing.T) {
	yes := true
	no := false
	for _, c := range []struct {
		pre, text, want string
		addBOS, addEOS  *bool
	}{
		{"smollm", "hello world 12<l></s>", "hello|Ġworld|Ġ|1|2|<l>|</s>", nil, nil},
		{"smollm", "hello", "<s>|hello|</s>", &yes, &yes},
		{"gpt-2", "'S'ſ aaaa 12", "'|S|'|Å|¿|Ġ|aaaa|Ġ|1|2", nil, nil},
		{"llama-bpe", "aaaaaaaa aaaa", "<s>|aaaaaaaa|Ġ|aaaa", nil, nil}, // the whole word, though no merge makes it
		{"llama-bpe", "hello", "hello", &no, nil},
		{"qwen2", "aaaaaaaa e\u0301", "aaaa|aaaa|Ġ|Ã|©", nil, nil}, // NFC
		{"default", "hello!hello", "hello|!|hello", nil, nil},
	} {
		m := smallMetadata(t, c.pre)
		m.AddBOS, m.AddEOS = c.addBOS, c.addEOS
		tok, err := FromGGUF(m)
		if err != nil {
			t.Errorf("%s: %v", c.pre, err)
			continue
		}
		if got := spell(tok, tok.Encode(c.text, true)); got != c.want {
			t.Errorf("%s: Encode(%q): got %s, want %s", c.pre, c.text, got, c.want)
		}
		if got, want := tok.Decode(tok.Encode(c.text, true), true), strings.ReplaceAll(c.text, "</s>", ""); nfc(want) != got {
			t.Errorf("%s: decoded %q, want %q", c.pre, got, want)
		}
	}
}

func TestGGUFEverySchemeLoads(t *testing.T) {
	for pre := range schemes {
		if _, err := FromGGUF(smallMetadata(t, pre)); err != nil {
			t.Errorf("%s: %v", pre, err)
		}
	}
}

func TestGGUFEnds(t *testing.T) {
	m := smallMetadata(t, "smollm")
	m.Tokens[5], m.Types[5] = "<|im_end|>", typeControl
	m.Tokens[6], m.Types[6] = "<|endoftext|>", 1 // a name alone is not enough
	m.EOS, m.EOT = 7, 8
	tok, err := FromGGUF(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tok.EOS(), []int32{7, 8, 5, 1}; !slices.Equal(got, want) {
		t.Errorf("EOS: got %v, want %v", got, want)
	}
}

func TestGGUFRefuses(t *testing.T) {
	yes := true
	for _, c := range []struct {
		name   string
		change func(m *Metadata)
		want   string
	}{
		{"SentencePiece", func(m *Metadata) { m.Model = "llama" }, `model: "llama" is not supported, expected "gpt2"`},
		{"T5", func(m *Metadata) { m.Model = "t5" }, `model: "t5" is not supported`},
		{"pre", func(m *Metadata) { m.Pre = "deepseek-v3" }, `pre: "deepseek-v3" is not supported, expected one of codeshell, command-r, dbrx, default`},
		{"no pre", func(m *Metadata) { m.Pre = "" }, `pre: "" is not supported`},
		{"no merges", func(m *Metadata) { m.Merges = nil }, "merges: there are none"},
		{"no tokens", func(m *Metadata) { m.Tokens, m.Types = nil, nil }, "bos_token_id: 0, but there are 0 tokens"},
		{"empty merge", func(m *Metadata) { m.Merges[2] = "" }, `merges[2]: expected two tokens, got ""`},
		{"one-token merge", func(m *Metadata) { m.Merges[2] = "hell" }, `merges[2]: expected two tokens, got "hell"`},
		{"unknown merge", func(m *Metadata) { m.Merges[2] = "he lx" }, `merges[2]: merge of "he" and "lx": "lx" is not`},
		{"token twice", func(m *Metadata) { m.Tokens[9] = m.Tokens[8] }, `tokens[9]: "Ć" is empty, not UTF-8, or also tokens[8]`},
		{"empty token", func(m *Metadata) { m.Tokens[9] = "" }, `tokens[9]: "" is empty`},
		{"broken token", func(m *Metadata) { m.Tokens[9] = "\xff" }, `tokens[9]: "\xff" is empty, not UTF-8`},
		{"types", func(m *Metadata) { m.Types = m.Types[1:] }, "token_type: 275 types for 276 tokens"},
		{"EOS", func(m *Metadata) { m.EOS = 276 }, "eos_token_id: 276, but there are 276 tokens"},
		{"PAD", func(m *Metadata) { m.PAD = -2 }, "padding_token_id: -2, but"},
		{"BOS", func(m *Metadata) { m.BOS, m.AddBOS = -1, &yes }, "add_bos_token: is true, but there is no bos_token_id"},
		{"EOS to add", func(m *Metadata) { m.EOS, m.AddEOS = -1, &yes }, "add_eos_token: is true, but there is no eos_token_id"},
		{"BOS of Llama 3", func(m *Metadata) { m.Pre, m.BOS = "llama-bpe", -1 }, "add_bos_token: is true, but there is no"},
	} {
		m := smallMetadata(t, "smollm")
		c.change(&m)
		_, err := FromGGUF(m)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		first, advice, _ := strings.Cut(err.Error(), "\n")
		if !strings.HasPrefix(first, "x.gguf: tokenizer.ggml."+c.want) || advice == "" {
			t.Errorf("%s: got %q, want %q after the file's name, and advice", c.name, err, c.want)
		}
	}
}
