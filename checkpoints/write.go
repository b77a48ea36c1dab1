package checkpoints

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	alignment     = 16 // bytes: what one vector load of a kernel takes
	paddingPrefix = "__padding__."
)

// Write writes tensors and metadata as a safetensors file: widest type first,
// then by name, every tensor starting at a multiple of 16 bytes of the file.
// The header is padded with spaces for that; where a tensor's bytes are no
// multiple of 16, a tensor "__padding__.N" of type U8 follows it (the format
// allows no gaps), which [Open] drops. Equal input gives equal bytes, whatever
// the order of the tensors.
func Write(w io.Writer, tensors []Tensor, metadata map[string]string) error {
	return encode(w, tensors, metadata, true)
}

// encode writes with padding between tensors or, for readers that would stumble
// over unknown names, without: then a tensor is aligned to its element only.
func encode(w io.Writer, tensors []Tensor, metadata map[string]string, pad bool) error {
	sorted, err := layout(tensors, pad)
	if err != nil {
		return err
	}
	header, err := encodeHeader(sorted, metadata)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(w, 1<<16)
	buf.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) // bufio keeps the first error for Flush
	buf.Write(header)
	for _, t := range sorted {
		buf.Write(t.Data)
	}
	return buf.Flush()
}

// layout checks the tensors and returns them in the order of the file.
func layout(tensors []Tensor, pad bool) ([]Tensor, error) {
	if len(tensors) == 0 {
		return nil, fmt.Errorf("no tensors to write")
	}
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(b.Type.Size(), a.Type.Size()), cmp.Compare(a.Name, b.Name))
	})
	var out []Tensor
	for i, t := range sorted {
		if err := t.check(); err != nil {
			return nil, err
		}
		if t.Name == "" || t.Name == "__metadata__" || strings.HasPrefix(t.Name, paddingPrefix) || !utf8.ValidString(t.Name) {
			return nil, fmt.Errorf("tensor name %q cannot be written", t.Name)
		}
		out = append(out, t)
		if gap := -len(t.Data) & (alignment - 1); pad && gap != 0 && i+1 < len(sorted) {
			name := fmt.Sprintf("%s%d", paddingPrefix, i)
			out = append(out, Tensor{Name: name, Type: U8, Shape: []int{gap}, Data: make([]byte, gap)})
		}
	}
	if len(indexByName(out)) != len(out) {
		return nil, fmt.Errorf("two tensors have one name: %s", repeatedName(sorted))
	}
	return out, nil
}

func repeatedName(tensors []Tensor) string {
	seen := map[string]bool{}
	for _, t := range tensors {
		if seen[t.Name] {
			return t.Name
		}
		seen[t.Name] = true
	}
	return ""
}

// encodeHeader writes the JSON by hand because the order of its keys matters.
func encodeHeader(tensors []Tensor, metadata map[string]string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	if len(metadata) > 0 {
		m, err := json.Marshal(metadata) // sorts the keys
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, `"__metadata__":%s,`, m)
	}
	offset := 0
	for i, t := range tensors {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, err
		}
		shape := strings.ReplaceAll(fmt.Sprint(t.Shape), " ", ",") // [] for a scalar
		fmt.Fprintf(&b, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, name, t.Type, shape, offset, offset+len(t.Data))
		offset += len(t.Data)
	}
	b.WriteByte('}')
	for (8+b.Len())%alignment != 0 {
		b.WriteByte(' ')
	}
	if b.Len() > maxHeader {
		return nil, fmt.Errorf("a header of %d bytes is longer than safetensors allows (%d)", b.Len(), maxHeader)
	}
	return b.Bytes(), nil
}
