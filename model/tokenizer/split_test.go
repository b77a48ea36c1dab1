package tokenizer

import (
	"strings"
	"testing"
)

func TestSplitSteps(t *testing.T) {
	split := func(behavior string, invert bool) splitter {
		dash, err := literalPattern("-")
		if err != nil {
			t.Fatal(err)
		}
		return splitOn(dash, invert, behaviors[behavior])
	}
	const text = "the-final--countdown"
	for _, c := range []struct {
		name       string
		step       splitter
		text, want string
	}{
		{"Isolated", split("Isolated", false), text, "the|-|final|-|-|countdown"},
		{"Removed", split("Removed", false), text, "the|final|countdown"},
		{"Contiguous", split("Contiguous", false), text, "the|-|final|--|countdown"},
		{"MergedWithPrevious", split("MergedWithPrevious", false), text, "the-|final-|-|countdown"},
		{"MergedWithNext", split("MergedWithNext", false), text, "the|-final|-|-countdown"},
		{"MergedWithNext at the end", split("MergedWithNext", false), "a-", "a|-"},
		{"MergedWithPrevious at the start", split("MergedWithPrevious", false), "-a", "-|a"},
		{"Removed, inverted", split("Removed", true), text, "-|-|-"},
		{"Digits together", splitDigits(false), "a12b³4", "a|12|b|³4"},
		{"Digits alone", splitDigits(true), "a12b³4", "a|1|2|b|³|4"},
		{"Digits of Unicode 16 and 17", splitDigits(true), "a\U00010d40\U00011de0", "a|\U00010d40|\U00011de0"},
		{"prefix", prefixSpace, "a", " a"},
		{"prefix there", prefixSpace, " a", " a"},
		{"prefix before a line break", prefixSpace, "\na", " \na"},
	} {
		p := preTokenizer{steps: []splitter{c.step}}
		if got := strings.Join(p.split(c.text), "|"); got != c.want {
			t.Errorf("%s of %q: got %q, want %q", c.name, c.text, got, c.want)
		}
	}
}
