package tokenizer

import (
	"slices"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

func TestPatternRefuses(t *testing.T) {
	for _, c := range []struct{ expr, want string }{
		{`a*`, "matches the empty text"},
		{`a|`, "matches the empty text"},
		{``, "matches the empty text"},
		{`(?=a)`, "matches the empty text"},
		{`a{0,3}`, "matches the empty text"},
		{`(?=a)+b`, "a repeated look-ahead"},
		{`a++`, "character 3: a quantifier after a quantifier"},
		{`a{2}?`, "character 5: a quantifier after"},
		{`a{,3}`, "only {n}, {n,} and {n,m}"},
		{`a{3,2}`, "only {n}"},
		{`a{2,99999999}`, "only {n}"},
		{`a{`, "only {n}"},
		{`^a`, `character 1: '^' is not supported`},
		{`a$`, `character 2: '$' is not supported`},
		{`*a`, `'*' is not supported`},
		{`a)`, "unmatched )"},
		{`(a`, "missing )"},
		{`[a`, "missing ]"},
		{`[]`, "an empty class"},
		{`[a[b]]`, "a class inside a class"},
		{`[[:alpha:]]`, "a class inside a class"},
		{`[a&&b]`, "a class inside a class"},
		{`[a-z-[aeiou]]`, "a - inside a class"},
		{`[a-f-z]`, "a - inside a class"},
		{`[z-a]`, "ends before it starts"},
		{`[\P{L}]`, "a negated set inside a class"},
		{`\b`, `\b is not supported`},
		{`\w`, `\w is not supported`},
		{`\h`, `\h is not supported`},
		{`(a)\1`, `\1 is not supported`},
		{`\`, `\ at the end`},
		{`\p{Greek}`, `\p{Greek} is not supported`},
		{`\pL`, `\p without`},
		{`\p{`, `\p without`},
		{`(?<n>a)`, "only the groups"},
		{`(?<=a)b`, "only the groups"},
		{`(?i)a`, "only the groups"},
		{`(?i:ss)`, "fold to one letter"},
		{`(?i:é)`, "only ASCII"},
		{`(?i:[a-z])`, "a class inside (?i:"},
		{`(?i:\s)`, "an escape inside (?i:"},
		{strings.Repeat("(", 100) + "a" + strings.Repeat(")", 100), "nested groups"},
		{strings.Repeat("a", 1<<15), "32768 bytes"},
	} {
		_, err := compilePattern(c.expr)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: got error %v, want %q", c.expr, err, c.want)
		}
	}
}

func TestPatternSpans(t *testing.T) {
	for _, c := range []struct{ expr, text, want string }{
		{`a`, "bab", "b.(a).b"},
		{`a|b`, "abc", "(a).(b).c"},
		{`(?i:'s|k)`, "'S'ſKk", "('S).('ſ).(K).(k)"},
		{`[\-\]a-c^]+`, "a-]^d", "(a-]^).d"},
		{`[-x]+`, "-x-y", "(-x-).y"},
		{`[x-]+`, "-x-y", "(-x-).y"},
		{`[^\S\n]+`, " \t\n", "( \t).\n"},
		{`\p{N}{1,3}`, "1234", "(123).(4)"},
		{`\P{L}+`, "a12b", "a.(12).b"},
		{`\p{L}+`, "a\u1c89\U0002ebf0.", "(a\u1c89\U0002ebf0).."}, // letters of Unicode 16 and 15.1
		{`x+?y?`, "xxy", "(x).(xy)"},
		{`.`, "a\n\u2028", "(a).\n.(\u2028)"},
		{`\s+(?!\S)|\s+`, "  a", "( ).( ).a"},
	} {
		p, err := compilePattern(c.expr)
		if err != nil {
			t.Errorf("%s: %v", c.expr, err)
			continue
		}
		var got []string
		for _, s := range p.spans(c.text) {
			part := c.text[s.start:s.end]
			if s.match {
				part = "(" + part + ")"
			}
			got = append(got, part)
		}
		if got := strings.Join(got, "."); got != c.want {
			t.Errorf("%s in %q: got %q, want %q", c.expr, c.text, got, c.want)
		}
	}
}

// TestPatternQuotes holds that every ASCII character that the checker lets
// through as a literal matches itself, inside and outside a class.
func TestPatternQuotes(t *testing.T) {
	for c := rune(0); c <= unicode.MaxASCII; c++ {
		for _, expr := range []string{string(c), `\` + string(c), "[" + string(c) + "]", `[\` + string(c) + "]"} {
			p, err := compilePattern(expr)
			if err != nil || strings.ContainsRune("rntsSdDpP.", c) {
				continue
			}
			var other strings.Builder
			for o := rune(0); o <= unicode.MaxASCII; o++ {
				other.WriteRune(o)
			}
			finds := slices.DeleteFunc(p.spans(other.String()), func(s span) bool { return !s.match })
			if want := []span{{int(c), int(c) + 1, true}}; !slices.Equal(finds, want) {
				t.Errorf("%q finds %v in all of ASCII, want %v", expr, finds, want)
			}
		}
	}
}

// TestPatternNeverPanics feeds the checker pieces of syntax: what it accepts
// must compile and cover the text.
func TestPatternNeverPanics(t *testing.T) {
	pieces := []string{`(`, `)`, `(?:`, `(?i:`, `(?=`, `(?!`, `[`, `[^`, `]`, `-`, `\`, `\p{L}`, `\p{`, `\s`, `{`, `1`, `,`, `}`, `*`, `+`, `?`, `|`, `a`, `é`, `&&`, `^`}
	rapid.Check(t, func(r *rapid.T) {
		expr := strings.Join(rapid.SliceOf(rapid.SampledFrom(pieces)).Draw(r, "pieces"), "")
		p, err := compilePattern(expr)
		if err != nil {
			if strings.Contains(err.Error(), "regexp2") {
				r.Fatalf("%q: %v", expr, err)
			}
			return
		}
		text, at := "aé1-& \np{", 0
		for _, s := range p.spans(text) {
			if s.start != at {
				r.Fatalf("%q: a span starts at %d, the last one ended at %d", expr, s.start, at)
			}
			at = s.end
		}
		if at != len(text) {
			r.Fatalf("%q: the spans end at %d of %d", expr, at, len(text))
		}
	})
}
