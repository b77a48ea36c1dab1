package tokenizer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// small opens testdata/small.json, a byte-level tokenizer made by hand: 256
// bytes, twelve merges, added tokens of each kind.
func small(t testing.TB) *Tokenizer {
	tok, err := Open("testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// spell writes ids as tokens with bars between them.
func spell(tok *Tokenizer, ids []int32) string {
	var out []string
	for _, id := range ids {
		out = append(out, tok.Token(id))
	}
	return strings.Join(out, "|")
}

func TestEncode(t *testing.T) {
	tok := small(t)
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", ""},
		{"merges across the word", "hello world", "hello|Ġworld"},
		{"lowest rank first, leftmost of those", "aaaaaaaaa", "aaaaaaaa|a"},
		{"each digit alone", "12 3", "1|2|Ġ|3"},
		{"special tokens in the text", "<s>hello</s>", "<s>|hello|</s>"},
		{"lstrip takes the spaces before", "x <l> y", "x|<l>|Ġ|y"},
		{"rstrip takes the spaces after", "x <r>\t\u00a0y", "x|Ġ|<r>|y"},
		{"both", "a \n<lr> \u3000b", "a|<lr>|b"},
		{"the longest", "<l><l><l>", "<l><l>|<l>"},
		{"spaces taken once", " <l><r> <l>", "<l>|<r>|<l>"},
		{"single_word at the ends", "cat", "cat"},
		{"single_word inside words", "cats 猫cat _cat cat\u0301", "c|a|t|s|Ġ|ç|Į|«|c|a|t|Ġ|_|c|a|t|Ġ|c|a|t|Ì|ģ"},
		{"single_word between marks", "-cat- cat.", "-|cat|-|Ġ|cat|."},
		{"normalized on both sides", "\u00e9! e\u0301!", "e\u0301!|Ġ|e\u0301!"},
		{"invalid UTF-8 is one U+FFFD for each broken part", "h\xff\xe2\x82h", "h|ï|¿|½|ï|¿|½|h"},
		{"incomplete at the end", "\xf0\x9f\x98", "ï|¿|½"},
		{"a NUL", "\x00", "Ā"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := spell(tok, tok.Encode(c.text, false)); got != c.want {
				t.Errorf("Encode(%q):\ngot  %s\nwant %s", c.text, got, c.want)
			}
		})
	}
	if got := spell(tok, tok.Encode("hello", true)); got != "<s>|hello" {
		t.Errorf("Encode with special tokens: got %s, want <s>|hello", got)
	}
	if got := spell(tok, tok.Encode("", true)); got != "<s>" {
		t.Errorf("Encode of nothing with special tokens: got %s, want <s>", got)
	}
}

func TestDecode(t *testing.T) {
	tok := small(t)
	id := func(token string) int32 {
		id, ok := tok.ID(token)
		if !ok {
			t.Fatalf("no token %q", token)
		}
		return id
	}
	smile := []int32{id("ð"), id("Ł"), id("ĺ"), id("Ģ")} // U+1F600
	for _, c := range []struct {
		name string
		ids  []int32
		skip bool
		want string
	}{
		{"none", nil, false, ""},
		{"as normalized, then by the byte alphabet", []int32{id("e\u0301!")}, false, "\ufffd!"},
		{"special kept", []int32{id("<s>"), id("hello"), id("</s>")}, false, "<s>hello</s>"},
		{"special skipped", []int32{id("<s>"), id("hello"), id("</s>")}, true, "hello"},
		{"added but not special", []int32{id("<l>"), id("cat")}, true, "<l>cat"},
		{"no such ids", []int32{-1, id("hello"), 1 << 30, int32(tok.VocabSize())}, false, "hello"},
		{"four bytes", smile, false, "\U0001f600"},
		{"three of four", smile[:3], false, "\ufffd"},
		{"three of four, then text", append(slices.Clone(smile[:3]), id("hello")), false, "\ufffdhello"},
		{"four without the first", smile[1:], false, "\ufffd\ufffd\ufffd"},
		{"overlong", []int32{id("à"), id("Ģ"), id("Ģ")}, false, "\ufffd\ufffd\ufffd"},
		{"cut by a skipped token", []int32{smile[0], smile[1], id("<s>"), smile[2], smile[3]}, true, "\U0001f600"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := tok.Decode(c.ids, c.skip); got != c.want {
				t.Errorf("Decode(%v, %v): got %q, want %q", c.ids, c.skip, got, c.want)
			}
		})
	}
}

func TestTokensAndIDs(t *testing.T) {
	tok := small(t)
	if got, want := tok.VocabSize(), 276; got != want {
		t.Fatalf("VocabSize: got %d, want %d", got, want)
	}
	for id := range int32(tok.VocabSize()) {
		if back, ok := tok.ID(tok.Token(id)); !ok || back != id {
			t.Errorf("ID(Token(%d) = %q): got %d, %v", id, tok.Token(id), back, ok)
		}
	}
	if _, ok := tok.ID("no such token"); ok || tok.Token(-1) != "" || tok.Token(276) != "" {
		t.Error("a token was found that does not exist")
	}
	if got := tok.BOS(); got != 0 {
		t.Errorf("BOS: got %d, want 0, from the template", got)
	}
	if got := tok.EOS(); !slices.Equal(got, []int32{1}) {
		t.Errorf("EOS: got %v, want </s> 1, by its name", got)
	}
}

// withDecoder is small with another decoder.
func withDecoder(t *testing.T, decoder string) *Tokenizer {
	text, err := os.ReadFile("testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	old := `"decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}`
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s is not in small.json", old)
	}
	tok, err := Parse("x.json", []byte(strings.Replace(string(text), old, `"decoder": `+decoder, 1)))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// fallback is the decoder of Llama 2 with the letters of small.json.
const fallback = `{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "Ġ"}, "content": "hh"},
	{"type": "Strip", "content": "l", "start": 1, "stop": 1}, {"type": "Replace", "pattern": {"Regex": "[a-c]"}, "content": "<0xE2>"},
	{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": "h", "start": 3, "stop": 0}]}`

func TestDecoders(t *testing.T) {
	tok := withDecoder(t, fallback)
	for _, c := range []struct {
		tokens []string
		want   string
	}{
		{[]string{"Ġ", "Ġ", "hello"}, "hhello"},
		{[]string{"h", "hello"}, "ello"},
		{[]string{"Ġ", "e", "hello"}, "ehello"},
		{[]string{"e", "ll", "l", "e"}, "ee"},
		{[]string{"e", "a", "e"}, "e\ufffde"},
		{[]string{"e", "a", "a"}, "e\ufffd\ufffd"},
		{[]string{"a"}, "\ufffd"},
	} {
		var ids []int32
		for _, token := range c.tokens {
			id, ok := tok.ID(token)
			if !ok {
				t.Fatalf("no token %q", token)
			}
			ids = append(ids, id)
		}
		if got := tok.Decode(ids, false); got != c.want {
			t.Errorf("%q: got %q, want %q", c.tokens, got, c.want)
		}
	}
}

// TestStream holds that a Stream says what Decode says, text after text, and
// that every piece is valid UTF-8.
func TestStream(t *testing.T) {
	for _, decoder := range []string{`{"type": "ByteLevel"}`, "null", fallback} {
		tok := withDecoder(t, decoder)
		rapid.Check(t, func(r *rapid.T) {
			ids := rapid.SliceOf(rapid.Int32Range(-1, int32(tok.VocabSize()))).Draw(r, "ids")
			if rapid.Bool().Draw(r, "from text") {
				ids = tok.Encode(rapid.String().Draw(r, "text"), true)
				ids = ids[rapid.IntRange(0, len(ids)).Draw(r, "cut"):]
			}
			skip := rapid.Bool().Draw(r, "skip special")
			s := tok.Stream(skip)
			for range 2 {
				var got strings.Builder
				for i, id := range ids {
					piece := s.Write(id)
					if !utf8.ValidString(piece) {
						r.Fatalf("%s: Write of id %d (number %d) returned %q", decoder, id, i, piece)
					}
					got.WriteString(piece)
				}
				got.WriteString(s.Flush())
				if want := tok.Decode(ids, skip); got.String() != want {
					r.Fatalf("%s: ids %v:\ngot  %q\nwant %q", decoder, ids, got.String(), want)
				}
			}
		})
	}
}

// TestStreamHoldsBackNoMoreThanACharacter compares with Decode of what came
// so far wherever that ends in a complete character.
func TestStreamHoldsBackNoMoreThanACharacter(t *testing.T) {
	tok := small(t)
	rapid.Check(t, func(r *rapid.T) {
		ids := tok.Encode(rapid.String().Draw(r, "text"), true)
		s := tok.Stream(false)
		var got strings.Builder
		for i, id := range ids {
			got.WriteString(s.Write(id))
			if want := tok.Decode(ids[:i+1], false); !strings.HasSuffix(want, "\ufffd") && got.String() != want {
				r.Fatalf("after %d ids of %v: got %q, want %q", i+1, ids, got.String(), want)
			}
		}
	})
}

// TestRoundTrip holds that bytes come back, invalid UTF-8 as U+FFFD, from text
// in which no added token takes spaces along and NFC changes nothing.
func TestRoundTrip(t *testing.T) {
	tok := small(t)
	rapid.Check(t, func(r *rapid.T) {
		text := string(rapid.SliceOf(rapid.Byte()).Draw(r, "bytes"))
		want := string([]byte(validText(text)))
		if strings.ContainsAny(text, "<") || nfc(want) != want {
			return
		}
		if got := tok.Decode(tok.Encode(text, false), false); got != want {
			r.Fatalf("Encode and Decode of %q: got %q, want %q", text, got, want)
		}
	})
}

// naive merges as the definition says: again and again the leftmost pair of
// lowest rank.
func naive(m *bpe, word string) []int32 {
	var ids []int32
	for _, r := range toByteAlphabet(word) {
		ids = append(ids, m.vocab[string(r)])
	}
	for {
		best, at := merge{rank: 1 << 30}, -1
		for i := 0; i+1 < len(ids); i++ {
			if to, ok := m.merges[[2]int32{ids[i], ids[i+1]}]; ok && to.rank < best.rank {
				best, at = to, i
			}
		}
		if at < 0 {
			return ids
		}
		ids = slices.Replace(ids, at, at+2, best.id)
	}
}

func TestMergesMatchDefinition(t *testing.T) {
	tok := small(t)
	letters := []rune("aaaahelo wrd")
	rapid.Check(t, func(r *rapid.T) {
		word := string(rapid.SliceOfN(rapid.SampledFrom(letters), 1, 80).Draw(r, "letters"))
		for range 2 { // the second time from the cache
			if got, want := tok.model.encode(word, nil), naive(tok.model, word); !slices.Equal(got, want) {
				r.Fatalf("%q: got %s, want %s", word, spell(tok, got), spell(tok, want))
			}
		}
	})
}

// TestHugeWord would take hours if merging were quadratic.
func TestHugeWord(t *testing.T) {
	tok := small(t)
	ids := tok.Encode(strings.Repeat("a", 1<<20), false)
	eight, _ := tok.ID("aaaaaaaa")
	if len(ids) != 1<<17 {
		t.Fatalf("got %d ids, want %d", len(ids), 1<<17)
	}
	for i, id := range ids {
		if id != eight {
			t.Fatalf("id %d is %q, want aaaaaaaa", i, tok.Token(id))
		}
	}
}

// TestConcurrent is for the race detector, and holds that a cache that
// overflows changes nothing.
func TestConcurrent(t *testing.T) {
	tok := small(t)
	want := tok.Encode("hello world", false)
	var wait sync.WaitGroup
	for g := range 4 {
		wait.Go(func() {
			for i := range maxCached / 2 {
				tok.Encode(fmt.Sprintf("x%cy%cz%c", 'a'+i%26, 'a'+i/26%26, rune(0x4e00+i/676*4+g)), false)
			}
			if got := tok.Encode("hello world", false); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	wait.Wait()
	if n := len(tok.model.cache.ids); n > maxCached {
		t.Errorf("the cache holds %d words, more than %d", n, maxCached)
	}
}
