package tokenizer

import (
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// TestNormalizationForms compares with x/text where that does what Unicode
// says: on runs of fewer than 30 marks.
func TestNormalizationForms(t *testing.T) {
	runes := []rune("aeéÅſß½ﬁ가각각\u0301\u0316\u0327\u0345\u0344\u0958\u09c7\u09be\u0f73\u212b\ufdfa\U0001d15e\u1e9b\u0323\u0307")
	rapid.Check(t, func(r *rapid.T) {
		s := string(rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom(runes), rapid.Rune()), 0, 12).Draw(r, "text"))
		if got, want := nfc(s), norm.NFC.String(s); got != want {
			r.Fatalf("NFC of %+q: got %+q, want %+q", s, got, want)
		}
		if got, want := nfkc(s), norm.NFKC.String(s); got != want {
			r.Fatalf("NFKC of %+q: got %+q, want %+q", s, got, want)
		}
	})
}

// TestManyMarks has a run of marks into which x/text would put U+034F.
func TestManyMarks(t *testing.T) {
	got := nfc("e" + strings.Repeat("\u0301\u0316", 40))
	want := "\u00e9" + strings.Repeat("\u0316", 40) + strings.Repeat("\u0301", 39)
	if got != want {
		t.Errorf("got  %+q\nwant %+q", got, want)
	}
}
