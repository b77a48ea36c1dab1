package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
)

// fields reads the keys of a config.json, or of a GGUF file's metadata, which is brought to the same form: nil, bool,
// string, json.Number, []any and map[string]any. It keeps the first error, which says where, and remembers which keys
// were asked for.
type fields struct {
	where  string // what errors begin with
	values map[string]any
	prefix string // of every key that the methods are given
	used   map[string]bool
	err    error
}

// maxSize bounds every number of things in a model, so that the product of two fits.
const maxSize = 1 << 30

func (f *fields) fail(advice, format string, args ...any) {
	if f.err == nil {
		f.err = refuse(advice, "%s: %w", f.where, fmt.Errorf(format, args...))
	}
}

func (f *fields) has(key string) bool {
	_, ok := f.values[f.prefix+key]
	return ok
}

// take is the value of a key; a null is as good as none.
func (f *fields) take(key string) any {
	if f.used == nil {
		f.used = map[string]bool{}
	}
	f.used[f.prefix+key] = true
	return f.values[f.prefix+key]
}

func (f *fields) wrong(key string, got any, want string) {
	f.fail(adviceFetch, "%s%s is %s, want %s", f.prefix, key, show(got), want)
}

// show is a value as JSON has it, or its beginning.
func show(v any) string {
	text := fmt.Sprint(v)
	if quoted, err := json.Marshal(v); err == nil {
		text = string(quoted)
	}
	if runes := []rune(text); len(runes) > 60 {
		return string(runes[:60]) + "…"
	}
	return text
}

func (f *fields) missing(key, want string) {
	f.fail(adviceFetch, "%s%s is missing, want %s", f.prefix, key, want)
}

// size reads a number of things; otherwise = 0 makes the key necessary.
func (f *fields) size(key string, otherwise int) int {
	const want = "a whole number from 1 to 2^30"
	switch v := f.take(key).(type) {
	case nil:
		if otherwise == 0 {
			f.missing(key, want)
		}
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil && 1 <= n && n <= maxSize {
			return n
		}
		f.wrong(key, v, want)
	default:
		f.wrong(key, v, want)
	}
	return otherwise
}

// number reads a positive number; otherwise = 0 makes the key necessary.
func (f *fields) number(key string, otherwise float64) float64 {
	const want = "a number above 0"
	switch v := f.take(key).(type) {
	case nil:
		if otherwise == 0 {
			f.missing(key, want)
		}
	case json.Number:
		if x, err := v.Float64(); err == nil && x > 0 && !math.IsInf(x, 0) {
			return x
		}
		f.wrong(key, v, want)
	default:
		f.wrong(key, v, want)
	}
	return otherwise
}

// count reads a number of things that may be 0 or missing.
func (f *fields) count(key string, otherwise int) int {
	v := f.take(key)
	if v == nil {
		return otherwise
	}
	if v == json.Number("0") {
		return 0
	}
	return f.size(key, 1)
}

func (f *fields) flag(key string, otherwise bool) bool {
	switch v := f.take(key).(type) {
	case nil:
	case bool:
		return v
	default:
		f.wrong(key, v, "true or false")
	}
	return otherwise
}

func (f *fields) text(key, otherwise string) string {
	switch v := f.take(key).(type) {
	case nil:
	case string:
		return v
	default:
		f.wrong(key, v, "a string")
	}
	return otherwise
}

// texts reads a list of strings; none if the key is missing.
func (f *fields) texts(key string) []string {
	v := f.take(key)
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	var texts []string
	for _, item := range list {
		s, isText := item.(string)
		ok = ok && isText
		texts = append(texts, s)
	}
	if !ok {
		f.wrong(key, v, "a list of strings")
		return nil
	}
	return texts
}

// tokens reads a token id or a list of them; none if the key is missing.
func (f *fields) tokens(key string, vocab int) []int32 {
	v := f.take(key)
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var ids []int32
	for _, item := range list {
		n, isNumber := item.(json.Number)
		id, err := strconv.Atoi(n.String())
		if !isNumber || err != nil || id < 0 || id >= vocab {
			f.wrong(key, v, fmt.Sprintf("token ids below the vocabulary's size %d", vocab))
			return nil
		}
		ids = append(ids, int32(id))
	}
	return ids
}

// rest refuses the keys that nothing asked for, unless harmless says that they change nothing that is computed or
// the value is null, false, 0 or empty.
func (f *fields) rest(harmless func(key string) bool) {
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		if v := f.values[key]; !f.used[key] && !harmless(key) && !empty(v) {
			shown := key
			if !printable(key) {
				shown = show(key)
			}
			f.fail("if it does not change what the model computes, remove it; else use another model",
				"%s is %s, and what that means is not known here", shown, show(v))
		}
	}
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		x, err := v.Float64()
		return err == nil && x == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
