package datasets

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"unicode/utf8"
)

const (
	maxLine = 100 << 20 // bytes of a line of JSONL
	maxFile = 1 << 30   // bytes of a file that is one JSON value

	utf8Hint = "save the file as UTF-8"
)

var (
	byteOrderMark = []byte("\xef\xbb\xbf")
	errEncoding   = errors.New("not UTF-8")
)

// eachLine calls visit with every line that is not blank, without its end, and with its number from 1. The line's
// bytes are overwritten by the next.
func eachLine(name string, r io.Reader, limit int, visit func(number int, line []byte) error) error {
	in := bufio.NewReaderSize(r, 1<<16)
	var line []byte
	for number, last := 1, false; !last; number++ {
		line = line[:0]
		for {
			part, err := in.ReadSlice('\n')
			line = append(line, part...)
			if len(line) > limit {
				return invalid(fmt.Sprintf("%s:%d", name, number), "write one object per line and end it with a newline",
					"the line is longer than %d bytes", limit)
			}
			if err == nil {
				break
			}
			if err == io.EOF {
				last = true
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return unreadable(name, err)
			}
		}
		if number == 1 {
			line = bytes.TrimPrefix(line, byteOrderMark)
		}
		if text := bytes.TrimRight(line, "\r\n"); len(bytes.TrimSpace(text)) > 0 {
			if err := visit(number, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// readWhole reads a file that is one JSON value, without its byte order mark.
func readWhole(name string, r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, unreadable(name, err)
	}
	if int64(len(data)) > limit {
		return nil, invalid(name, "write it as JSONL, an object per line", "the file is larger than %d bytes", limit)
	}
	return bytes.TrimPrefix(data, byteOrderMark), nil
}

// unreadable is the error for a file that cannot be opened or read.
func unreadable(name string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err // without the path, which the message starts with
	}
	return invalid(name, "check that the file is readable and give its path", "%w", err)
}

// syntax finds what encoding/json or UTF-8 forbid in data: the offset of the offending byte, from 0, and the reason,
// nil if there is nothing.
func syntax(data []byte) (offset int, reason error) {
	if !utf8.Valid(data) {
		for r, n := utf8.DecodeRune(data); r != utf8.RuneError || n != 1; r, n = utf8.DecodeRune(data[offset:]) {
			offset += n
		}
		return offset, fmt.Errorf("byte 0x%02x is %w", data[offset], errEncoding)
	}
	var value json.RawMessage
	err := json.Unmarshal(data, &value)
	if bad, ok := errors.AsType[*json.SyntaxError](err); ok {
		return max(0, min(int(bad.Offset), len(data))-1), err
	}
	return 0, err
}

// position is the line and column, both from 1 and the column in characters, of a byte of data.
func position(data []byte, offset int) (line, column int) {
	before := data[:offset]
	return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

// object is a JSON object's fields, not decoded yet. Unlike structs of encoding/json it tells "Answer" from "answer".
type object struct {
	where, hint string // for messages
	fields      map[string]json.RawMessage
}

// newObject takes valid JSON apart.
func newObject(where, hint string, data []byte) (object, error) {
	o := object{where, hint, map[string]json.RawMessage{}}
	if k := kind(data); k != "an object" {
		return o, invalid(where, hint, "%s, expected an object", k)
	}
	in := json.NewDecoder(bytes.NewReader(data))
	if _, err := in.Token(); err != nil {
		return o, invalid(where, hint, "%w", err)
	}
	for in.More() {
		key, err := in.Token()
		if err != nil {
			return o, invalid(where, hint, "%w", err)
		}
		name, _ := key.(string)
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return o, invalid(where, hint, "%w", err)
		}
		if _, twice := o.fields[name]; twice {
			return o, invalid(where, "keep one of them", "field %s appears twice", quote(name))
		}
		o.fields[name] = value
	}
	return o, nil
}

// decode stores a field in dst; want says which kind of value that takes.
func (o object) decode(name, want string, dst any) error {
	value, ok := o.fields[name]
	if !ok {
		return invalid(o.where, o.hint, "no %q field", name)
	}
	if k := kind(value); k != want {
		return invalid(o.where, o.hint, "%q is %s, expected %s", name, k, want)
	}
	if err := json.Unmarshal(value, dst); err != nil {
		return invalid(o.where, o.hint, "%q is %s, expected %s", name, clip(value), want)
	}
	return nil
}

func (o object) text(name string) (s string, err error) {
	err = o.decode(name, "a string", &s)
	return s, err
}

// texts is a field that is an array of strings.
func (o object) texts(name string) ([]string, error) {
	var values []json.RawMessage
	if err := o.decode(name, "an array", &values); err != nil {
		return nil, err
	}
	texts := make([]string, len(values))
	for i, v := range values {
		if k := kind(v); k != "a string" {
			return nil, invalid(o.where, o.hint, "element %d of %q is %s, expected a string", i+1, name, k)
		}
		if err := json.Unmarshal(v, &texts[i]); err != nil {
			return nil, invalid(o.where, o.hint, "element %d of %q: %w", i+1, name, err)
		}
	}
	return texts, nil
}

// whole is a field that is a whole number.
func (o object) whole(name string) (int, error) {
	var n int
	if value, ok := o.fields[name]; ok && kind(value) == "a number" && json.Unmarshal(value, &n) != nil {
		return 0, invalid(o.where, o.hint, "%q is %s, expected a whole number", name, clip(value))
	}
	err := o.decode(name, "a number", &n)
	return n, err
}

// kind says what sort of JSON value starts with the first byte of data.
func kind(data []byte) string {
	data = bytes.TrimLeft(data, " \t\r\n")
	if len(data) == 0 {
		return "nothing"
	}
	switch data[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// clip is the start of a value, for messages.
func clip(value []byte) string {
	const most = 40
	if len(value) > most {
		return string(value[:most]) + "…"
	}
	return string(value)
}
