package tokenizer

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/go-huggingface/models/gguf"
	"github.com/google/go-cmp/cmp"
)

var golden = flag.String("golden", "../../testdata/golden", "folder of the golden files")

// oracleLine is what Hugging Face tokenizers made of a text.
type oracleLine struct {
	Text *string // absent where ids alone are decoded
	IDs  []int32
	// WithSpecial are the ids with what surrounds a text added; absent from
	// the golden file.
	WithSpecial []int32 `json:"with_special"`
	Decoded     string
	// Skipped is decoded from WithSpecial without special tokens.
	Skipped string
}

// readLines calls f with each line of a gzipped JSONL file.
func readLines(t *testing.T, path string, f func(line int, x *oracleLine)) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(z)
	scanner.Buffer(nil, 1<<24)
	n := 0
	for scanner.Scan() {
		n++
		var x oracleLine
		if err := json.Unmarshal(scanner.Bytes(), &x); err != nil {
			t.Fatalf("%s:%d: %v", path, n, err)
		}
		f(n, &x)
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	if n < 100 {
		t.Fatalf("%s has only %d lines", path, n)
	}
}

func smolLM2(t testing.TB) *Tokenizer {
	path := os.Getenv("LORA_SMOLLM2")
	if path == "" {
		t.Skip("set LORA_SMOLLM2 to the GGUF file of SmolLM2-135M-Instruct to run this test")
	}
	tok, err := FromGGUF(readGGUF(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func readGGUF(t testing.TB, path string) Metadata {
	file, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	id := func(key string) int32 {
		if v, ok := file.GetKeyValue("tokenizer.ggml." + key); ok {
			return int32(v.Int64())
		}
		return -1
	}
	flag := func(key string) *bool {
		if v, ok := file.GetKeyValue("tokenizer.ggml." + key); ok {
			b := v.Bool()
			return &b
		}
		return nil
	}
	get := func(key string) gguf.KeyValue {
		v, _ := file.GetKeyValue("tokenizer.ggml." + key)
		return v
	}
	m := Metadata{
		File: path, Model: get("model").String(), Pre: get("pre").String(),
		Tokens: get("tokens").Strings(), Merges: get("merges").Strings(),
		BOS: id("bos_token_id"), EOS: id("eos_token_id"), EOT: id("eot_token_id"),
		PAD: id("padding_token_id"), UNK: id("unknown_token_id"),
		AddBOS: flag("add_bos_token"), AddEOS: flag("add_eos_token"),
	}
	for _, kind := range get("token_type").Int64s() {
		m.Types = append(m.Types, int32(kind))
	}
	return m
}

func TestGoldenTokens(t *testing.T) {
	tok := smolLM2(t)
	readLines(t, filepath.Join(*golden, "smol-tokens.jsonl.gz"), func(line int, x *oracleLine) {
		if got := tok.Encode(*x.Text, false); !slices.Equal(got, x.IDs) {
			t.Errorf("line %d: Encode(%q): want -, got +\n%s", line, *x.Text, cmp.Diff(x.IDs, got))
		}
		if got := tok.Decode(x.IDs, false); got != x.Decoded {
			t.Errorf("line %d: Decode:\ngot  %q\nwant %q", line, got, x.Decoded)
		}
	})
}

// TestSmolLM2Ends holds the ids that its model card and config.json give.
func TestSmolLM2Ends(t *testing.T) {
	tok := smolLM2(t)
	if got := tok.EOS(); !slices.Equal(got, []int32{2, 0}) {
		t.Errorf("EOS: got %v, want <|im_end|> 2, then <|endoftext|> 0", got)
	}
	if got := tok.BOS(); got != 1 {
		t.Errorf("BOS: got %d, want <|im_start|> 1", got)
	}
	if got := tok.VocabSize(); got != 49152 {
		t.Errorf("VocabSize: got %d, want 49152", got)
	}
}
