package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"loratrain/kernels"
)

// TestMergeTallTiles merges layers of which a tile has more rows than shared memory has of B, for each depth of the product, on one
// multiprocessor, whose blocks take many tiles each.
func TestMergeTallTiles(t *testing.T) {
	bench := newBench(t, 1)
	b := bench.b
	const layers, out, width, experts = 128, 300, 8, 3
	for depth, rank := range map[int]int{1: 5, 2: 16, 4: 31, 8: 63} {
		t.Run(fmt.Sprintf("rank %d", rank), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(rank)))
			normal := func(shape ...int) (kernels.Tensor, []float64) {
				x := make([]float64, kernels.Len(shape...))
				for i := range x {
					x[i] = r.NormFloat64()
				}
				placed := place(t, b, kernels.BF16, x, shape...)
				return placed, fetch(b, placed)
			}
			src, srcs := normal(out, width)
			a, as := normal(experts, rank, width)
			up, ups := normal(experts, rank, out)
			var list []kernels.Merge
			for range layers {
				list = append(list, kernels.Merge{Dst: place(t, b, kernels.BF16, nans(out*width), out, width), Src: src, A: a, B: up})
			}
			ids, weights := []float64{2, 0}, []float64{0.75, -0.5}
			m, err := b.PrepareMerge(list)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			id, weight := place(t, b, kernels.I32, ids, 2), place(t, b, kernels.F32, weights, 2)
			b.Merge(m, id, weight, kernels.Tensor{}, 2)
			if err := b.Sync(); err != nil {
				t.Fatal(err)
			}
			if kernel := fmt.Sprintf("merge_ring_%d", depth); !slices.Contains(bench.dev.launched, kernel) {
				t.Errorf("launched was %v, not %s", bench.dev.launched, kernel)
			}
			for i := range layers {
				got := fetch(b, list[i].Dst)
				for at, g := range got {
					row, column := at/width, at%width
					want, size := srcs[at], math.Abs(srcs[at])
					for k, id := range ids {
						for d := range rank {
							number := int(id)*rank + d
							term := 2 * weights[k] * ups[number*out+row] * as[number*width+column]
							want, size = want+term, size+math.Abs(term)
						}
					}
					// dst is rounded, and so is what A is multiplied by.
					if tol := 0x1p-8*math.Abs(want) + 0x1p-8*size; !(math.Abs(g-want) <= tol) {
						t.Fatalf("layers[%d].Dst[%d %d] is %v, want %v ± %.3g", i, row, column, g, want, tol)
					}
				}
			}
		})
	}
}

// TestMergeOfNoExpert gives ids that no layer has: its weights become NaN, those of layers that have more experts do not, and nothing outside is
// read, which the emulator would report.
func TestMergeOfNoExpert(t *testing.T) {
	b := openEmulated(t, false)
	for _, width := range []int{24, 7} { // through the ring, and not
		for _, ids := range [][]float64{{0, 2}, {-1, 1}, {math.MaxInt32, 0}, {math.MinInt32, 1}} {
			t.Run(fmt.Sprintf("%d %v", width, ids), func(t *testing.T) {
				const out, rank = 19, 3
				normal := func(shape ...int) kernels.Tensor {
					return place(t, b, kernels.BF16, quarters(kernels.Len(shape...)), shape...)
				}
				var list []kernels.Merge
				for _, experts := range []int{2, 3} {
					list = append(list, kernels.Merge{Dst: normal(out, width), Src: normal(out, width), A: normal(experts, rank, width), B: normal(experts, rank, out)})
				}
				m, err := b.PrepareMerge(list)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				// An id below 0 is not in force even if that is what was asked for last.
				force := place(t, b, kernels.I32, append(ids, float64(math.Float32bits(0.5)), float64(math.Float32bits(0.5))), 4)
				if ids[0] >= 0 {
					force = kernels.Tensor{}
				}
				b.Merge(m, place(t, b, kernels.I32, ids, 2), place(t, b, kernels.F32, []float64{0.5, 0.5}, 2), force, 1)
				if err := b.Sync(); err != nil {
					t.Fatal(err)
				}
				for i, experts := range []float64{2, 3} {
					none := min(ids[0], ids[1]) < 0 || max(ids[0], ids[1]) >= experts
					for at, g := range fetch(b, list[i].Dst) {
						if math.IsNaN(g) != none {
							t.Fatalf("of %v experts %v give %v at [%d %d]", experts, ids, g, at/width, at%width)
						}
					}
				}
			})
		}
	}
}

// TestMergeOfAnotherBackend is a mistake in the program: the table has this backend's types.
func TestMergeOfAnotherBackend(t *testing.T) {
	b := openEmulated(t, false)
	m, err := b.Exact().PrepareMerge(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	b.Merge(m, place(t, b, kernels.I32, []float64{0}, 1), place(t, b, kernels.F32, []float64{1}, 1), kernels.Tensor{}, 1)
}
