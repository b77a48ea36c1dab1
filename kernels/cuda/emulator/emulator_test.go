//go:build linux && (amd64 || arm64)

package emulator

import (
	"math"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// orders is forwards, backwards and some at random.
var orders = []Order{Forward, Backward, 7, 8}

func open(t *testing.T, order Order) *Device {
	t.Helper()
	t.Setenv(orderVariable, "")
	d := ForTest(t, Options{Sources: "testdata", Order: order})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func alloc(t *testing.T, d *Device, bytes int) cuda.Address {
	t.Helper()
	a, err := d.Alloc(bytes)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func put[E any](t *testing.T, d *Device, values ...E) cuda.Address {
	t.Helper()
	data := asBytes(values)
	a := alloc(t, d, len(data))
	d.Upload(a, data)
	return a
}

func get[E any](t *testing.T, d *Device, a cuda.Address, n int) []E {
	t.Helper()
	values := make([]E, n)
	d.Download(asBytes(values), a)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	return values
}

func asBytes[E any](s []E) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(*new(E))))
}

func warps(n int) cuda.Launch { return cuda.Launch{Block: [3]int{32 * n}} }

func equal[E comparable](t *testing.T, what string, got, want []E) {
	t.Helper()
	for i := range want {
		if len(got) != len(want) || got[i] != want[i] {
			t.Errorf("%s is %v, want %v", what, got, want)
			return
		}
	}
}

// TestFragments multiplies matrices of small whole numbers, where every product and sum is exact, twice.
func TestFragments(t *testing.T) {
	d := open(t, 7)
	a, b := make([]kernels.BFloat16, 256), make([]kernels.BFloat16, 128)
	turned := make([]kernels.BFloat16, 128)
	for i := range a {
		a[i] = kernels.ToBFloat16(float32(i*i%37 - 11))
	}
	for i := range b {
		b[i] = kernels.ToBFloat16(float32(i*i%29 - 13))
		turned[i%8*16+i/8] = b[i]
	}
	want := make([]float32, 128)
	for i := range want {
		for k := range 16 {
			want[i] += 2 * a[i/8*16+k].Float32() * b[k*8+i%8].Float32()
		}
	}
	for transposed, factor := range [][]kernels.BFloat16{b, turned} {
		c := alloc(t, d, 4*128)
		d.Launch("fragments", warps(1), c, put(t, d, a...), put(t, d, factor...), int32(transposed))
		equal(t, "product", get[float32](t, d, c, 128), want)
	}
}

// TestShuffles compares with the definitions of the CUDA C++ Programming Guide, section "Warp Shuffle Functions".
func TestShuffles(t *testing.T) {
	d := open(t, Backward)
	for _, width := range []int{32, 16, 8, 2} {
		for _, by := range []int{1, 3, 8, 31} {
			y := alloc(t, d, 8*6*32)
			d.Launch("shuffles", warps(1), y, int32(by), int32(width))
			got := get[float64](t, d, y, 6*32)
			for l := range 32 {
				first := l - l%width
				up, down, xor := l-by, l+by, l^by
				if up < first {
					up = l
				}
				if down >= first+width {
					down = l
				}
				if xor >= first+width {
					xor = l
				}
				votes, bits := 4.0, uint32(0)
				if by < 32 {
					votes++
				}
				for i := 0; i < 32; i += by {
					bits |= 1 << i
				}
				want := []float64{float64(first+by%width) + 0.5, float64(up) + 0.5, float64(down), float64(xor), float64(bits), votes}
				for op, w := range want {
					if got[op*32+l] != w {
						t.Errorf("by %d, width %d, operation %d, lane %d: %v, want %v", by, width, op, l, got[op*32+l], w)
					}
				}
			}
		}
	}
}

func TestHalvesOfAWarp(t *testing.T) {
	for _, order := range orders {
		d := open(t, order)
		y := alloc(t, d, 4*32)
		d.Launch("halves", warps(1), y)
		equal(t, "sums", get[int32](t, d, y, 32), slices.Concat(slices.Repeat([]int32{120}, 16), slices.Repeat([]int32{376}, 16)))
	}
}

func TestBarriers(t *testing.T) {
	const blocks, threads = 5, 1024
	x, want := make([]float32, blocks*threads), make([]int32, blocks*threads)
	for i := range x {
		place := i * 389 % threads
		x[i], want[i] = float32(place), int32(place+1)
	}
	for _, order := range orders {
		d := open(t, order)
		y := alloc(t, d, 4*len(x))
		d.Launch("ranks", cuda.Launch{Grid: [3]int{blocks}, Block: [3]int{threads}, Shared: 4 * threads}, y, put(t, d, x...))
		if got := get[int32](t, d, y, len(x)); !slices.Equal(got, want) {
			t.Errorf("order %d: other ranks", order)
		}
	}
}

func TestIndices(t *testing.T) {
	for _, order := range orders {
		d := open(t, order)
		grid, block := [3]int{2, 3, 4}, [3]int{3, 2, 5}
		y := alloc(t, d, 4*24*30*8)
		d.Launch("names", cuda.Launch{Grid: grid, Block: block}, y)
		got := get[int32](t, d, y, 24*30*8)
		for i := range 24 * 30 {
			b, l := i/30, i%30
			want := []int32{int32(b % 2), int32(b / 2 % 3), int32(b / 6), int32(l % 3), int32(l / 3 % 2), int32(l / 6), 2, 5}
			equal(t, "indices", got[i*8:i*8+8], want)
		}
	}
}

func TestArguments(t *testing.T) {
	d := open(t, Forward)
	type mixed struct {
		F float32
		P cuda.Address
		S int16
		L int64
	}
	y, p := alloc(t, d, 8*8), alloc(t, d, 16)
	d.Launch("arguments", cuda.Launch{}, y, int32(-1), mixed{1.5, p, -2, -3}, uint32(math.MaxUint32), int64(-1<<40), float32(2.5), uint64(1<<63))
	equal(t, "arguments", get[float64](t, d, y, 8), []float64{-1, 1.5, -2, -3, math.MaxUint32, -1 << 40, 2.5, 1 << 63})
	equal(t, "through a pointer in a struct", get[float64](t, d, p, 2), []float64{0, 7})
}

func TestSharedMemoryStartsAsNaN(t *testing.T) {
	d := open(t, Forward)
	const blocks = 9
	y := put(t, d, make([]float32, 3*blocks)...)
	d.Launch("leftovers", cuda.Launch{Grid: [3]int{blocks}, Shared: 16}, y)
	for i, v := range get[float32](t, d, y, 3*blocks) {
		if v == v {
			t.Errorf("block %d, variable %d: %v, want NaN", i/3, i%3, v)
		}
	}
}

func TestAsynchronousCopies(t *testing.T) {
	d := open(t, Forward)
	y := alloc(t, d, 20)
	d.Launch("copies", cuda.Launch{}, y, put[float32](t, d, 10, 11, 12, 13, 14, 15, 16, 17))
	got := get[float32](t, d, y, 5)
	if got[0] == got[0] || got[2] == got[2] {
		t.Errorf("before the wait: %v and %v, want NaN", got[0], got[2])
	}
	equal(t, "after the wait", []float32{got[1], got[3], got[4]}, []float32{11, 15, 0})
}

func TestFunctions(t *testing.T) {
	d := open(t, Forward)
	y := alloc(t, d, 48)
	d.Launch("extremes", cuda.Launch{}, y, float32(math.NaN()))
	got := get[float32](t, d, y, 12)
	equal(t, "functions", got[:11], []float32{1, 1, 1, 2, 31, 4, 8, 1, 0.5, 1, 1.015625})
	if got[11] == got[11] {
		t.Errorf("bf16 of NaN is %v", got[11])
	}
}

// TestOrders sees what each order makes of kernels that depend on it: that is how a missing barrier is found.
func TestOrders(t *testing.T) {
	type results struct {
		none, second [64]float32
		block        int32
	}
	seen := map[results]bool{}
	for _, order := range orders {
		d := open(t, order)
		a, b, c := alloc(t, d, 256), alloc(t, d, 256), alloc(t, d, 4)
		d.Launch("no_barrier", warps(2), a)
		d.Launch("no_second_barrier", warps(2), b)
		d.Launch("block_order", cuda.Launch{Grid: [3]int{64}}, c)
		var r results
		for i, v := range get[float32](t, d, a, 64) {
			if v != v {
				v = -2
			}
			r.none[i] = v
		}
		copy(r.second[:], get[float32](t, d, b, 64))
		r.block = get[int32](t, d, c, 1)[0]
		seen[r] = true
		if slices.Index(r.none[:], -2) < 0 {
			t.Errorf("order %d: nobody read what was not written yet", order)
		}
		if slices.Index(r.second[:], -1) < 0 {
			t.Errorf("order %d: nobody read what was overwritten too soon", order)
		}
	}
	if len(seen) != len(orders) {
		t.Errorf("%d orders had %d results", len(orders), len(seen))
	}
}

func TestOrderFromTheEnvironment(t *testing.T) {
	for value, want := range map[string]Order{"": 5, "forward": Forward, "backward": Backward, "99": 99} {
		t.Setenv(orderVariable, value)
		if got, err := (Options{Order: 5}).order(); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", value, got, err, want)
		}
	}
	t.Setenv(orderVariable, "sideways")
	if _, err := Open(Options{}); err == nil || !strings.Contains(err.Error(), "sideways") {
		t.Errorf("%v, want an error that quotes the value", err)
	}
}

// TestProcessorFaultsOfGo checks that a mistake in Go is still Go's to handle.
func TestProcessorFaultsOfGo(t *testing.T) {
	d := open(t, Forward)
	d.Launch("count_up", cuda.Launch{}, alloc(t, d, 4), int32(1))
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var none *int
	*none = 1
}

func TestUnused(t *testing.T) {
	d := open(t, Forward)
	d.Launch("count_up", cuda.Launch{}, alloc(t, d, 4), int32(1))
	other := open(t, Forward)
	if names := other.Unused(); slices.Contains(names, "count_up") || slices.Contains(names, "") || !slices.Contains(names, "never") {
		t.Errorf("%v, want never and not count_up", names)
	}
}
