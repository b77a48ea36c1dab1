package checkpoints

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// strictJSON decodes data into v and refuses what encoding/json lets pass: keys
// that v does not have, and keys that are missing, there twice or spelled in
// another case. Errors give line and column, or the key.
func strictJSON(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return jsonError(data, err)
	}
	if err := noRepeats(data); err != nil {
		return err
	}
	var got, want any
	if err := unmarshalNumbers(data, &got); err != nil {
		return jsonError(data, err)
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := unmarshalNumbers(encoded, &want); err != nil {
		return err
	}
	return sameKeys("", got, want)
}

// unmarshalNumbers leaves numbers as they are, since some fit no float64.
func unmarshalNumbers(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return dec.Decode(v)
}

// noRepeats refuses objects in objects that have a key twice.
func noRepeats(object []byte) error {
	return eachKey(object, func(_ string, value json.RawMessage) error {
		if value[0] == '{' {
			return noRepeats(value)
		}
		return nil
	})
}

// sameKeys compares the keys of objects in objects.
func sameKeys(path string, got, want any) error {
	wantObject, ok := want.(map[string]any)
	if !ok {
		return nil
	}
	gotObject, ok := got.(map[string]any)
	if !ok {
		return fmt.Errorf("%q is no object", strings.TrimSuffix(path, "."))
	}
	for _, key := range slices.Sorted(maps.Keys(gotObject)) {
		if _, ok := wantObject[key]; !ok {
			return fmt.Errorf("unknown key %q", path+key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(wantObject)) {
		value, ok := gotObject[key]
		if !ok {
			return fmt.Errorf("no key %q", path+key)
		}
		if err := sameKeys(path+key+".", value, wantObject[key]); err != nil {
			return err
		}
	}
	return nil
}

// jsonError puts line and column before an error of encoding/json.
func jsonError(data []byte, err error) error {
	offset := int64(len(data))
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		offset = syntax.Offset
	} else if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		offset, err = kind.Offset, kindError(kind)
	}
	before := data[:min(max(offset-1, 0), int64(len(data)))] // offsets count the bytes read, the wrong one included
	return &placed{1 + bytes.Count(before, []byte{'\n'}), len(before) - bytes.LastIndexByte(before, '\n'), err}
}

// kindError says in JSON's words what encoding/json says in Go's.
func kindError(e *json.UnmarshalTypeError) error {
	want := map[reflect.Kind]string{
		reflect.String: "a string", reflect.Int: "a whole number", reflect.Float64: "a number", reflect.Slice: "a list",
		reflect.Struct: "an object", reflect.Map: "an object", reflect.Bool: "true or false",
	}[e.Type.Kind()]
	if want == "" {
		return e
	}
	got := map[string]string{"string": "a string", "array": "a list", "object": "an object", "bool": "true or false", "number": "a number"}[e.Value]
	if got == "" {
		got = strings.TrimPrefix(e.Value, "number ")
	}
	if e.Field == "" {
		return fmt.Errorf("%s, want %s", got, want)
	}
	keys := slices.DeleteFunc(strings.Split(e.Field, "."), func(key string) bool {
		return key != "" && 'A' <= key[0] && key[0] <= 'Z' // an embedded struct, which is no key
	})
	return fmt.Errorf("%q is %s, want %s", strings.Join(keys, "."), got, want)
}

// placed is an error with its line and column.
type placed struct {
	line, column int
	cause        error
}

func (p *placed) Error() string { return fmt.Sprintf("%d:%d: %v", p.line, p.column, p.cause) }
func (p *placed) Unwrap() error { return p.cause }

// inFile puts the path before an error: path:line:column: or path:.
func inFile(path string, err error) error {
	if _, ok := errors.AsType[*placed](err); ok {
		return fmt.Errorf("%s:%w", path, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// checkFormat reads only what says how to read the rest, so that a file of
// another version is refused as such and not for its keys.
func checkFormat(data []byte, format string, version int) error {
	var head struct {
		Format  json.RawMessage `json:"format"`
		Version json.RawMessage `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return jsonError(data, err)
	}
	wantFormat, wantVersion := fmt.Sprintf("%q", format), fmt.Sprint(version)
	if string(head.Format) == wantFormat && string(head.Version) == wantVersion {
		return nil
	}
	return fmt.Errorf("format %s version %s, this program reads format %s version %s",
		orNone(head.Format), orNone(head.Version), wantFormat, wantVersion)
}

func orNone(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "(none)"
	}
	return string(raw[:min(len(raw), 40)])
}

// encodeJSON is indented JSON with a newline at its end.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
