package checkpoints

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestBF16RoundsToNearestEven(t *testing.T) {
	for _, c := range []struct {
		name string
		in   float32
		want uint16
	}{
		{"one", 1, 0x3f80},
		{"below half goes down", math.Float32frombits(0x3f807fff), 0x3f80},
		{"tie goes to even below", math.Float32frombits(0x3f808000), 0x3f80},
		{"above half goes up", math.Float32frombits(0x3f808001), 0x3f81},
		{"tie goes to even above", math.Float32frombits(0x3f818000), 0x3f82},
		{"carry into the exponent", math.Float32frombits(0x3fffffff), 0x4000},
		{"negative zero", float32(math.Copysign(0, -1)), 0x8000},
		{"subnormal", math.SmallestNonzeroFloat32, 0},
		{"beyond the largest", math.MaxFloat32, 0x7f80},
	} {
		if got := bf16(c.in); got != c.want {
			t.Errorf("%s: bf16(%v) = %#04x, want %#04x", c.name, c.in, got, c.want)
		}
	}
}

// The nearest of all bfloat16 neighbours, found with exact arithmetic.
func TestBF16AgainstExactDistance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := math.Float32frombits(rapid.Uint32().Draw(t, "bits"))
		if math.IsNaN(float64(v)) || math.Abs(float64(v)) > 3.38e38 {
			return
		}
		exact := func(bits uint16) *big.Float {
			f := math.Float32frombits(uint32(bits) << 16)
			return new(big.Float).Abs(new(big.Float).Sub(big.NewFloat(float64(f)), big.NewFloat(float64(v))))
		}
		got := bf16(v)
		down := uint16(math.Float32bits(v) >> 16)
		for _, other := range []uint16{down, down + 1} {
			if exact(other).Cmp(exact(got)) < 0 {
				t.Errorf("bf16(%v) = %#04x, %#04x is nearer", v, got, other)
			}
		}
	})
}

func TestFloat32sDecodesEachType(t *testing.T) {
	want := []float32{1, -2.5, 0}
	for kind, data := range map[Type][]byte{
		F64:  slices.Concat(le64(math.Float64bits(1)), le64(math.Float64bits(-2.5)), le64(0)),
		F32:  Float32Tensor("x", []int{3}, want).Data,
		F16:  {0x00, 0x3c, 0x00, 0xc1, 0, 0},
		BF16: {0x80, 0x3f, 0x20, 0xc0, 0, 0},
	} {
		got, err := Tensor{Name: "x", Type: kind, Shape: []int{3}, Data: data}.Float32s()
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v, %v; want %v", kind, got, err, want)
		}
	}
	for name, bad := range map[string]Tensor{
		"integers":       {Name: "x", Type: I32, Shape: []int{1}, Data: make([]byte, 4)},
		"too few bytes":  {Name: "x", Type: F32, Shape: []int{2}, Data: make([]byte, 4)},
		"odd byte":       {Name: "x", Type: F32, Shape: []int{1}, Data: make([]byte, 5)},
		"negative shape": {Name: "x", Type: F32, Shape: []int{-1, -1}, Data: make([]byte, 4)},
		"product wraps":  {Name: "x", Type: F32, Shape: []int{1 << 32, 1 << 32}},
	} {
		if got, err := bad.Float32s(); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func le64(bits uint64) []byte { return binary.LittleEndian.AppendUint64(nil, bits) }

// The want is computed with Python's hashlib from the definition in Digest's comment.
func TestDigestIsWhatItsCommentSays(t *testing.T) {
	tensors := []Tensor{
		{Name: "b", Type: U8, Shape: []int{3}, Data: []byte{1, 2, 3}},
		{Name: "a", Type: BF16, Shape: []int{1, 2}, Data: []byte{0, 1, 2, 3}},
		{Name: "scalar", Type: F32, Shape: nil, Data: []byte{0, 0, 128, 63}},
	}
	const want = "sha256:b51dac2b65b30103588146180b2e8f7f6933f6144c72c03b5b6e58d3e73cfe77"
	if got := Digest(tensors); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	slices.Reverse(tensors)
	if got := Digest(tensors); got != want {
		t.Errorf("in another order: got %s, want %s", got, want)
	}
}

func TestDigestSeesEveryChange(t *testing.T) {
	base := []Tensor{
		{Name: "ab", Type: F32, Shape: []int{2, 1}, Data: []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{Name: "c", Type: F32, Shape: []int{2}, Data: []byte{8, 7, 6, 5, 4, 3, 2, 1}},
	}
	seen := map[string]string{Digest(base): "unchanged"}
	for name, change := range map[string]func([]Tensor) []Tensor{
		"name":            func(x []Tensor) []Tensor { x[0].Name = "abc"; return x },
		"type":            func(x []Tensor) []Tensor { x[0].Type = I32; return x },
		"shape":           func(x []Tensor) []Tensor { x[0].Shape = []int{1, 2}; return x },
		"dimension added": func(x []Tensor) []Tensor { x[0].Shape = []int{2, 1, 1}; return x },
		"last byte":       func(x []Tensor) []Tensor { x[0].Data[7] = 9; return x },
		"data swapped":    func(x []Tensor) []Tensor { x[0].Data, x[1].Data = x[1].Data, x[0].Data; return x },
		"one missing":     func(x []Tensor) []Tensor { return x[:1] },
		"one twice":       func(x []Tensor) []Tensor { return append(x, x[1]) },
		"none":            func([]Tensor) []Tensor { return nil },
	} {
		changed := change(cloneTensors(base))
		d := Digest(changed)
		if other, ok := seen[d]; ok || !strings.HasPrefix(d, "sha256:") {
			t.Errorf("%s: digest %s is that of %q", name, d, other)
		}
		seen[d] = name
	}
}

func cloneTensors(tensors []Tensor) []Tensor {
	out := slices.Clone(tensors)
	for i := range out {
		out[i].Data = slices.Clone(out[i].Data)
		out[i].Shape = slices.Clone(out[i].Shape)
	}
	return out
}

// sameTensors compares by name, since files have an order of their own.
func sameTensors(t *testing.T, got, want []Tensor) {
	t.Helper()
	byName := func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) }
	got, want = slices.SortedFunc(slices.Values(got), byName), slices.SortedFunc(slices.Values(want), byName)
	heads := func(x []Tensor) (out []string) {
		for _, t := range x {
			out = append(out, fmt.Sprint(t.Name, " ", t.Type, " ", t.Shape))
		}
		return out
	}
	if diff := cmp.Diff(heads(want), heads(got)); diff != "" {
		t.Errorf("tensors differ (-want +got):\n%s", diff)
		return
	}
	for i := range got {
		if !bytes.Equal(got[i].Data, want[i].Data) {
			t.Errorf("tensor %q: got % x…, want % x…", got[i].Name, got[i].Data[:min(16, len(got[i].Data))], want[i].Data[:min(16, len(want[i].Data))])
		}
	}
}
