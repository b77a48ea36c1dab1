package tokenizer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// A normalizer rewrites valid UTF-8 before it is cut into words.
type normalizer func(string) string

type normalizerJSON struct {
	Type        string
	Normalizers []rawMessage

	// Prepend
	Prepend string

	// Replace
	Pattern *patternJSON
	Content string
}

// parseNormalizer reads one component of tokenizer.json, which may be null.
func parseNormalizer(raw rawMessage, at string) (normalizer, error) {
	if raw.isNull() {
		return func(s string) string { return s }, nil
	}
	var c normalizerJSON
	if err := raw.decode(at, &c); err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		return parseNormalizers(c.Normalizers, at)
	case "NFC":
		return nfc, nil
	case "NFKC":
		return nfkc, nil
	case "Prepend":
		return prepend(c.Prepend), nil
	case "Replace":
		p, err := c.Pattern.compile()
		if err != nil {
			return nil, fmt.Errorf("%s.pattern: %w", at, err)
		}
		return p.replace(c.Content), nil
	}
	return nil, unsupported(at, c.Type, "Sequence, NFC, NFKC, Prepend, Replace")
}

func parseNormalizers(raws []rawMessage, at string) (normalizer, error) {
	var steps []normalizer
	for i, raw := range raws {
		step, err := parseNormalizer(raw, fmt.Sprintf("%s.normalizers[%d]", at, i))
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	return func(s string) string {
		for _, step := range steps {
			s = step(s)
		}
		return s
	}, nil
}

func prepend(prefix string) normalizer {
	return func(s string) string {
		if s == "" {
			return s
		}
		return prefix + s
	}
}

// replace puts content, as it is, in the place of every find.
func (p *pattern) replace(content string) normalizer {
	return func(s string) string {
		var b strings.Builder
		for _, f := range p.spans(s) {
			if f.match {
				b.WriteString(content)
			} else {
				b.WriteString(s[f.start:f.end])
			}
		}
		return b.String()
	}
}

// nfc and nfkc are Unicode's normalization forms C and KC. Unlike
// norm.Form.String they do not put a joiner into runs of more than 30
// combining marks (Unicode's stream-safe format), which would change ids.
//
// Caveat: the tables are Go's. The ones inside Hugging Face tokenizers are
// older: NFKC there leaves some 130 compatibility characters that were encoded
// after 2016 as they are, and NFC keeps U+11935 U+11930 apart.
func nfc(s string) string  { return compose(s, norm.NFC, norm.NFD) }
func nfkc(s string) string { return compose(s, norm.NFKC, norm.NFKD) }

func compose(s string, composed, decomposed norm.Form) string {
	if composed.QuickSpanString(s) == len(s) {
		return s
	}
	var runes []rune
	for _, r := range s {
		runes = append(runes, []rune(decomposed.String(string(r)))...)
	}
	classes := make([]uint8, len(runes))
	for i, r := range runes {
		classes[i] = norm.NFD.PropertiesString(string(r)).CCC()
	}
	sortMarks(runes, classes)
	return composeRunes(runes, classes)
}

// sortMarks orders each run of combining marks by class (Unicode, D109).
func sortMarks(runes []rune, classes []uint8) {
	type mark struct {
		r     rune
		class uint8
	}
	for start := 0; start < len(runes); start++ {
		if classes[start] == 0 {
			continue
		}
		end := start
		var run []mark
		for ; end < len(runes) && classes[end] != 0; end++ {
			run = append(run, mark{runes[end], classes[end]})
		}
		slices.SortStableFunc(run, func(a, b mark) int { return int(a.class) - int(b.class) })
		for i, m := range run {
			runes[start+i], classes[start+i] = m.r, m.class
		}
		start = end - 1
	}
}

// composeRunes joins each starter with the marks and starters after it that
// nothing blocks (Unicode, D117).
func composeRunes(runes []rune, classes []uint8) string {
	out := runes[:0]
	starter := -1 // of out
	var last uint8
	for i, r := range runes {
		class := classes[i]
		adjacent := starter == len(out)-1
		if starter >= 0 && (adjacent || last != 0 && last < class) {
			if c, ok := composePair(out[starter], r); ok {
				out[starter] = c
				continue
			}
		}
		if class == 0 {
			starter = len(out)
		}
		last = class
		out = append(out, r)
	}
	return string(out)
}

// composePair asks the tables whether two characters have a composition.
func composePair(a, b rune) (rune, bool) {
	pair := []rune(norm.NFC.String(string([]rune{a, b})))
	if len(pair) != 1 {
		return 0, false
	}
	return pair[0], true
}
