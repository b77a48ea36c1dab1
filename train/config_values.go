package train

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// value is a place in a Config with the values that it takes.
type value interface {
	// decode stores what n says. It returns nil, or the node that does not fit: n or a part of it.
	decode(n *yaml.Node) *yaml.Node
	// typed is the node that text on a command line stands for.
	typed(text string) *yaml.Node
	// fits says whether the value stored is one that the key takes.
	fits() bool
	// want says which values those are.
	want() string
	// encode is the value as YAML on one line; decoding it gives the value back exactly.
	encode() string
}

func scalar(tag, text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text}
}

func isScalar(n *yaml.Node, tags ...string) bool {
	return n.Kind == yaml.ScalarNode && slices.Contains(tags, n.ShortTag())
}

// misfit is n unless the value fits.
func misfit(n *yaml.Node, fits bool) *yaml.Node {
	if fits {
		return nil
	}
	return n
}

type wholeValue struct {
	p        *int
	min, max int
}

func whole(p *int, low, high int) value { return &wholeValue{p, low, high} }

func (v *wholeValue) decode(n *yaml.Node) *yaml.Node {
	i, err := strconv.Atoi(n.Value)
	// Other spellings (010, 0x10, 1_000) mean one thing in one version of YAML and another in the next.
	if !isScalar(n, "!!int") || err != nil || strconv.Itoa(i) != strings.TrimPrefix(n.Value, "+") {
		return n
	}
	*v.p = i
	return misfit(n, v.fits())
}

func (v *wholeValue) typed(text string) *yaml.Node { return scalar("!!int", text) }
func (v *wholeValue) fits() bool                   { return v.min <= *v.p && *v.p <= v.max }
func (v *wholeValue) encode() string               { return strconv.Itoa(*v.p) }
func (v *wholeValue) want() string                 { return fmt.Sprintf("a whole number from %d to %d", v.min, v.max) }

// bound is one end of a range of numbers.
type bound struct {
	limit float64
	open  bool // the limit itself is outside
}

func from(x float64) bound  { return bound{x, false} }
func upTo(x float64) bound  { return bound{x, false} }
func above(x float64) bound { return bound{x, true} }
func below(x float64) bound { return bound{x, true} }

type numberValue struct {
	p         *float64
	low, high bound
}

func number(p *float64, low, high bound) value { return &numberValue{p, low, high} }

func (v *numberValue) decode(n *yaml.Node) *yaml.Node {
	x, err := strconv.ParseFloat(n.Value, 64)
	if !isScalar(n, "!!float", "!!int") || err != nil {
		return n
	}
	*v.p = x
	return misfit(n, v.fits())
}

func (v *numberValue) typed(text string) *yaml.Node { return scalar("!!float", text) }

func (v *numberValue) fits() bool {
	x := *v.p
	if math.IsNaN(x) || x < v.low.limit || x > v.high.limit {
		return false
	}
	return (!v.low.open || x != v.low.limit) && (!v.high.open || x != v.high.limit)
}

func (v *numberValue) encode() string { return strconv.FormatFloat(*v.p, 'g', -1, 64) }

func (v *numberValue) want() string {
	low, high := "at least", "at most"
	if v.low.open {
		low = "above"
	}
	if v.high.open {
		high = "below"
	}
	return fmt.Sprintf("a number %s %s and %s %s", low, plainNumber(v.low.limit), high, plainNumber(v.high.limit))
}

func plainNumber(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

type truthValue struct{ p *bool }

func truth(p *bool) value { return &truthValue{p} }

func (v *truthValue) decode(n *yaml.Node) *yaml.Node {
	// Other spellings (yes, on, True) are text in one version of YAML and truth in another.
	if n.Kind != yaml.ScalarNode || n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 || n.Value != "true" && n.Value != "false" {
		return n
	}
	*v.p = n.Value == "true"
	return nil
}

func (v *truthValue) typed(text string) *yaml.Node { return scalar("!!bool", text) }
func (v *truthValue) fits() bool                   { return true }
func (v *truthValue) encode() string               { return strconv.FormatBool(*v.p) }
func (v *truthValue) want() string                 { return "true or false" }

type textValue struct{ p *string }

func text(p *string) value { return &textValue{p} }

func (v *textValue) decode(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return n
	}
	*v.p = n.Value // of any type: a folder may be called 2026 or true
	return misfit(n, v.fits())
}

func (v *textValue) typed(text string) *yaml.Node { return scalar("!!str", text) }
func (v *textValue) fits() bool                   { return utf8.ValidString(*v.p) }
func (v *textValue) encode() string               { return encodeText(*v.p) }
func (v *textValue) want() string                 { return `text in UTF-8, "" for none` }

type choiceValue struct {
	textValue
	words []string
}

func choice(p *string, words ...string) value { return &choiceValue{textValue{p}, words} }

func (v *choiceValue) decode(n *yaml.Node) *yaml.Node {
	if bad := v.textValue.decode(n); bad != nil {
		return bad
	}
	return misfit(n, v.fits())
}

func (v *choiceValue) fits() bool   { return slices.Contains(v.words, *v.p) }
func (v *choiceValue) want() string { return "one of " + strings.Join(v.words, ", ") }

type listValue struct {
	p     *[]string
	items string // what the items are, for people
	ok    func(string) bool
}

func list(p *[]string, items string, ok func(string) bool) value { return &listValue{p, items, ok} }

func (v *listValue) decode(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.SequenceNode {
		return n
	}
	var out []string
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.ShortTag() == "!!null" || slices.Contains(out, item.Value) || !v.itemFits(item.Value) {
			return item
		}
		out = append(out, item.Value)
	}
	*v.p = out
	return nil
}

// typed splits at commas.
func (v *listValue) typed(text string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		text = text[1 : len(text)-1]
	}
	if strings.TrimSpace(text) == "" {
		return n
	}
	for item := range strings.SplitSeq(text, ",") {
		n.Content = append(n.Content, scalar("!!str", strings.TrimSpace(item)))
	}
	return n
}

func (v *listValue) itemFits(item string) bool { return utf8.ValidString(item) && v.ok(item) }

func (v *listValue) fits() bool {
	for i, item := range *v.p {
		if !v.itemFits(item) || slices.Contains((*v.p)[:i], item) {
			return false
		}
	}
	return true
}

func (v *listValue) encode() string {
	items := make([]string, len(*v.p))
	for i, item := range *v.p {
		items[i] = encodeText(item)
	}
	return "[" + strings.Join(items, ", ") + "]"
}

func (v *listValue) want() string { return "a list [a, b] of different " + v.items }

// encodeText quotes unless the text is a plain word or path. Go's escapes are YAML's too.
func encodeText(s string) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/"
	plain := s != "" && strings.Contains(letters, s[:1]) && strings.Trim(s, letters+"0123456789_.-=") == ""
	if plain && !strings.EqualFold(s, "null") {
		return s
	}
	return strconv.Quote(s)
}
