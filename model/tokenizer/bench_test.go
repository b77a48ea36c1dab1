package tokenizer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// prose is about 1 MB of English with names, numbers and line breaks.
func prose() string {
	var b strings.Builder
	for i := 0; b.Len() < 1<<20; i++ {
		b.WriteString("In 1984, the researcher's team wasn't sure how sunlight—or its absence—changes a leaf.\n")
		b.WriteString(strings.Repeat(string(rune('a'+i%26)), 3) + " photosynthesis: 6CO2 + 6H2O, 12.5% of it; they've asked.\n\n")
	}
	return b.String()
}

func BenchmarkEncode(b *testing.B) {
	tok := smolLM2(b)
	text := prose()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(text, true)
	}
}

func BenchmarkEncodeOneWord(b *testing.B) {
	tok := smolLM2(b)
	text := strings.Repeat("a", 1<<20)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(text, true)
	}
}

func BenchmarkDecode(b *testing.B) {
	tok := smolLM2(b)
	ids := tok.Encode(prose(), true)
	b.SetBytes(int64(len(ids)))
	for b.Loop() {
		tok.Decode(ids, true)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := os.Getenv("LORA_TOKENIZERS")
	if dir == "" {
		b.Skip("set LORA_TOKENIZERS as for TestOracle")
	}
	for b.Loop() {
		if _, err := Open(filepath.Join(dir, "llama3.json")); err != nil {
			b.Fatal(err)
		}
	}
}
