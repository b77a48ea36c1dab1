package checkpoints

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

var largest = map[Type][]byte{
	F64:  le64(0x7fefffffffffffff),
	F32:  {0xff, 0xff, 0x7f, 0x7f},
	F16:  {0xff, 0x7b},
	BF16: {0x7f, 0x7f},
}

// One number that is not finite is found wherever it is: in a word's lanes, in a block, in what remains after blocks.
func TestFirstNonFiniteFindsThePlantedOne(t *testing.T) {
	planted := map[Type][][]byte{
		F64:  {le64(0x7ff0000000000000), le64(0xfff0000000000000), le64(0x7ff0000000000001), le64(math.MaxUint64)},
		F32:  {{0, 0, 0x80, 0x7f}, {0, 0, 0x80, 0xff}, {1, 0, 0x80, 0x7f}, {0xff, 0xff, 0xff, 0xff}},
		F16:  {{0, 0x7c}, {0, 0xfc}, {1, 0x7c}, {0xff, 0xff}},
		BF16: {{0x80, 0x7f}, {0x80, 0xff}, {0x81, 0x7f}, {0xff, 0xff}},
	}
	for kind, values := range planted {
		size := kind.Size()
		for _, n := range []int{1, 3, 5, 32, 77} {
			for _, sign := range []byte{0, 0x80} { // the largest finite neighbours must not be taken for it
				x := Tensor{Type: kind, Shape: []int{n}, Data: make([]byte, n*size)}
				for i := range n {
					copy(x.Data[i*size:], largest[kind])
					x.Data[(i+1)*size-1] |= sign
				}
				if got := firstNonFinite(x); got != -1 {
					t.Fatalf("%s: %d finite numbers only, found one at %d", kind, n, got)
				}
				for _, v := range values {
					for at := range n {
						whole := string(x.Data)
						copy(x.Data[at*size:], v)
						if got := firstNonFinite(x); got != at {
							t.Errorf("%s: % x planted at %d of %d, found at %d", kind, v, at, n, got)
						}
						if copy(x.Data[(n-1)*size:], v); firstNonFinite(x) != at {
							t.Errorf("%s: % x planted at %d of %d and at the end, found at %d", kind, v, at, n, firstNonFinite(x))
						}
						copy(x.Data, whole)
					}
				}
			}
		}
	}
}

// Every pattern of 16 bits, and random ones of more, is judged as the number that it decodes to.
func TestFirstNonFiniteOfEveryPattern(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for kind, decode := range floatDecoders {
		for i := range 1 << 16 {
			data := le64(r.Uint64())
			if kind.Size() == 2 {
				binary.LittleEndian.PutUint16(data, uint16(i))
			} else if i%2 == 0 { // chance makes an exponent of ones too rarely
				data[kind.Size()-1] |= 0x7f
				data[kind.Size()-2] |= 0xf0 >> (i / 2 % 2)
			}
			v := decode(data)
			want := -1
			if math.IsNaN(v) || math.IsInf(v, 0) {
				want = 0
			}
			if got := firstNonFinite(Tensor{Type: kind, Shape: []int{1}, Data: data[:kind.Size()]}); got != want {
				t.Fatalf("%s % x, which is %v: got %d, want %d", kind, data[:kind.Size()], v, got, want)
			}
		}
	}
}

// The first of several is named, in whatever piece of whatever tensor it is; integers never are.
func TestCheckFiniteNamesTheFirst(t *testing.T) {
	const rows, columns = 3, finitePiece/4 + 5
	tensors := []Tensor{
		{Name: "ids", Type: I32, Shape: []int{4}, Data: []byte(strings.Repeat("\xff", 16))},
		{Name: "a", Type: BF16, Shape: []int{0}},
		{Name: "b", Type: F32, Shape: []int{rows, columns}, Data: make([]byte, 4*rows*columns)},
		{Name: "c", Type: BF16, Shape: []int{7}, Data: make([]byte, 14)},
	}
	if err := checkFinite(tensors); err != nil {
		t.Errorf("nothing but finite numbers: %v", err)
	}
	for _, p := range []struct {
		tensor, at int
		want       string
	}{ // from the last to the first
		{3, 6, `tensor "c" is NaN at element 6 [6]`},
		{2, rows*columns - 1, `tensor "b" is NaN at element 786446 [2 262148]`},
		{2, finitePiece / 2, `tensor "b" is NaN at element 524288 [1 262139]`},
		{2, finitePiece/4 - 1, `tensor "b" is NaN at element 262143 [0 262143]`},
		{2, 0, `tensor "b" is NaN at element 0 [0 0]`},
	} {
		x := tensors[p.tensor]
		copy(x.Data[p.at*x.Type.Size():], "\xff\xff\xff\xff"[:x.Type.Size()])
		if err := checkFinite(tensors); err == nil || err.Error() != p.want {
			t.Errorf("got %v, want %s", err, p.want)
		}
	}
}

// sevenB is what an adapter of 8 experts of rank 8 is on every linear layer of Llama-2-7B: 323 MB.
func sevenB() Config {
	return Config{
		Base: Base{Name: "Llama-2-7b", Digest: someDigest, Dims: Dims{
			Layers: 32, Width: 4096, MLPWidth: 11008, Heads: 32, KVHeads: 32, HeadDim: 128, Vocabulary: 32000,
		}},
		Targets: Targets, Granularity: PerToken, Experts: 8, Rank: 8, Alpha: 16,
	}
}

// BenchmarkOpenServing opens an export of the size of a 7B model's, which is in the system's cache: all of it; the check for numbers
// that are not finite alone; that of the routing table alone; and, to compare, adding up the file's words on all cores.
func BenchmarkOpenServing(b *testing.B) {
	c, dir := sevenB(), filepath.Join(b.TempDir(), "export")
	zeros := make([]byte, 8*8*11008*2)
	var tensors []Tensor
	for s := range c.specs() {
		t := Tensor{Name: s.name, Type: s.kind, Shape: s.shape}
		n := s.kind.Size()
		for _, d := range s.shape {
			n *= d
		}
		if t.Data = zeros[:min(n, len(zeros))]; len(t.Data) < n || strings.HasPrefix(s.name, "model.table.") {
			t.Data = make([]byte, n)
		}
		for v := 0; v < n && strings.HasPrefix(s.name, "model.table."); v += 8 { // experts 0 and 1 with the weights 0 and 1
			bits := map[Type]uint32{I32: 1, F32: math.Float32bits(1)}[s.kind]
			binary.LittleEndian.PutUint32(t.Data[v+4:], bits)
		}
		tensors = append(tensors, t)
	}
	if err := WriteServing(dir, c, tensors); err != nil {
		b.Fatal(err)
	}
	s, err := OpenServing(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	size := int64(0)
	for _, t := range s.tensors {
		size += int64(len(t.Data))
	}
	ids, _ := s.Tensor(TableIDs)
	weights, _ := s.Tensor(TableWeights)
	for _, part := range []struct {
		name  string
		bytes int64
		run   func() error
	}{
		{"all", size, func() error {
			s, err := OpenServing(dir)
			if err != nil {
				return err
			}
			return s.Close()
		}},
		{"finite", size, func() error { return checkFinite(s.tensors) }},
		{"table", int64(len(ids.Data) + len(weights.Data)), func() error { return checkTable(c, ids, weights) }},
		{"read", size, func() error { readAll(s.tensors); return nil }},
	} {
		b.Run(part.name, func(b *testing.B) {
			b.SetBytes(part.bytes)
			for b.Loop() {
				if err := part.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var sink [1 << 10]uint64

// readAll adds up words, in pieces on all cores.
func readAll(tensors []Tensor) {
	var pieces [][]byte
	for _, t := range tensors {
		for from := 0; from < len(t.Data); from += finitePiece {
			pieces = append(pieces, t.Data[from:min(from+finitePiece, len(t.Data))])
		}
	}
	inParallel(len(pieces), func(i int) {
		var a, b, c, d uint64
		for p := pieces[i]; len(p) >= 32; p = p[32:] {
			a += binary.LittleEndian.Uint64(p)
			b += binary.LittleEndian.Uint64(p[8:])
			c += binary.LittleEndian.Uint64(p[16:])
			d += binary.LittleEndian.Uint64(p[24:])
		}
		sink[i%len(sink)] = a + b + c + d
	})
}
