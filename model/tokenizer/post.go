package tokenizer

import (
	"fmt"
	"math"
)

// A template says what surrounds the ids of a text: the text's own ids stand
// where a part is textPart.
type template []int32

const textPart int32 = -1

func (t template) apply(ids []int32, special bool) []int32 {
	out := make([]int32, 0, len(ids)+len(t))
	for _, part := range t {
		switch {
		case part == textPart:
			out = append(out, ids...)
		case special:
			out = append(out, part)
		}
	}
	return out
}

type postJSON struct {
	Type       string
	Processors []rawMessage

	// ByteLevel; all of it concerns offsets alone.
	AddPrefixSpace bool `json:"add_prefix_space"`
	TrimOffsets    bool `json:"trim_offsets"`
	UseRegex       bool `json:"use_regex"`

	// TemplateProcessing. Pair is for tasks of two texts, which Encode has not.
	Single        []templatePartJSON
	Pair          rawMessage
	SpecialTokens map[string]struct {
		ID     string
		IDs    []int64
		Tokens []string
	} `json:"special_tokens"`
}

type templatePartJSON struct {
	Sequence, SpecialToken *struct {
		ID     string
		TypeID int `json:"type_id"`
	}
}

// parsePost reads the post-processor, which may be null.
func (t *Tokenizer) parsePost(raw rawMessage, at string) error {
	if raw.isNull() {
		return nil
	}
	var c postJSON
	if err := raw.decode(at, &c); err != nil {
		return err
	}
	switch c.Type {
	case "Sequence":
		for i, step := range c.Processors {
			if err := t.parsePost(step, fmt.Sprintf("%s.processors[%d]", at, i)); err != nil {
				return err
			}
		}
		return nil
	case "ByteLevel":
		return nil
	case "TemplateProcessing":
		tmpl, err := t.parseTemplate(&c, at)
		t.templates = append(t.templates, tmpl)
		return err
	}
	return unsupported(at, c.Type, "Sequence, ByteLevel, TemplateProcessing")
}

func (t *Tokenizer) parseTemplate(c *postJSON, at string) (template, error) {
	var out template
	for i, part := range c.Single {
		at := fmt.Sprintf("%s.single[%d]", at, i)
		switch {
		case (part.Sequence == nil) == (part.SpecialToken == nil):
			return nil, fmt.Errorf("%s: expected either a Sequence or a SpecialToken", at)
		case part.Sequence != nil && part.Sequence.ID != "A":
			return nil, fmt.Errorf("%s: sequence %q is not supported, expected A", at, part.Sequence.ID)
		case part.Sequence != nil:
			out = append(out, textPart)
			continue
		}
		name := part.SpecialToken.ID
		special, ok := c.SpecialTokens[name]
		if !ok {
			return nil, fmt.Errorf("%s: %q is not among special_tokens", at, name)
		}
		for _, id := range special.IDs {
			if id < 0 || id > math.MaxInt32 || t.tokens[int32(id)] == "" {
				return nil, fmt.Errorf("%s: %q has id %d, which no token has", at, name, id)
			}
			out = append(out, int32(id))
		}
	}
	return out, nil
}
