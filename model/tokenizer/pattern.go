package tokenizer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2/v2"
)

// A pattern is a regular expression of a tokenizer file. Such expressions are
// written for Oniguruma, which Hugging Face tokenizers use; regexp2 speaks
// .NET's dialect. compilePattern accepts only the syntax that means the same
// in both and rewrites what their Unicode tables see differently, so a
// pattern either splits as its author saw it split or is refused.
type pattern struct {
	re *regexp2.Regexp
}

// A span is a part of a text in bytes. match says whether the pattern found
// it, or it lies between two finds.
type span struct {
	start, end int
	match      bool
}

const (
	maxPattern      = 1 << 14 // bytes
	maxPatternDepth = 50      // nested groups
	maxRepeat       = 1000    // in {n,m}
)

// compilePattern checks, rewrites and compiles an Oniguruma expression.
//
// Matching is by backtracking without a limit, because Encode has no error
// to return: an expression built to be slow is slow.
func compilePattern(expr string) (*pattern, error) {
	if len(expr) > maxPattern {
		return nil, fmt.Errorf("regular expression of %d bytes, at most %d are supported", len(expr), maxPattern)
	}
	p := patternParser{src: []rune(expr)}
	empty, err := p.alternatives(0)
	if err == nil && p.pos < len(p.src) {
		err = errors.New("unmatched )")
	}
	if err != nil {
		return nil, fmt.Errorf("regular expression %q, character %d: %w", expr, p.pos+1, err)
	}
	if empty {
		return nil, fmt.Errorf("regular expression %q matches the empty text, which is not supported", expr)
	}
	re, err := regexp2.Compile(p.out.String(), regexp2.OptionMaxBacktrackingStackSize(-1))
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", expr, err)
	}
	return &pattern{re: re}, nil
}

// literalPattern matches s itself.
func literalPattern(s string) (*pattern, error) {
	if s == "" {
		return nil, errors.New("empty pattern")
	}
	re, err := regexp2.Compile(regexp2.Escape(s))
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", s, err)
	}
	return &pattern{re: re}, nil
}

// spans covers text, which must be valid UTF-8, from end to end.
func (p *pattern) spans(text string) []span {
	runes := []rune(text)
	spans := make([]span, 0, len(runes)/2+1)
	runePos, bytePos, last := 0, 0, 0
	advance := func(to int) int {
		if len(runes) == len(text) {
			return to
		}
		for ; runePos < to; runePos++ {
			bytePos += utf8.RuneLen(runes[runePos])
		}
		return bytePos
	}
	err := p.re.FindRunesMatches(runes, 0, func(m regexp2.MatchView) bool {
		at, n, _ := m.GroupRange(0)
		start := advance(at)
		end := advance(at + n)
		if start > last {
			spans = append(spans, span{last, start, false})
		}
		spans = append(spans, span{start, end, true})
		last = end
		return true
	})
	if err != nil {
		panic("tokenizer: matching without limits failed: " + err.Error())
	}
	if last < len(text) {
		spans = append(spans, span{last, len(text), false})
	}
	return spans
}

// patternParser walks an expression and writes what regexp2 is to compile.
// Its methods report whether what they read can match the empty text.
type patternParser struct {
	src []rune
	pos int
	out strings.Builder
	// fold is set inside (?i:…).
	fold bool
}

func (p *patternParser) peek() rune {
	if p.pos < len(p.src) {
		return p.src[p.pos]
	}
	return -1
}

func (p *patternParser) accept(s string) bool {
	if strings.HasPrefix(string(p.src[p.pos:min(len(p.src), p.pos+len(s))]), s) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *patternParser) alternatives(depth int) (empty bool, err error) {
	if depth > maxPatternDepth {
		return false, fmt.Errorf("more than %d nested groups", maxPatternDepth)
	}
	for {
		all := true
		for p.pos < len(p.src) && p.peek() != '|' && p.peek() != ')' {
			one, err := p.term(depth)
			if err != nil {
				return false, err
			}
			all = all && one
		}
		empty = empty || all
		if p.peek() != '|' {
			return empty, nil
		}
		p.out.WriteByte('|')
		p.pos++
	}
}

// term reads one atom and its quantifier.
func (p *patternParser) term(depth int) (empty bool, err error) {
	lookahead := false
	switch c := p.peek(); c {
	case '(':
		empty, lookahead, err = p.group(depth)
	case '[':
		err = p.class()
	case '\\':
		err = p.escape()
	case '.':
		p.pos++
		p.out.WriteByte('.')
	case '^', '$', '*', '+', '?', '{', '}', ']':
		return false, fmt.Errorf("%q is not supported here", c)
	default:
		err = p.literal(c)
	}
	if err != nil {
		return false, err
	}
	return p.quantifier(empty, lookahead)
}

func (p *patternParser) group(depth int) (empty, lookahead bool, err error) {
	fold := p.fold
	switch {
	case p.accept("(?i:"):
		p.fold = true
		p.out.WriteString("(?:")
	case p.accept("(?="):
		lookahead = true
		p.out.WriteString("(?=")
	case p.accept("(?!"):
		lookahead = true
		p.out.WriteString("(?!")
	case p.accept("(?:"):
		p.out.WriteString("(?:")
	case p.accept("(?"):
		return false, false, errors.New("only the groups (…), (?:…), (?i:…), (?=…) and (?!…) are supported")
	default:
		p.pos++
		p.out.WriteString("(?:")
	}
	empty, err = p.alternatives(depth + 1)
	if err != nil {
		return false, false, err
	}
	if !p.accept(")") {
		return false, false, errors.New("missing )")
	}
	p.fold = fold
	p.out.WriteByte(')')
	return empty || lookahead, lookahead, nil
}

// quantifier reads *, +, ?, {n}, {n,}, {n,m} and a ? after them. Oniguruma's
// possessive forms, {,m} and {n}? mean something else in .NET.
func (p *patternParser) quantifier(empty, lookahead bool) (bool, error) {
	start := p.pos
	exact := false
	switch p.peek() {
	case '*', '?':
		p.pos++
		empty = true
	case '+':
		p.pos++
	case '{':
		least, most, err := p.repeat()
		if err != nil {
			return false, err
		}
		exact = least == most
		empty = empty || least == 0
	default:
		return empty, nil
	}
	if lookahead {
		return false, errors.New("a repeated look-ahead is not supported")
	}
	if p.peek() == '?' && !exact {
		p.pos++
	}
	switch p.peek() {
	case '*', '+', '?', '{':
		return false, errors.New("a quantifier after a quantifier is not supported")
	}
	p.out.WriteString(string(p.src[start:p.pos]))
	return empty, nil
}

func (p *patternParser) repeat() (least, most int, err error) {
	bad := errors.New("only {n}, {n,} and {n,m} are supported")
	rest := string(p.src[p.pos:min(len(p.src), p.pos+12)])
	end := strings.IndexByte(rest, '}')
	if end < 0 {
		return 0, 0, bad
	}
	low, high, open := strings.Cut(rest[1:end], ",")
	if least, err = strconv.Atoi(low); err != nil || least < 0 || least > maxRepeat {
		return 0, 0, bad
	}
	most = least
	if open {
		most = maxRepeat + 1
		if high != "" {
			if most, err = strconv.Atoi(high); err != nil || most < least || most > maxRepeat {
				return 0, 0, bad
			}
		}
	}
	p.pos += utf8.RuneCountInString(rest[:end+1])
	return least, most, nil
}

// literal writes c so that it stands for itself. Inside (?i:…) it becomes the
// class of all its cases ('s' also matches U+017F), which needs no opinion
// of regexp2 on folding.
func (p *patternParser) literal(c rune) error {
	if p.fold && p.pos > 0 && foldsTogether(p.src[p.pos-1], c) {
		return fmt.Errorf("%q after %q inside (?i:…) is not supported: together they fold to one letter", c, p.src[p.pos-1])
	}
	if p.fold && c > unicode.MaxASCII {
		return fmt.Errorf("%q inside (?i:…) is not supported, only ASCII is", c)
	}
	p.pos++
	if !p.fold || !unicode.IsLetter(c) {
		p.out.WriteString(quoteRune(c))
		return nil
	}
	p.out.WriteByte('[')
	p.out.WriteRune(c)
	for o := unicode.SimpleFold(c); o != c; o = unicode.SimpleFold(o) {
		p.out.WriteRune(o)
	}
	p.out.WriteByte(']')
	return nil
}

// foldsTogether says whether Oniguruma, ignoring case, would also match one
// letter for the two (ß for ss, the ligatures for ff, fi, fl and st).
func foldsTogether(a, b rune) bool {
	switch string(unicode.ToLower(a)) + string(unicode.ToLower(b)) {
	case "ss", "ff", "fi", "fl", "st":
		return true
	}
	return false
}

// quoteRune makes c stand for itself inside and outside a class.
func quoteRune(c rune) string {
	if c < utf8.RuneSelf && (unicode.IsPunct(c) || unicode.IsSymbol(c)) {
		return `\` + string(c)
	}
	return string(c)
}
