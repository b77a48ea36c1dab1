package tokenizer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// newer holds, by general category, the characters that Unicode 15.1 and 16.0
// encoded: the Oniguruma inside tokenizers 0.23 knows them, Go's Unicode 15.0
// tables do not yet. The entry of a one-letter category is the union of its
// parts. Harmless once Go knows them too.
var newer = map[string]string{
	"Lu": "1C89 A7CB-A7CC A7DA A7DC 10D50-10D65",
	"Ll": "1C8A A7CD A7DB 10D70-10D85",
	"Lt": "",
	"Lm": "10D4E 10D6F 16D40-16D42 16D6B-16D6C",
	"Lo": "105C0-105F3 10D4A-10D4D 10D4F 10EC2-10EC4 11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 " +
		"11BC0-11BE0 13460-143FA 16100-1611D 16D43-16D6A 18CFF 1E5D0-1E5ED 1E5F0 2EBF0-2EE5D",
	"M": "897 10D69-10D6D 10EFC 113B8-113C0 113C2 113C5 113C7-113CA 113CC-113D0 113D2 113E1-113E2 11F5A " +
		"1611E-1612F 1E5EE-1E5EF",
	"Nd": "10D40-10D49 116D0-116E3 11BF0-11BF9 16130-16139 16D70-16D79 1CCF0-1CCF9 1E5F1-1E5FA",
	"Nl": "",
	"No": "",
	"P":  "1B4E-1B4F 1B7F 10D6E 113D4-113D5 113D7-113D8 11BE1 16D6D-16D6F 1E5FF",
	"S": "2427-2429 2FFC-2FFF 31E4-31E5 31EF 10D8E-10D8F 1CC00-1CCEF 1CD00-1CEB3 1F8B2-1F8BB 1F8C0-1F8C1 1FA89 " +
		"1FA8F 1FABE 1FAC6 1FADC 1FADF 1FAE9 1FBCB-1FBEF",
}

// newestDigits are the numbers of Unicode 17, which the Digits step of
// tokenizers 0.23 knows and its Oniguruma does not.
const newestDigits = "11DE0-11DE9 16FF4-16FF6"

// category writes the members of a general category for use inside a class.
func category(name string) (class string, ok bool) {
	var b strings.Builder
	b.WriteString(`\p{` + name + `}`)
	for key, ranges := range newer {
		if key == name || len(name) == 1 && key[:1] == name {
			ok = true
			for _, r := range parseRanges(ranges) {
				b.WriteString(string(rune(r.Lo)) + "-" + string(rune(r.Hi)))
			}
		}
	}
	return b.String(), ok
}

func parseRanges(s string) []unicode.Range32 {
	var out []unicode.Range32
	for _, f := range strings.Fields(s) {
		low, high, both := strings.Cut(f, "-")
		if !both {
			high = low
		}
		lo, _ := strconv.ParseUint(low, 16, 32)
		hi, _ := strconv.ParseUint(high, 16, 32)
		out = append(out, unicode.Range32{Lo: uint32(lo), Hi: uint32(hi), Stride: 1})
	}
	return out
}

// newDigits are the numbers that unicode.IsNumber may not know.
var newDigits = &unicode.RangeTable{R32: append(parseRanges(newer["Nd"]), parseRanges(newestDigits)...)}

// isNumeric follows Rust's char::is_numeric (categories Nd, Nl and No).
func isNumeric(r rune) bool {
	return unicode.IsNumber(r) || r > unicode.MaxLatin1 && unicode.Is(newDigits, r)
}

// escape reads an escape outside a class.
func (p *patternParser) escape() error {
	members, negated, single, err := p.escaped()
	switch {
	case err != nil:
		return err
	case p.fold:
		return errors.New("an escape inside (?i:…) is not supported")
	case single >= 0:
		p.out.WriteString(quoteRune(single))
	case negated:
		p.out.WriteString("[^" + members + "]")
	default:
		p.out.WriteString("[" + members + "]")
	}
	return nil
}

// escaped reads an escape: one character, or the members of a class that may
// be negated (then single is negative).
func (p *patternParser) escaped() (members string, negated bool, single rune, err error) {
	p.pos++
	c := p.peek()
	p.pos++
	switch {
	case c == 'r':
		return "", false, '\r', nil
	case c == 'n':
		return "", false, '\n', nil
	case c == 't':
		return "", false, '\t', nil
	case c == 's', c == 'S':
		return `\s`, c == 'S', -1, nil
	case c == 'd', c == 'D':
		members, _ = category("Nd")
		return members, c == 'D', -1, nil
	case c == 'p', c == 'P':
		members, err = p.property()
		return members, c == 'P', -1, err
	case c == ' ', c > ' ' && c < utf8.RuneSelf && (unicode.IsPunct(c) || unicode.IsSymbol(c)) && !strings.ContainsRune("<>`'", c):
		return "", false, c, nil
	case c < 0:
		return "", false, -1, errors.New(`\ at the end`)
	}
	p.pos -= 2
	return "", false, -1, fmt.Errorf(`\%c is not supported`, c)
}

func (p *patternParser) property() (string, error) {
	rest := string(p.src[p.pos:min(len(p.src), p.pos+40)])
	end := strings.IndexByte(rest, '}')
	if end < 1 || rest[0] != '{' {
		return "", errors.New(`\p without {…}`)
	}
	name := rest[1:end]
	members, ok := category(name)
	if !ok {
		return "", fmt.Errorf(`\p{%s} is not supported, only L, Lu, Ll, Lt, Lm, Lo, M, N, Nd, Nl, No, P and S are`, name)
	}
	p.pos += utf8.RuneCountInString(rest[:end+1])
	return members, nil
}

// class reads […]. Nested classes, intersections and POSIX names, which
// Oniguruma has, and subtraction, which .NET has, are refused.
func (p *patternParser) class() error {
	if p.fold {
		return errors.New("a class inside (?i:…) is not supported")
	}
	p.pos++
	p.out.WriteByte('[')
	if p.accept("^") {
		p.out.WriteByte('^')
	}
	for first := true; ; first = false {
		switch c := p.peek(); {
		case c < 0:
			return errors.New("missing ]")
		case c == ']' && first:
			return errors.New("an empty class is not supported")
		case c == ']':
			p.pos++
			p.out.WriteByte(']')
			return nil
		case c == '[', p.accept("&&"):
			return errors.New("a class inside a class is not supported")
		}
		if err := p.classItem(first); err != nil {
			return err
		}
	}
}

func (p *patternParser) classItem(first bool) error {
	low, err := p.classRune()
	if err != nil || low < 0 {
		return err
	}
	last := p.pos+1 < len(p.src) && p.src[p.pos] == '-' && p.src[p.pos+1] == ']'
	if p.peek() != '-' || last {
		if low == '-' && !first && p.peek() != ']' && p.src[p.pos-2] != '\\' {
			return errors.New("a - inside a class must be first, last or escaped")
		}
		p.out.WriteString(quoteRune(low))
		return nil
	}
	p.pos++
	high, err := p.classRune()
	if err != nil {
		return err
	}
	if high < low {
		return errors.New("a range that ends before it starts")
	}
	p.out.WriteString(quoteRune(low) + "-" + quoteRune(high))
	return nil
}

// classRune reads one character of a class; it writes a set such as \s at
// once and returns -1.
func (p *patternParser) classRune() (rune, error) {
	switch c := p.peek(); c {
	case -1:
		return -1, errors.New("missing ]")
	case '[':
		return -1, errors.New("a class inside a class is not supported")
	case '\\':
		members, negated, single, err := p.escaped()
		if err != nil || single >= 0 {
			return single, err
		}
		if negated && members != `\s` {
			return -1, errors.New("a negated set inside a class is not supported")
		}
		if negated {
			members = `\S`
		}
		p.out.WriteString(members)
		return -1, nil
	default:
		p.pos++
		return c, nil
	}
}
