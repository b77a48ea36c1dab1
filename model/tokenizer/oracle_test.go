package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestOracle compares with Python's tokenizers 0.23.2, on Llama 3, Qwen3 and
// small tokenizers that have the other parts.
func TestOracle(t *testing.T) {
	dir := os.Getenv("LORA_TOKENIZERS")
	if dir == "" {
		t.Skip("run model/tokenizer/testdata/oracle.sh DIR and set LORA_TOKENIZERS=DIR to run this test")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"llama3", "qwen3", "small-added", "small-fallback"} {
		if _, err := os.Stat(filepath.Join(dir, name+".json")); err != nil {
			t.Error(err)
		}
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			tok, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			readLines(t, strings.TrimSuffix(path, ".json")+".jsonl.gz", func(line int, x *oracleLine) {
				compareLine(t, tok, line, x)
			})
		})
	}
}

// TestGGUFOracle makes of the published tokenizers what their GGUF files hold
// and compares again: the pre-tokenizer's name must bring back all that such
// files leave out.
func TestGGUFOracle(t *testing.T) {
	dir := os.Getenv("LORA_TOKENIZERS")
	if dir == "" {
		t.Skip("run model/tokenizer/testdata/oracle.sh DIR and set LORA_TOKENIZERS=DIR to run this test")
	}
	for name, pre := range map[string]string{"llama3": "llama-bpe", "qwen3": "qwen2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tok, err := FromGGUF(asMetadata(t, filepath.Join(dir, name+".json"), pre))
			if err != nil {
				t.Fatal(err)
			}
			readLines(t, filepath.Join(dir, name+".jsonl.gz"), func(line int, x *oracleLine) {
				if x.Text == nil || line > 2001 {
					return
				}
				if got := tok.Encode(*x.Text, false); !slices.Equal(got, x.IDs) {
					t.Errorf("line %d: Encode(%q, false):\ngot  %v\nwant %v", line, *x.Text, got, x.IDs)
				}
				if got := tok.Decode(x.IDs, false); got != x.Decoded {
					t.Errorf("line %d: Decode(%v, false):\ngot  %q\nwant %q", line, x.IDs, got, x.Decoded)
				}
			})
		})
	}
}

func asMetadata(t *testing.T, path, pre string) Metadata {
	tok, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	m := Metadata{File: path, Model: "gpt2", Pre: pre, EOS: -1, EOT: -1, PAD: -1, UNK: -1}
	for id := range int32(tok.VocabSize()) {
		m.Tokens = append(m.Tokens, tok.Token(id))
		kind := int32(1)
		if special, added := tok.special[id]; special {
			kind = typeControl
		} else if added {
			kind = typeUserDefined
		}
		m.Types = append(m.Types, kind)
	}
	m.Merges = make([]string, len(tok.model.merges))
	for pair, to := range tok.model.merges {
		m.Merges[to.rank] = tok.Token(pair[0]) + " " + tok.Token(pair[1])
	}
	return m
}

func compareLine(t *testing.T, tok *Tokenizer, line int, x *oracleLine) {
	if x.Text != nil {
		for _, c := range []struct {
			special bool
			want    []int32
		}{{false, x.IDs}, {true, x.WithSpecial}} {
			got := tok.Encode(*x.Text, c.special)
			if !slices.Equal(got, c.want) {
				t.Errorf("line %d: Encode(%q, %v):\ngot  %v\nwant %v", line, *x.Text, c.special, got, c.want)
			}
		}
	}
	if got := tok.Decode(x.IDs, false); got != x.Decoded {
		t.Errorf("line %d: Decode(%v, false):\ngot  %q\nwant %q", line, x.IDs, got, x.Decoded)
	}
	if got := tok.Decode(x.WithSpecial, true); got != x.Skipped {
		t.Errorf("line %d: Decode(%v, true):\ngot  %q\nwant %q", line, x.WithSpecial, got, x.Skipped)
	}
}
