package checkpoints

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/maruel/safetensors"
	"pgregory.net/rapid"

	"loratrain/internal/testpython"
)

// odd holds the shapes that break naive layouts: sizes that are no multiple of
// 16, no elements, no dimensions, one byte.
func odd() []Tensor {
	make := func(name string, kind Type, shape ...int) Tensor {
		n := kind.Size()
		for _, d := range shape {
			n *= d
		}
		data := bytes.Repeat([]byte(name), n/len(name)+1)[:n]
		return Tensor{Name: name, Type: kind, Shape: shape, Data: data}
	}
	return []Tensor{
		make("tiny", U8, 1), make("empty", F32, 3, 0, 5), make("scalar", F64), make("prime", BF16, 7, 13),
		make("wide", F32, 4, 4), make("last", I32, 49, 2), make("half", F16, 5), make("long", I64, 3),
		make("also empty", BF16, 0), make(`q"uote\ <é>`, U8, 17), make("bool", "BOOL", 2),
	}
}

func encoded(t testing.TB, tensors []Tensor, metadata map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, tensors, metadata); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func onDisk(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.safetensors")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRoundTripOfOddShapes(t *testing.T) {
	metadata := map[string]string{"format": "pt", "z": "<é>"}
	f, err := Open(onDisk(t, encoded(t, odd(), metadata)))
	if err != nil {
		t.Fatal(err)
	}
	sameTensors(t, f.Tensors(), odd())
	if !maps.Equal(f.Metadata(), metadata) {
		t.Errorf("metadata: got %v, want %v", f.Metadata(), metadata)
	}
	if x, ok := f.Tensor("prime"); !ok || x.Len() != 91 {
		t.Errorf(`Tensor("prime") = %v elements, %v; want 91, true`, x.Len(), ok)
	}
	if x, ok := f.Tensor("absent"); ok {
		t.Errorf(`Tensor("absent") = %v, want none`, x)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestEveryTensorIsAligned(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kinds := slices.Sorted(maps.Keys(safetensors.DTypeToWordSize))
		var tensors []Tensor
		for i := range rapid.IntRange(1, 30).Draw(t, "tensors") {
			kind := Type(rapid.SampledFrom(kinds).Draw(t, "type"))
			shape := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 3).Draw(t, "shape")
			n := kind.Size()
			for _, d := range shape {
				n *= d
			}
			tensors = append(tensors, Tensor{fmt.Sprintf("t%d", i), kind, shape, make([]byte, n)})
		}
		var b bytes.Buffer
		if err := Write(&b, tensors, nil); err != nil {
			t.Fatal(err)
		}
		start := headerEnd(b.Bytes())
		for name, from := range offsets(t, b.Bytes()) {
			if (start+from)%16 != 0 && !strings.HasPrefix(name, paddingPrefix) {
				t.Errorf("tensor %q starts at byte %d", name, start+from)
			}
		}
		slices.Reverse(tensors)
		var again bytes.Buffer
		if err := Write(&again, tensors, nil); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
			t.Errorf("the order of the tensors changes the file (%v)", err)
		}
		// An independent reader takes the padded header and finds every tensor.
		independent, err := safetensors.Parse(b.Bytes())
		if err != nil {
			t.Fatalf("maruel/safetensors: %v", err)
		}
		got, _, err := parse("x", b.Bytes())
		if err != nil || len(got) != len(tensors) || len(independent.Tensors) < len(tensors) {
			t.Errorf("read %d and %d tensors, %v; want %d", len(got), len(independent.Tensors), err, len(tensors))
		}
	})
}

func headerEnd(file []byte) int { return 8 + int(binary.LittleEndian.Uint64(file)) }

func offsets(t rapid.TB, file []byte) map[string]int {
	var header map[string]struct {
		Offsets []int `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:headerEnd(file)], &header); err != nil {
		t.Fatal(err)
	}
	from := map[string]int{}
	for name, h := range header {
		from[name] = h.Offsets[0]
	}
	return from
}

func TestWriteRefuses(t *testing.T) {
	ok := Tensor{Name: "a", Type: U8, Shape: []int{1}, Data: []byte{1}}
	named := func(name string) []Tensor { x := ok; x.Name = name; return []Tensor{x} }
	for name, tensors := range map[string][]Tensor{
		"nothing":         nil,
		"two of one name": {ok, ok},
		"one name, two types": {
			ok, {Name: "a", Type: F32, Shape: []int{1}, Data: make([]byte, 4)},
		},
		"no name":         named(""),
		"metadata's name": named("__metadata__"),
		"padding's name":  named("__padding__.0"),
		"no UTF-8":        named("a\xff"),
		"unknown type":    {{Name: "a", Type: "F4", Shape: []int{1}, Data: []byte{1}}},
		"bytes missing":   {{Name: "a", Type: F32, Shape: []int{1}, Data: []byte{1}}},
		"negative shape":  {{Name: "a", Type: U8, Shape: []int{-1, -1}, Data: []byte{1}}},
	} {
		var b bytes.Buffer
		if err := Write(&b, tensors, nil); err == nil || b.Len() > 0 {
			t.Errorf("%s: got %v and %d bytes, want an error and none", name, err, b.Len())
		}
	}
}

// brokenWriter fails after n bytes, as a full disk does.
type brokenWriter int

func (w *brokenWriter) Write(p []byte) (int, error) {
	if len(p) > int(*w) {
		return int(*w), errors.New("disk full")
	}
	*w -= brokenWriter(len(p))
	return len(p), nil
}

func TestWriteReportsAFullDisk(t *testing.T) {
	size := len(encoded(t, odd(), nil))
	for n := range size {
		w := brokenWriter(n)
		if err := Write(&w, odd(), nil); err == nil {
			t.Fatalf("no error with room for %d of %d bytes", n, size)
		}
	}
}

// file glues a header to bytes of data.
func file(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

// hostile has a file and what its error must say.
var hostile = map[string]struct {
	data []byte
	want string
}{
	"empty":           {nil, "empty file"},
	"seven bytes":     {make([]byte, 7), "truncated: 7 bytes"},
	"header of 2^60":  {append([]byte{0, 0, 0, 0, 0, 0, 0, 0x10}, "{}"...), "not safetensors: its first 8 bytes give a header of 1152921504606846976 bytes"},
	"header of 2^64":  {bytes.Repeat([]byte{0xff}, 16), "header of 18446744073709551615 bytes"},
	"header too long": {[]byte{90, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, "truncated: the header ends at byte 98, file has 10"},
	"GGUF":            {[]byte("GGUF\x03\x00\x00\x00\x00\x00\x00\x00"), "not safetensors"},
	"no header":       {make([]byte, 8), "header: "},
	"null":            {file("null", 0), "not a JSON object"},
	"a list":          {file("[]", 0), "not a JSON object"},
	"half a header":   {file(`{"a":{"dtype":"U8"`, 0), "ends too early"},
	"two headers":     {file(`{}{}`, 0), "something follows"},
	"no tensors":      {file(`{}`, 0), "holds no tensors"},
	"metadata alone":  {file(`{"__metadata__":{"a":"b"}}`, 0), "holds no tensors"},
	"metadata number": {file(`{"__metadata__":{"a":1}}`, 0), "__metadata__"},
	"too short": {
		file(`{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 7),
		"truncated: header says tensor \"x\" ends at byte 70, file has 69\nfetch the file again",
	},
	"bytes left": {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`, 3), `1 bytes after the last tensor "x"`},
	"a gap": {
		file(`{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3),
		`1 bytes between x and tensor "y"`,
	},
	"overlap": {
		file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3),
		`tensor "y" overlaps tensor "x"`,
	},
	"backwards":       {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}`, 2), `tensor "x" starts at byte 2`},
	"offsets of 2^64": {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[18446744073709551613,18446744073709551615]}}`, 2), "2^64 or later"},
	"offset negative": {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[-1,1]}}`, 2), `tensor "x"`},
	"shape too big":   {file(`{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}`, 2), "needs 3 bytes, the header gives it 2"},
	"shape wraps":     {file(`{"x":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0), "impossible shape"},
	"zero times huge": {file(`{"x":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}`, 0), "impossible shape"},
	"shape negative":  {file(`{"x":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}`, 1), `"shape"`},
	"shape a string":  {file(`{"x":{"dtype":"U8","shape":"1","data_offsets":[0,1]}}`, 1), `"shape"`},
	"shape null":      {file(`{"x":{"dtype":"U8","shape":null,"data_offsets":[0,1]}}`, 1), `"shape" is null`},
	"unknown type":    {file(`{"x":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}`, 1), `tensor "x": type "F4" is not known`},
	"type missing":    {file(`{"x":{"shape":[0],"data_offsets":[0,0]}}`, 0), `want "dtype"`},
	"shape missing":   {file(`{"x":{"dtype":"U8","data_offsets":[0,1]}}`, 1), `want "dtype"`},
	"three offsets":   {file(`{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}`, 1), `two "data_offsets"`},
	"other key":       {file(`{"x":{"dtype":"U8","Shape":[1],"shape":[1],"data_offsets":[0,1]}}`, 1), `unknown or repeated key "Shape"`},
	"tensor twice": {
		file(`{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2),
		`"x" is there twice`,
	},
}

func TestOpenRefusesHostileFiles(t *testing.T) {
	for name, c := range hostile {
		path := onDisk(t, c.data)
		f, err := Open(path)
		if err == nil {
			t.Errorf("%s: opened, with %v; want %q", name, f.Tensors(), c.want)
			continue
		}
		first, advice, _ := strings.Cut(err.Error(), "\n")
		if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(first, path+": ") || advice == "" {
			t.Errorf("%s: got %q, want the path, %q and a line of advice", name, err, c.want)
		}
	}
}

func TestOpenWithoutAFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: got %v, want fs.ErrNotExist", err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("folder: got %v", err)
	}
}

func TestCutAtEveryByte(t *testing.T) {
	whole := encoded(t, odd(), map[string]string{"a": "b"})
	path := filepath.Join(t.TempDir(), "model.safetensors")
	for n := range whole {
		if err := os.WriteFile(path, whole[:n], 0o666); err != nil {
			t.Fatal(err)
		}
		if f, err := Open(path); err == nil {
			t.Errorf("cut to %d of %d bytes: opened with %d tensors", n, len(whole), len(f.tensors))
		} else if !strings.Contains(err.Error(), "truncated") && !strings.Contains(err.Error(), "empty") {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.data)
	}
	f.Add(encoded(f, odd(), nil))
	f.Add(encoded(f, odd()[:1], map[string]string{"a": "b"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		tensors, _, err := parse("x", data)
		independent, theirs := safetensors.Parse(data)
		if err != nil {
			return // ours may be stricter
		}
		if theirs != nil {
			t.Fatalf("ours reads it, maruel/safetensors: %v", theirs)
		}
		total := 0
		for _, x := range tensors {
			if err := x.check(); err != nil {
				t.Error(err)
			}
			total += len(x.Data)
		}
		for _, x := range independent.Tensors {
			if isPadding(x) {
				total += len(x.Data)
			}
		}
		if total != len(data)-headerEnd(data) {
			t.Errorf("tensors have %d bytes, the file %d after its header", total, len(data)-headerEnd(data))
		}
	})
}

func TestPythonReadsAndWritesTheSameFiles(t *testing.T) {
	testpython.Need(t, "safetensors, numpy")
	path := onDisk(t, encoded(t, odd(), map[string]string{"format": "pt"}))
	theirs := filepath.Join(t.TempDir(), "theirs.safetensors")
	testpython.Run(t, "testdata/roundtrip.py", path, theirs)
	f, err := Open(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sameTensors(t, f.Tensors(), slices.DeleteFunc(odd(), func(x Tensor) bool { return x.Type == BF16 }))
}
