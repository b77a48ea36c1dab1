package tokenizer

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A stage is one step from tokens to text. It takes tokens one at a time, so
// that text can be shown while it is generated, and holds back what a later
// token can still change; flush gives that out at the end. Decode runs the
// same stages, which is why a Stream and Decode cannot disagree.
type stage interface {
	write(token string, emit func(string))
	flush(emit func(string))
}

// decoder makes fresh stages for each text.
type decoder struct {
	stages []func() stage
	// fused says that the last stage yields one text, no longer tokens.
	fused bool
}

type decoderJSON struct {
	Type     string
	Decoders []rawMessage

	// ByteLevel; none of these concerns decoding.
	AddPrefixSpace bool `json:"add_prefix_space"`
	TrimOffsets    bool `json:"trim_offsets"`
	UseRegex       bool `json:"use_regex"`

	// Replace, Strip
	Pattern     *patternJSON
	Content     string
	Start, Stop int
}

func parseDecoder(raw rawMessage) (*decoder, error) {
	d := &decoder{}
	if raw.isNull() {
		d.stages = []func() stage{func() stage { return &spaced{} }}
		return d, nil
	}
	return d, d.add(raw, "decoder")
}

func (d *decoder) add(raw rawMessage, at string) error {
	var c decoderJSON
	if err := raw.decode(at, &c); err != nil {
		return err
	}
	if d.fused && c.Type != "Fuse" && c.Type != "Sequence" && (c.Type != "Strip" || c.Stop != 0) {
		return fmt.Errorf("%s: %s is not supported where the tokens are already joined", at, c.Type)
	}
	switch c.Type {
	case "Sequence":
		for i, step := range c.Decoders {
			if err := d.add(step, fmt.Sprintf("%s.decoders[%d]", at, i)); err != nil {
				return err
			}
		}
		return nil
	case "ByteLevel":
		d.fused = true
		d.stages = append(d.stages, func() stage { return &byteLevel{} })
	case "ByteFallback":
		d.stages = append(d.stages, func() stage { return &byteFallback{} })
	case "Fuse":
		d.fused = true
	case "Strip":
		return d.addStrip(&c, at)
	case "Replace":
		p, err := c.Pattern.compile()
		if err != nil {
			return fmt.Errorf("%s.pattern: %w", at, err)
		}
		replace := p.replace(c.Content)
		d.stages = append(d.stages, func() stage { return perToken(replace) })
	default:
		return unsupported(at, c.Type, "Sequence, ByteLevel, ByteFallback, Fuse, Strip, Replace")
	}
	return nil
}

func (d *decoder) addStrip(c *decoderJSON, at string) error {
	if utf8.RuneCountInString(c.Content) != 1 || c.Start < 0 || c.Stop < 0 {
		return fmt.Errorf("%s: expected content of one character and start and stop of at least 0", at)
	}
	if d.fused {
		d.stages = append(d.stages, func() stage { return &stripText{c.Content, c.Start} })
		return nil
	}
	d.stages = append(d.stages, func() stage {
		return perToken(func(token string) string {
			for range c.Start {
				token = strings.TrimPrefix(token, c.Content)
			}
			for range c.Stop {
				token = strings.TrimSuffix(token, c.Content)
			}
			return token
		})
	})
	return nil
}

// perToken rewrites each token by itself.
type perToken func(string) string

func (f perToken) write(token string, emit func(string)) { emit(f(token)) }
func (f perToken) flush(func(string))                    {}

// spaced puts a space between tokens, as tokenizers do for want of a decoder.
type spaced struct{ begun bool }

func (s *spaced) write(token string, emit func(string)) {
	if s.begun {
		emit(" ")
	}
	s.begun = true
	emit(token)
}

func (s *spaced) flush(func(string)) {}

// stripText removes up to left times content from the start of the text.
type stripText struct {
	content string
	left    int
}

func (s *stripText) write(token string, emit func(string)) {
	for s.left > 0 && token != "" {
		rest, ok := strings.CutPrefix(token, s.content)
		if !ok {
			s.left = 0
			break
		}
		token = rest
		s.left--
	}
	emit(token)
}

func (s *stripText) flush(func(string)) {}

// byteLevel undoes the byte alphabet.
type byteLevel struct{ pending []byte }

func (s *byteLevel) write(token string, emit func(string)) {
	s.pending = fromByteAlphabet(s.pending, token)
	text, rest := validUTF8(s.pending)
	if text != "" {
		emit(text)
	}
	s.pending = append(s.pending[:0], rest...)
}

func (s *byteLevel) flush(emit func(string)) {
	if len(s.pending) > 0 {
		emit(string(utf8.RuneError))
	}
	s.pending = nil
}

// byteFallback joins runs of tokens such as <0xE2>: to text if the run is
// valid UTF-8, else to U+FFFD for each.
type byteFallback struct{ run []byte }

func (s *byteFallback) write(token string, emit func(string)) {
	if len(token) == 6 && strings.HasPrefix(token, "<0x") && token[5] == '>' {
		if b, err := strconv.ParseUint(token[3:5], 16, 8); err == nil {
			s.run = append(s.run, byte(b))
			return
		}
	}
	s.flush(emit)
	emit(token)
}

func (s *byteFallback) flush(emit func(string)) {
	if len(s.run) == 0 {
		return
	}
	text := string(s.run)
	if !utf8.ValidString(text) {
		text = strings.Repeat(string(utf8.RuneError), len(s.run))
	}
	s.run = s.run[:0]
	emit(text)
}

// validUTF8 replaces what can no longer become valid by U+FFFD, one for each
// maximal subpart (Unicode 3.9, as Rust's from_utf8_lossy), and returns an
// incomplete end apart.
func validUTF8(b []byte) (text string, rest []byte) {
	var out strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			if !utf8.FullRune(b) {
				break
			}
			for n < len(b) && !utf8.FullRune(b[:n+1]) {
				n++
			}
		}
		out.WriteRune(r)
		b = b[n:]
	}
	return out.String(), b
}

// validText makes any string valid UTF-8.
func validText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	text, rest := validUTF8([]byte(s))
	if len(rest) > 0 {
		text += string(utf8.RuneError)
	}
	return text
}

// A Stream decodes ids one at a time. It is for one goroutine.
type Stream struct {
	t           *Tokenizer
	skipSpecial bool
	stages      []stage
}

// Stream returns a decoder of ids that come one by one; skipSpecial is that
// of Decode. What its Write and at last its Flush return, put together,
// equals Decode of all ids.
func (t *Tokenizer) Stream(skipSpecial bool) *Stream {
	s := &Stream{t: t, skipSpecial: skipSpecial}
	s.restart()
	return s
}

func (s *Stream) restart() {
	s.stages = nil
	for _, fresh := range s.t.decoder.stages {
		s.stages = append(s.stages, fresh())
	}
}

// Write takes the next id and returns the text that is now certain: always
// valid UTF-8, and empty while a character is incomplete.
func (s *Stream) Write(id int32) string {
	token, ok := s.t.pieces[id]
	if !ok || s.skipSpecial && s.t.special[id] {
		return ""
	}
	var out strings.Builder
	s.run(0, token, &out)
	return out.String()
}

// Flush ends the text: it returns what was held back, with U+FFFD for an
// incomplete character. The next Write begins a new text.
func (s *Stream) Flush() string {
	var out strings.Builder
	for i := range s.stages {
		s.stages[i].flush(func(token string) { s.run(i+1, token, &out) })
	}
	s.restart()
	return out.String()
}

func (s *Stream) run(i int, token string, out *strings.Builder) {
	if i == len(s.stages) {
		out.WriteString(token)
		return
	}
	s.stages[i].write(token, func(next string) { s.run(i+1, next, out) })
}
