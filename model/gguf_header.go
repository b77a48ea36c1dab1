package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	ggufMagic = "GGUF"
	// adviceGGUF is what to do about a file that contradicts itself.
	adviceGGUF = "fetch the file again, or convert the model again with llama.cpp's convert_hf_to_gguf.py"
)

// Sizes of GGUF's metadata types in bytes, by their numbers: 0 for those that have none.
var ggufSizes = [...]uint64{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}

const (
	ggufString = 8
	ggufArray  = 9
)

// headerCheck walks over the header of a GGUF file. The library that reads it allocates what the header claims, so
// that every claim is held against the size of the file first.
type headerCheck struct {
	data []byte
	at   int
	err  error
}

// checkGGUF reports a header that is cut short, claims more than the file holds, or names anything twice.
func checkGGUF(name string, data []byte) error {
	h := &headerCheck{data: data}
	h.file()
	if h.err != nil {
		return refuse(adviceGGUF, "%s: %w", name, h.err)
	}
	return nil
}

func (h *headerCheck) file() {
	if magic := h.bytes(uint64(len(ggufMagic)), "magic"); h.err == nil && string(magic) != ggufMagic {
		h.fail("not a GGUF file: it begins with %q", magic)
	}
	if version := h.u32("version"); h.err == nil && version != 2 && version != 3 {
		h.fail("GGUF version %d is not supported, only 2 and 3 in little-endian order", version)
	}
	tensors, values := h.u64("number of tensors"), h.u64("number of metadata values")
	h.each(values, 13, "metadata values", func() (string, string) {
		key := h.name("a metadata key")
		h.value(h.u32("the type of a metadata value"), key)
		return "metadata key", key
	})
	h.each(tensors, 24, "tensors", func() (string, string) {
		tensor := h.name("a tensor's name")
		dims := h.u32("a tensor's dimensions")
		if h.err == nil && (dims == 0 || dims > 4) {
			h.fail("tensor %q has %d dimensions", tensor, dims)
		}
		h.bytes(8*uint64(dims)+4+8, fmt.Sprintf("description of tensor %q", tensor))
		return "tensor", tensor
	})
}

// each walks over n things of least bytes and more, whose names must differ.
func (h *headerCheck) each(n, least uint64, things string, next func() (thing, name string)) {
	if h.err == nil && n > h.left()/least {
		h.fail("the header claims %d %s, and the file has %d bytes", n, things, len(h.data))
	}
	seen := map[string]bool{}
	for i := uint64(0); i < n && h.err == nil; i++ {
		thing, name := next()
		if h.err == nil && seen[name] {
			h.fail("%s %q is there twice", thing, name)
		}
		seen[name] = true
	}
}

func (h *headerCheck) value(kind uint32, key string) {
	switch {
	case h.err != nil:
	case kind == ggufString:
		h.string(key)
	case kind == ggufArray:
		element, n := h.u32(key), h.u64(key)
		switch {
		case h.err != nil:
		case element == ggufString:
			if n > h.left()/8 {
				h.claims(n, "strings", key)
			}
			for i := uint64(0); i < n && h.err == nil; i++ {
				h.string(key)
			}
		case element >= uint32(len(ggufSizes)) || element == ggufArray:
			h.fail("%s is an array of type %d, which is not supported", key, element)
		case n > h.left()/ggufSizes[element]:
			h.claims(n, "values", key)
		default:
			h.bytes(n*ggufSizes[element], key)
		}
	case kind >= uint32(len(ggufSizes)):
		h.fail("%s is of type %d, which is not supported", key, kind)
	default:
		h.bytes(ggufSizes[kind], key)
	}
}

func (h *headerCheck) left() uint64 { return uint64(len(h.data) - h.at) }

func (h *headerCheck) fail(format string, args ...any) {
	if h.err == nil {
		h.err = fmt.Errorf(format, args...)
	}
}

func (h *headerCheck) claims(n uint64, things, key string) {
	h.fail("%s claims %d %s, and the file has %d bytes", key, n, things, len(h.data))
}

// bytes takes n bytes; what is what they are, for the error.
func (h *headerCheck) bytes(n uint64, what string) []byte {
	if h.err != nil {
		return nil
	}
	if n > h.left() {
		if n > math.MaxInt64-uint64(h.at) {
			h.fail("%s at byte %d claims %d bytes", what, h.at, n)
		} else {
			h.fail("truncated: %s ends at byte %d, file has %d", what, uint64(h.at)+n, len(h.data))
		}
		return nil
	}
	h.at += int(n)
	return h.data[h.at-int(n) : h.at]
}

func (h *headerCheck) u32(what string) uint32 {
	if b := h.bytes(4, what); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (h *headerCheck) u64(what string) uint64 {
	if b := h.bytes(8, what); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (h *headerCheck) string(what string) string { return string(h.bytes(h.u64(what), what)) }

// maxName is more than any name of llama.cpp has.
const maxName = 256

// name takes a string that errors can show.
func (h *headerCheck) name(what string) string {
	at := h.at
	s := h.string(what)
	if h.err == nil && !printable(s) {
		h.fail("%s at byte %d is %s", what, at, show(s))
	}
	return s
}

func printable(name string) bool {
	return len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl)
}
