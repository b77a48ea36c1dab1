package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
)

type modelJSON struct {
	Type string
	// Dropout makes training see many spellings of a word; encoding with it
	// would be random.
	Dropout      *float64
	UnkToken     *string `json:"unk_token"`
	Prefix       *string `json:"continuing_subword_prefix"`
	Suffix       *string `json:"end_of_word_suffix"`
	FuseUnk      bool    `json:"fuse_unk"`
	ByteFallback bool    `json:"byte_fallback"`
	IgnoreMerges bool    `json:"ignore_merges"`
	Vocab        rawMessage
	Merges       rawMessage
}

func parseModel(raw rawMessage) (*bpe, error) {
	if raw.isNull() {
		return nil, errors.New(`no "model"`)
	}
	var kind struct{ Type *string }
	if err := json.Unmarshal(raw, &kind); err == nil && kind.Type != nil && *kind.Type != "BPE" {
		return nil, unsupported("model", *kind.Type, "BPE")
	}
	var c modelJSON
	if err := raw.decode("model", &c); err != nil {
		return nil, err
	}
	switch {
	case c.Merges.isNull():
		return nil, errors.New(`model: no "merges"`)
	case c.Dropout != nil && *c.Dropout != 0:
		return nil, fmt.Errorf("model: dropout %g is not supported, expected null", *c.Dropout)
	case c.Prefix != nil && *c.Prefix != "":
		return nil, fmt.Errorf("model: continuing_subword_prefix %q is not supported, expected null", *c.Prefix)
	case c.Suffix != nil && *c.Suffix != "":
		return nil, fmt.Errorf("model: end_of_word_suffix %q is not supported, expected null", *c.Suffix)
	}
	vocab, err := parseVocab(c.Vocab)
	if err != nil {
		return nil, fmt.Errorf("model.vocab: %w", err)
	}
	m, err := newBPE(vocab)
	if err != nil {
		return nil, fmt.Errorf("model.vocab: %w", err)
	}
	m.fuseUnk, m.byteFallback, m.ignoreMerges = c.FuseUnk, c.ByteFallback, c.IgnoreMerges
	if c.UnkToken != nil {
		id, ok := vocab[*c.UnkToken]
		if !ok {
			return nil, fmt.Errorf("model: unk_token %q is not in the vocabulary", *c.UnkToken)
		}
		m.unk = id
	}
	return m, m.parseMerges(c.Merges)
}

// parseVocab reads {"token": id, …}. A map would hide a token listed twice.
func parseVocab(raw rawMessage) (map[string]int32, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("expected an object of ids by token")
	}
	vocab := map[string]int32{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		token := key.(string) // a JSON object's keys are strings
		if _, twice := vocab[token]; twice {
			return nil, fmt.Errorf("token %q is listed twice", token)
		}
		var id int64
		if err := d.Decode(&id); err != nil || id < 0 || id >= math.MaxInt32 {
			return nil, fmt.Errorf("token %q: expected an id from 0 to %d", token, math.MaxInt32-1)
		}
		vocab[token] = int32(id)
	}
	return vocab, nil
}

// parseMerges reads both spellings of the list, "a b" and ["a", "b"].
func (m *bpe) parseMerges(raw rawMessage) error {
	var lines []string
	if json.Unmarshal(raw, &lines) == nil {
		m.merges = make(map[[2]int32]merge, len(lines))
		for rank, line := range lines {
			if strings.HasPrefix(line, "#version") {
				continue // the first line of the merges.txt that the list was made from
			}
			left, right, ok := strings.Cut(line, " ")
			if !ok || strings.Contains(right, " ") {
				return badMerge(rank, line)
			}
			if err := m.addMerge(rank, left, right); err != nil {
				return fmt.Errorf("model.merges[%d]: %w", rank, err)
			}
		}
		return nil
	}
	var pairs [][]string
	if json.Unmarshal(raw, &pairs) != nil {
		return locateMerge(raw)
	}
	m.merges = make(map[[2]int32]merge, len(pairs))
	for rank, pair := range pairs {
		if len(pair) != 2 {
			return badMerge(rank, pair)
		}
		if err := m.addMerge(rank, pair[0], pair[1]); err != nil {
			return fmt.Errorf("model.merges[%d]: %w", rank, err)
		}
	}
	return nil
}

// locateMerge finds the first item that is not spelled like the one before it.
func locateMerge(raw rawMessage) error {
	var items []any
	if err := json.Unmarshal(raw, &items); err != nil {
		return errors.New("model.merges: expected an array")
	}
	for i, item := range items {
		_, isLine := item.(string)
		_, firstIsLine := items[0].(string)
		pair, isPair := item.([]any)
		for _, token := range pair {
			_, isText := token.(string)
			isPair = isPair && isText
		}
		if !isLine && !isPair || isLine != firstIsLine {
			return badMerge(i, item)
		}
	}
	return badMerge(0, items)
}

func badMerge(rank int, got any) error {
	text, err := json.Marshal(got)
	if err != nil {
		return err
	}
	return fmt.Errorf(`model.merges[%d]: expected "a b", or ["a", "b"] all along, got %.60s`, rank, text)
}
