package tokenizer

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A splitter is one step of a pre-tokenizer: it appends the parts of piece to
// parts. It may append empty ones; they are dropped after each step.
type splitter func(piece string, parts []string) []string

// gpt2Pattern is the expression that GPT-2 was trained with and that the
// ByteLevel step of Hugging Face tokenizers uses.
const gpt2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// behaviors are what a Split step can do with what its pattern found, under
// the names of Hugging Face tokenizers.
var behaviors = map[string]func([]span) []span{
	"Isolated":           func(s []span) []span { return s },
	"Removed":            removed,
	"Contiguous":         contiguous,
	"MergedWithPrevious": mergedWithPrevious,
	"MergedWithNext":     mergedWithNext,
}

func removed(spans []span) []span {
	kept := spans[:0]
	for _, s := range spans {
		if !s.match {
			kept = append(kept, s)
		}
	}
	return kept
}

// contiguous joins neighbours of the same kind.
func contiguous(spans []span) []span {
	var out []span
	previous := false
	for _, s := range spans {
		if n := len(out); s.match == previous && n > 0 {
			out[n-1].end = s.end
		} else {
			out = append(out, s)
		}
		previous = s.match
	}
	return out
}

// mergedWithPrevious joins a find to what stands before it, unless that is a
// find as well.
func mergedWithPrevious(spans []span) []span {
	var out []span
	previous := false
	for _, s := range spans {
		if n := len(out); s.match && !previous && n > 0 {
			out[n-1].end = s.end
		} else {
			out = append(out, s)
		}
		previous = s.match
	}
	return out
}

// mergedWithNext is mergedWithPrevious read from the end.
func mergedWithNext(spans []span) []span {
	out := make([]span, len(spans))
	at := len(out)
	next := false
	for i := len(spans) - 1; i >= 0; i-- {
		s := spans[i]
		if s.match && !next && at < len(out) {
			out[at].start = s.start
		} else {
			at--
			out[at] = s
		}
		next = s.match
	}
	return out[at:]
}

// splitOn cuts at what p finds; invert exchanges finds and the rest.
func splitOn(p *pattern, invert bool, behave func([]span) []span) splitter {
	return func(piece string, parts []string) []string {
		spans := p.spans(piece)
		if invert {
			for i := range spans {
				spans[i].match = !spans[i].match
			}
		}
		return appendSpans(parts, piece, behave(spans))
	}
}

func appendSpans(parts []string, piece string, spans []span) []string {
	for _, s := range spans {
		parts = append(parts, piece[s.start:s.end])
	}
	return parts
}

// isolate is the Split step that GGUF files and ByteLevel use.
func isolate(expr string) (splitter, error) {
	p, err := compilePattern(expr)
	if err != nil {
		return nil, err
	}
	return splitOn(p, false, behaviors["Isolated"]), nil
}

// splitDigits isolates each number, or each run of them.
func splitDigits(individual bool) splitter {
	return func(piece string, parts []string) []string {
		var spans []span
		last := 0
		for i, r := range piece {
			if !isNumeric(r) {
				continue
			}
			if i > last {
				spans = append(spans, span{last, i, false})
			}
			last = i + utf8.RuneLen(r)
			spans = append(spans, span{i, last, true})
		}
		if last < len(piece) {
			spans = append(spans, span{last, len(piece), false})
		}
		if !individual {
			spans = contiguous(spans)
		}
		return appendSpans(parts, piece, spans)
	}
}

// prefixSpace puts a space before a piece that has none.
func prefixSpace(piece string, parts []string) []string {
	if !strings.HasPrefix(piece, " ") {
		piece = " " + piece
	}
	return append(parts, piece)
}

// preTokenizer cuts a text into the words that BPE works on.
type preTokenizer struct {
	steps []splitter
	// byteLevel says that words are spelled in GPT-2's byte alphabet.
	byteLevel bool
}

func (p *preTokenizer) split(text string) []string {
	if text == "" {
		return nil
	}
	words := []string{text}
	for _, step := range p.steps {
		var parts []string
		for _, w := range words {
			parts = step(w, parts)
		}
		words = parts[:0]
		for _, w := range parts {
			if w != "" {
				words = append(words, w)
			}
		}
	}
	return words
}

type preTokenizerJSON struct {
	Type          string
	PreTokenizers []rawMessage `json:"pretokenizers"`

	// Split
	Pattern  *patternJSON
	Behavior string
	Invert   bool

	// Digits
	IndividualDigits bool `json:"individual_digits"`

	// ByteLevel; TrimOffsets concerns offsets alone.
	AddPrefixSpace bool  `json:"add_prefix_space"`
	TrimOffsets    bool  `json:"trim_offsets"`
	UseRegex       *bool `json:"use_regex"`
}

// add appends the steps of one component of tokenizer.json.
func (p *preTokenizer) add(raw rawMessage, at string) error {
	var c preTokenizerJSON
	if err := raw.decode(at, &c); err != nil {
		return err
	}
	if p.byteLevel {
		return fmt.Errorf("%s: %s after ByteLevel is not supported", at, c.Type)
	}
	switch c.Type {
	case "Sequence":
		for i, step := range c.PreTokenizers {
			if err := p.add(step, fmt.Sprintf("%s.pretokenizers[%d]", at, i)); err != nil {
				return err
			}
		}
	case "Split":
		return p.addSplit(&c, at)
	case "Digits":
		p.steps = append(p.steps, splitDigits(c.IndividualDigits))
	case "ByteLevel":
		return p.addByteLevel(c.AddPrefixSpace, c.UseRegex == nil || *c.UseRegex)
	default:
		return unsupported(at, c.Type, "Sequence, Split, Digits, ByteLevel")
	}
	return nil
}

func (p *preTokenizer) addSplit(c *preTokenizerJSON, at string) error {
	behave, ok := behaviors[c.Behavior]
	if !ok {
		return fmt.Errorf("%s: behavior %q is not supported, expected Isolated, Removed, Contiguous, MergedWithPrevious or MergedWithNext",
			at, c.Behavior)
	}
	re, err := c.Pattern.compile()
	if err != nil {
		return fmt.Errorf("%s.pattern: %w", at, err)
	}
	p.steps = append(p.steps, splitOn(re, c.Invert, behave))
	return nil
}

func (p *preTokenizer) addByteLevel(prefix, split bool) error {
	if prefix {
		p.steps = append(p.steps, prefixSpace)
	}
	if split {
		step, err := isolate(gpt2Pattern)
		if err != nil {
			return err
		}
		p.steps = append(p.steps, step)
	}
	p.byteLevel = true
	return nil
}

// patternJSON is {"Regex": …} or {"String": …}.
type patternJSON struct {
	Regex, String *string
}

func (p *patternJSON) compile() (*pattern, error) {
	switch {
	case p == nil || (p.Regex == nil) == (p.String == nil):
		return nil, errors.New(`expected {"Regex": …} or {"String": …}`)
	case p.Regex != nil:
		return compilePattern(*p.Regex)
	}
	return literalPattern(*p.String)
}
