//go:build linux && (amd64 || arm64)

package emulator

import (
	"math"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// openHopper has the kernels of testdata/hopper and a matrix of 20 rows and 72 columns, whose element (r, c) is 100r + c, with boxes of 8 rows: maps,
// one whose chunks lie swapped and one whose do not.
func openHopper(t *testing.T, order Order) (d *Device, maps cuda.Address) {
	t.Helper()
	d = ForTest(t, Options{Sources: "testdata/hopper", Order: order, Hopper: true})
	if err := d.Broken(); err != nil {
		t.Fatal(err)
	}
	const rows, cols = 20, 72
	var values []kernels.BFloat16
	for i := range rows * cols {
		values = append(values, element(i/cols, i%cols))
	}
	m := alloc(t, d, 2*len(values))
	d.Upload(m, bytesOf([rows * cols]kernels.BFloat16(values)))
	maps = alloc(t, d, 256)
	of := cuda.Matrix{At: m, Rows: rows, Cols: cols, Stride: cols, Type: kernels.BF16}
	d.Boxes(maps, []cuda.Box{{Of: of, Rows: 8}, {Of: of, Rows: 8, Cols: 64}})
	return d, maps
}

func element(r, c int) kernels.BFloat16 { return kernels.ToBFloat16(float32(100*r + c)) }

var boxShared = cuda.Launch{Block: [3]int{32}, Shared: 1032}

func TestBoxes(t *testing.T) {
	for _, order := range orders {
		d, maps := openHopper(t, order)
		y := alloc(t, d, 1024)
		for _, at := range [][2]int{{0, 0}, {64, 3}, {-8, 13}, {8, -2}, {71, 19}} {
			for swapped := range 2 {
				d.Launch("box", boxShared, y, maps+cuda.Address(128*(1-swapped)), int32(at[0]), int32(at[1]), int32(1024), int32(1))
				got := get[kernels.BFloat16](t, d, y, 512)
				for i := range got {
					r, c := i/64, i%64
					if swapped == 1 {
						c = (c/8^r)*8 + c%8
					}
					want := kernels.BFloat16(0)
					if row, col := at[1]+r, at[0]+c; row >= 0 && row < 20 && col >= 0 && col < 72 {
						want = element(row, col)
					}
					if got[i] != want {
						t.Fatalf("box at %v, swapped %d, of order %d: element %d is %v, want %v", at, swapped, order, i, got[i].Float32(), want.Float32())
					}
				}
			}
		}
		d.Launch("box", boxShared, y, maps, int32(0), int32(0), int32(1024), int32(0))
		for i, v := range get[kernels.BFloat16](t, d, y, 512) {
			if !math.IsNaN(float64(v.Float32())) {
				t.Fatalf("element %d is %v before anybody has waited for the box", i, v.Float32())
			}
		}
	}
}

func TestBlocksTogether(t *testing.T) {
	for _, order := range orders {
		d, _ := openHopper(t, order)
		n := d.Info().Multiprocessors
		y := alloc(t, d, 4*n)
		d.Clear(y, 4*n)
		d.Launch("together", cuda.Launch{Grid: [3]int{n}}, y)
		equal(t, "what blocks said", get[int32](t, d, y, n), slices.Repeat([]int32{1}, n))
		d.Launch("some", cuda.Launch{Block: [3]int{96}, Shared: 16}, y, int32(64))
		equal(t, "behind a barrier of two warps", get[float32](t, d, y, 1), []float32{1})
		d.Launch("told", cuda.Launch{Block: [3]int{128}, Shared: 4 * 128}, y)
		equal(t, "threads that had arrived", get[float32](t, d, y, 1), []float32{96})
	}
}

func TestLateWarp(t *testing.T) {
	d, _ := openHopper(t, Late)
	y := alloc(t, d, 4*3)
	d.Launch("turns", cuda.Launch{Grid: [3]int{3}, Block: [3]int{64}, Shared: 16}, y)
	got := get[int32](t, d, y, 3)
	if got[0] == 100 || got[1] == 100 || got[2] != 100 {
		t.Errorf("%d turns of the second warp's before the first of each of three blocks went on, expected 100 in the last block alone", got)
	}
}

func TestHopperFaults(t *testing.T) {
	for _, order := range orders {
		d, maps := openHopper(t, order)
		y := alloc(t, d, 1024)
		fault := func(kernel string, l cuda.Launch, want string, args ...any) {
			t.Helper()
			d.Launch(kernel, l, args...)
			if err := d.Sync(); err == nil || !strings.Contains(err.Error(), "kernel "+kernel) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of order %d: %v, want %q", kernel, order, err, want)
			}
		}
		fault("box", boxShared, "it would never come", y, maps, int32(72), int32(0), int32(1024), int32(1))
		fault("box", boxShared, "it would never come", y, maps, int32(0), int32(-8), int32(1024), int32(1))
		fault("box", boxShared, "a box of 1024 bytes arrives at a barrier that expects 1000", y, maps, int32(0), int32(0), int32(1000), int32(1))
		if order != Forward {
			continue // what follows takes a second each
		}
		fault("box", boxShared, "waits in vain at a barrier in shared memory, for 0 arrivals and 24 bytes", y, maps, int32(0), int32(0), int32(1048), int32(1))
		fault("arrivals", cuda.Launch{Block: [3]int{32}, Shared: 8}, "waits in vain at a barrier in shared memory, for 1 arrivals and 0 bytes", int32(2))
		fault("some", cuda.Launch{Block: [3]int{96}, Shared: 16}, "waits in vain at barrier 1, where 64 threads are of 96", y, int32(96))
	}
}
