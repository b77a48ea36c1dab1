package kernels

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestToBFloat16(t *testing.T) {
	bits := math.Float32frombits
	for _, c := range []struct {
		name string
		x    float32
		want BFloat16
	}{
		{"one", 1, 0x3f80},
		{"minus zero", float32(math.Copysign(0, -1)), 0x8000},
		{"tie goes to even, down", bits(0x3f80_8000), 0x3f80},
		{"tie goes to even, up", bits(0x3f81_8000), 0x3f82},
		{"just above a tie", bits(0x3f80_8001), 0x3f81},
		{"just below a tie", bits(0x3f81_7fff), 0x3f81},
		{"carries into the exponent", bits(0x3fff_8000), 0x4000},
		{"largest float32 rounds to infinity", math.MaxFloat32, 0x7f80},
		{"infinity", float32(math.Inf(1)), 0x7f80},
		{"minus infinity", float32(math.Inf(-1)), 0xff80},
		{"smallest denormal", bits(1), 0},
		{"denormal", bits(0x0001_8000), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ToBFloat16(c.x); got != c.want {
				t.Errorf("ToBFloat16(%v) = %#04x, want %#04x", c.x, got, c.want)
			}
		})
	}
}

func TestToBFloat16KeepsNaN(t *testing.T) {
	// Payloads whose upper half alone would be an infinity, or would carry over into a zero.
	for _, b := range []uint32{0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff, 0x7fc0_0000} {
		if got := ToBFloat16(math.Float32frombits(b)).Float32(); got == got {
			t.Errorf("NaN %#08x becomes %v", b, got)
		}
	}
}

func TestBFloat16RoundTrip(t *testing.T) {
	for b := range 1 << 16 {
		x := BFloat16(b).Float32()
		if got := ToBFloat16(x); x == x && got != BFloat16(b) {
			t.Fatalf("%#04x widens to %v and narrows to %#04x", b, x, got)
		}
	}
}

func TestToBFloat16IsNearest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.Float32Range(-1e30, 1e30).Draw(t, "x")
		b := ToBFloat16(x)
		off := math.Abs(float64(b.Float32()) - float64(x))
		for _, n := range []BFloat16{b - 1, b + 1} {
			if d := math.Abs(float64(n.Float32()) - float64(x)); d < off {
				t.Fatalf("%v rounds to %v, but %v is nearer", x, b.Float32(), n.Float32())
			}
		}
	})
}

func TestTypes(t *testing.T) {
	for _, c := range []struct {
		got, want Type
		name      string
		size      int
	}{
		{TypeOf[float32](), F32, "f32", 4},
		{TypeOf[float64](), F64, "f64", 8},
		{TypeOf[BFloat16](), BF16, "bf16", 2},
		{TypeOf[int32](), I32, "i32", 4},
	} {
		if c.got != c.want || c.got.String() != c.name || c.got.Size() != c.size {
			t.Errorf("type %v of %d bytes, want %s of %d", c.got, c.got.Size(), c.name, c.size)
		}
	}
	if got := Type(0).String(); got != "Type(0)" {
		t.Errorf("the zero Type is called %q", got)
	}
}

func TestTensorViews(t *testing.T) {
	x := FromSlice([]float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 3, 4)
	row := x.View(4, 2, 3)
	if got, want := Slice[float32](row), []float32{4, 5, 6, 7, 8, 9}; !cmp.Equal(got, want) {
		t.Errorf("View(4, 2, 3) is %v, want %v", got, want)
	}
	Slice[float32](row.View(5, 1))[0] = -1
	if got := Slice[float32](x)[9]; got != -1 {
		t.Errorf("element 9 is %v after a write through a view of a view, want -1", got)
	}
	if got := Slice[float32](x.Reshape(4, 3)); len(got) != 12 || &got[0] != &Slice[float32](x)[0] {
		t.Error("Reshape does not share memory")
	}
	if got := x.View(12, 0, 5); got.None() || got.Len() != 0 || Slice[float32](got) != nil {
		t.Errorf("empty view is %v, none %v", got, got.None())
	}
	if got := x.String(); got != "f32[3 4]" {
		t.Errorf("x prints as %q", got)
	}
	if x.Len() != 12 || x.Bytes() != 48 || x.None() || !(Tensor{}).None() {
		t.Errorf("x has %d elements, %d bytes", x.Len(), x.Bytes())
	}
}

func TestViewDoesNotKeepTheCallersShape(t *testing.T) {
	shape := []int{2, 3}
	for name, x := range map[string]Tensor{
		"NewHost": NewHost(F64, shape...), "FromSlice": FromSlice(make([]int32, 6), shape...),
		"View": NewHost(F64, 9).View(1, shape...), "Reshape": NewHost(F64, 6).Reshape(shape...),
	} {
		shape[0] = 5
		if x.Shape[0] != 2 {
			t.Errorf("%s keeps the caller's shape", name)
		}
		shape[0] = 2
	}
}

func TestNewHostIsZeroAndAligned(t *testing.T) {
	for _, typ := range []Type{F32, F64, BF16, I32} {
		for n := range 20 {
			x := NewHost(typ, n)
			for i, b := range x.Mem.(Host) {
				if b != 0 {
					t.Errorf("%v: byte %d is %d", x, i, b)
				}
			}
			if len(x.Mem.(Host)) != x.Bytes() {
				t.Errorf("%v has %d bytes, want %d", x, len(x.Mem.(Host)), x.Bytes())
			}
		}
	}
	Slice[float64](NewHost(F64, 3))[2] = 1
}

func TestAligned(t *testing.T) {
	bytes := NewHost(F64, 2).Mem.(Host) // begins at a multiple of 8
	for _, typ := range []Type{F32, F64, BF16, I32} {
		for from := range 9 {
			if got, want := Aligned(typ, bytes[from:]), from%typ.Size() == 0; got != want {
				t.Errorf("Aligned(%v) is %v at byte %d", typ, got, from)
			}
		}
		if !Aligned(typ, nil) || !Aligned(typ, bytes[3:3]) {
			t.Errorf("nothing is not aligned for %v", typ)
		}
	}
}

func TestTensorPanics(t *testing.T) {
	x := NewHost(F32, 3, 4)
	bytes := NewHost(BF16, 8).Mem.(Host)
	for _, c := range []struct {
		name string
		do   func()
		want string
	}{
		{"view past the end", func() { x.View(1, 3, 4) }, "view of elements [1, 13) of a tensor of 12"},
		{"view before the start", func() { x.View(-1, 2) }, "view of elements [-1, 1)"},
		{"reshape to another length", func() { x.Reshape(13) }, "reshape of [3 4] to [13]"},
		{"slice of another type", func() { Slice[int32](x) }, "no host slice of i32"},
		{"slice of no tensor", func() { Slice[float32](Tensor{}) }, "no host slice"},
		{"misaligned", func() { Slice[float32](Tensor{Shape: []int{1}, Type: F32, Mem: bytes.Slice(2, 6)}) }, "not aligned"},
		{"from a slice of another length", func() { FromSlice(make([]float32, 5), 2, 3) }, "5 elements for shape [2 3]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if got, _ := recover().(string); !strings.Contains(got, c.want) {
					t.Errorf("panic %q, want %q in it", got, c.want)
				}
			}()
			c.do()
		})
	}
}

func TestHostSliceCannotGrowIntoItsNeighbour(t *testing.T) {
	h := NewHost(F64, 2).Mem.(Host)
	if got := cap(h.Slice(0, 8).(Host)); got != 8 {
		t.Errorf("slice of 8 bytes has capacity %d", got)
	}
}

// TestRandomIsPinned holds the numbers: a run that is resumed by a later build must see the same dropout.
func TestRandomIsPinned(t *testing.T) {
	splitmix := func(x uint64) uint64 { // the published generator's first output for seed x
		x += 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	if got := splitmix(0); got != 0xe220a8397b1dcdaf { // from the authors' test vectors
		t.Fatalf("splitmix64(0) = %#x", got)
	}
	for _, c := range []struct {
		seed, step int32
		site, i    int
	}{{0, 0, 0, 0}, {1, 2, 3, 4}, {-1, -1, 0, 1 << 40}, {7, 1 << 30, 223, 12345}} {
		key := uint64(uint32(c.seed))<<32 | uint64(uint32(c.step))
		want := splitmix(splitmix(splitmix(key)^uint64(c.site)*0xd1342543de82ef95) + uint64(c.i))
		if got := Random(c.seed, c.step, c.site).At(c.i); got != want {
			t.Errorf("Random(%v) = %#x, want %#x", c, got, want)
		}
	}
}

func TestRandomIsUniform(t *testing.T) {
	const n = 1 << 16
	for _, c := range [][3]int{{0, 0, 0}, {0, 1, 0}, {0, 0, 1}, {1, 0, 0}, {42, 1000, 223}} {
		ones := make([]int, 64)
		for i := range n {
			for r, b := Random(int32(c[0]), int32(c[1]), c[2]).At(i), 0; r != 0; r, b = r>>1, b+1 {
				ones[b] += int(r & 1)
			}
		}
		for b, k := range ones {
			if dev := math.Abs(float64(k)-n/2) / (math.Sqrt(n) / 2); dev > 5 {
				t.Errorf("seed, step, site %v: bit %d is set in %d of %d, %.1f deviations off", c, b, k, n, dev)
			}
		}
	}
}

// TestRandomSeparates looks at the 24 bits that dropout uses: neighbours in any argument must agree by chance only.
func TestRandomSeparates(t *testing.T) {
	const n, rate = 1 << 14, 1 << 23
	mask := func(seed, step int32, site, i int) bool { return Random(seed, step, site).At(i)>>40 < rate }
	for name, other := range map[string]func(i int) bool{
		"seed": func(i int) bool { return mask(2, 1, 1, i) }, "step": func(i int) bool { return mask(1, 2, 1, i) },
		"site": func(i int) bool { return mask(1, 1, 2, i) }, "element": func(i int) bool { return mask(1, 1, 1, i+1) },
	} {
		same := 0
		for i := range n {
			if mask(1, 1, 1, i) == other(i) {
				same++
			}
		}
		if dev := math.Abs(float64(same)-n/2) / (math.Sqrt(n) / 2); dev > 5 {
			t.Errorf("another %s: masks agree on %d of %d", name, same, n)
		}
	}
}
