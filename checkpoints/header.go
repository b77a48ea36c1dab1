package checkpoints

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// maxHeader is the largest header that safetensors' own reader takes, in bytes.
const maxHeader = 100_000_000

const (
	adviceFetch   = "fetch the file again, or write it again with the program that made it"
	adviceForeign = "is this a safetensors file? if so, fetch it again"
)

// fault is an error of two lines: where and what, and what to do.
func fault(advice, format string, args ...any) error {
	return fmt.Errorf(format+"\n%s", append(args, advice)...)
}

// entry is what a header says of one tensor. Offsets count from the header's end.
type entry struct {
	name    string
	kind    Type
	shape   []uint64
	offsets [2]uint64
}

// checkHeader reads the header of a safetensors file of size bytes and refuses
// what its published format forbids: tensors that overlap, leave gaps or lie
// outside the file, sizes that do not fit their shapes, names given twice.
// name is what errors call the file.
func checkHeader(name string, r io.ReaderAt, size int64) error {
	header, err := readHeader(name, r, size)
	if err != nil {
		return err
	}
	entries, err := parseHeader(header)
	if err != nil {
		return fault(adviceForeign, "%s: header: %w", name, err)
	}
	if len(entries) == 0 {
		return fault("give a file with weights in it", "%s: holds no tensors", name)
	}
	return checkLayout(name, entries, uint64(size)-8-uint64(len(header)), 8+uint64(len(header)))
}

func readHeader(name string, r io.ReaderAt, size int64) ([]byte, error) {
	if size == 0 {
		return nil, fault(adviceFetch, "%s: empty file", name)
	}
	if size < 8 {
		return nil, fault(adviceFetch, "%s: truncated: %d bytes, and the length of the header alone takes 8", name, size)
	}
	var length [8]byte
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > maxHeader {
		return nil, fault(adviceForeign, "%s: not safetensors: its first 8 bytes give a header of %d bytes, the most allowed is %d", name, n, maxHeader)
	}
	if n > uint64(size)-8 {
		return nil, fault(adviceFetch, "%s: truncated: the header ends at byte %d, file has %d", name, n+8, size)
	}
	header := make([]byte, n)
	if _, err := r.ReadAt(header, 8); err != nil && n > 0 {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return header, nil
}

// parseHeader returns the tensors in the order of the header.
func parseHeader(header []byte) ([]entry, error) {
	var entries []entry
	err := eachKey(header, func(key string, value json.RawMessage) error {
		if key == "__metadata__" {
			var metadata map[string]string
			if err := json.Unmarshal(value, &metadata); err != nil {
				return fmt.Errorf("__metadata__ must map strings to strings: %w", err)
			}
			return nil
		}
		e, err := parseEntry(value)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", key, err)
		}
		e.name = key
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

func parseEntry(value json.RawMessage) (entry, error) {
	var e entry
	var offsets []uint64
	fields := map[string]any{"dtype": &e.kind, "shape": &e.shape, "data_offsets": &offsets}
	err := eachKey(value, func(key string, value json.RawMessage) error {
		field, ok := fields[key]
		if !ok {
			return fmt.Errorf("unknown or repeated key %q", key)
		}
		delete(fields, key)
		if string(value) == "null" {
			return fmt.Errorf("%q is null", key)
		}
		if err := json.Unmarshal(value, field); err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return e, err
	}
	if len(fields) > 0 || len(offsets) != 2 {
		return e, errors.New(`want "dtype", "shape" and two "data_offsets"`)
	}
	if e.kind.Size() == 0 {
		return e, fmt.Errorf("type %q is not known", e.kind)
	}
	e.offsets = [2]uint64(offsets)
	return e, nil
}

// checkLayout holds the entries against the bytes of data that follow the
// header, which itself ends at byte start of the file.
func checkLayout(name string, entries []entry, data, start uint64) error {
	sorted := slices.Clone(entries)
	slices.SortStableFunc(sorted, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.offsets[0], b.offsets[0]), cmp.Compare(a.offsets[1], b.offsets[1]))
	})
	end, previous := uint64(0), "the header"
	for _, e := range sorted {
		from, to := e.offsets[0], e.offsets[1]
		want, ok := byteLen(e.kind, e.shape)
		switch {
		case !ok || slices.ContainsFunc(e.shape, func(d uint64) bool { return d > math.MaxInt64 }):
			return fault(adviceForeign, "%s: tensor %q has an impossible shape %v", name, e.name, e.shape)
		case to < from:
			return fault(adviceForeign, "%s: tensor %q starts at byte %d of the data and ends at %d", name, e.name, from, to)
		case to-from != want:
			return fault(adviceForeign, "%s: tensor %q of type %s and shape %v needs %d bytes, the header gives it %d",
				name, e.name, e.kind, e.shape, want, to-from)
		case from < end:
			return fault(adviceForeign, "%s: tensor %q overlaps tensor %q", name, e.name, previous)
		case to > data: // before the gap: a file cut short is the likelier story
			return fault(adviceFetch, "%s: truncated: header says tensor %q ends at byte %s, file has %d", name, e.name, sum(start, to), start+data)
		case from > end:
			return fault(adviceForeign, "%s: %d bytes between %s and tensor %q belong to no tensor", name, from-end, previous, e.name)
		}
		end, previous = to, e.name
	}
	if end != data {
		return fault(adviceForeign, "%s: %d bytes after the last tensor %q belong to no tensor", name, data-end, previous)
	}
	return nil
}

// sum prints a + b, which hostile offsets may take beyond 64 bits.
func sum(a, b uint64) string {
	if b > math.MaxUint64-a {
		return "2^64 or later"
	}
	return fmt.Sprint(a + b)
}

// eachKey calls f for each key of a JSON object, in its order. A key given
// twice is an error, which decoding into a map or a struct would hide.
func eachKey(object []byte, f func(key string, value json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(object))
	if t, err := dec.Token(); err != nil {
		return noEOF(err)
	} else if t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return noEOF(err)
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("%v where a key should be", t)
		}
		if seen[key] {
			return fmt.Errorf("key %q is there twice", key)
		}
		seen[key] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return noEOF(err)
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return noEOF(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the JSON object")
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends too early")
	}
	return err
}
