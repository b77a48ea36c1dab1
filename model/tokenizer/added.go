package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// An added token is found in the text before BPE sees it.
type addedToken struct {
	ID      int32
	Content string
	// SingleWord finds it only between characters that are not of a word.
	SingleWord bool `json:"single_word"`
	// Lstrip and Rstrip take the whitespace before and after it along.
	Lstrip, Rstrip bool
	// Normalized looks for it in the normalized text.
	Normalized bool
	// Special is skipped by Decode on request.
	Special bool
}

// matcher finds added tokens: the leftmost, and of those that start there the
// longest.
type matcher struct {
	tokens []addedToken
	nodes  []trieNode // nodes[0] is the root
}

type trieNode struct {
	next map[byte]int32
	// token is an index of tokens, −1 if none ends here.
	token int32
}

// newMatcher looks for keys[i] where it finds tokens[i].
func newMatcher(tokens []addedToken, keys []string) *matcher {
	m := &matcher{tokens: tokens, nodes: []trieNode{{token: -1}}}
	for i, key := range keys {
		at := int32(0)
		for k := range len(key) {
			next, ok := m.nodes[at].next[key[k]]
			if !ok {
				next = int32(len(m.nodes))
				if m.nodes[at].next == nil {
					m.nodes[at].next = map[byte]int32{}
				}
				m.nodes[at].next[key[k]] = next
				m.nodes = append(m.nodes, trieNode{token: -1})
			}
			at = next
		}
		if at != 0 {
			m.nodes[at].token = int32(i)
		}
	}
	return m
}

// longest returns the token that starts at s[0] and its length, or nil.
func (m *matcher) longest(s string) (*addedToken, int) {
	var found *addedToken
	length := 0
	at := int32(0)
	for i := range len(s) {
		next, ok := m.nodes[at].next[s[i]]
		if !ok {
			break
		}
		at = next
		if t := m.nodes[at].token; t >= 0 {
			found, length = &m.tokens[t], i+1
		}
	}
	return found, length
}

// A segment is text between added tokens, or (text empty) one of them.
type segment struct {
	text string
	id   int32
}

// split cuts text at added tokens, as find_matches of Hugging Face tokenizers
// does: the search goes on behind the token itself, not behind the whitespace
// that rstrip took.
func (m *matcher) split(text string, emit func(segment)) {
	done := 0
	for at := 0; at < len(text); {
		token, n := m.longest(text[at:])
		if token == nil {
			at++
			continue
		}
		start, end := at, at+n
		at = end
		if token.SingleWord && (endsWithWord(text[:start]) || startsWithWord(text[end:])) {
			continue
		}
		if token.Lstrip {
			start = len(strings.TrimRightFunc(text[:start], unicode.IsSpace))
		}
		if token.Rstrip {
			end = len(text) - len(strings.TrimLeftFunc(text[end:], unicode.IsSpace))
		}
		if start > done {
			emit(segment{text: text[done:start]})
		}
		emit(segment{id: token.ID})
		done = end
	}
	if done < len(text) {
		emit(segment{text: text[done:]})
	}
}

// wordClass is \w of Unicode Technical Standard 18, which Go spells out.
var wordClass = []*unicode.RangeTable{
	unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc,
	unicode.Other_Alphabetic, unicode.Other_Lowercase, unicode.Other_Uppercase, unicode.Join_Control,
}

func startsWithWord(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return n > 0 && unicode.In(r, wordClass...)
}

func endsWithWord(s string) bool {
	r, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && unicode.In(r, wordClass...)
}
