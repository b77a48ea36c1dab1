//go:build gpu

package driver_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// mergeNoise fills tensors with random numbers of which there are not too many.
type mergeNoise struct {
	t    *testing.T
	b    *cuda.Backend
	pool kernels.Tensor
	rand *rand.Rand
}

func newMergeNoise(t *testing.T, b *cuda.Backend, deviation float64) *mergeNoise {
	n := &mergeNoise{t: t, b: b, rand: rand.New(rand.NewPCG(7, 8))}
	host := kernels.NewHost(kernels.BF16, 1<<21)
	for i, x := 0, kernels.Slice[kernels.BFloat16](host); i < len(x); i++ {
		x[i] = kernels.ToBFloat16(float32(deviation * n.rand.NormFloat64()))
	}
	n.pool = n.alloc(kernels.BF16, host.Len())
	b.Write(n.pool, host)
	return n
}

func (n *mergeNoise) alloc(typ kernels.Type, shape ...int) kernels.Tensor {
	n.t.Helper()
	x, err := n.b.Alloc(typ, shape...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.b.Free(x) })
	return x
}

func (n *mergeNoise) tensor(shape ...int) kernels.Tensor {
	n.t.Helper()
	x := n.alloc(kernels.BF16, shape...)
	for from := 0; from < x.Len(); {
		at := n.rand.IntN(n.pool.Len() / 2)
		count := min(x.Len()-from, n.pool.Len()-at)
		n.b.Copy(x.View(from, count), n.pool.View(at, count))
		from += count
	}
	return x
}

func (n *mergeNoise) prepare(layers []kernels.Merge) kernels.Merging {
	n.t.Helper()
	m, err := n.b.PrepareMerge(layers)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(m.Close)
	return m
}

func (n *mergeNoise) read(x kernels.Tensor) kernels.Tensor {
	n.t.Helper()
	host := kernels.NewHost(x.Type, x.Shape...)
	n.b.Read(host, x)
	if err := n.b.Sync(); err != nil {
		n.t.Fatal(err)
	}
	return host
}

// TestGPUMerge compares the kernels of merge_ring.cu, which take what lies at round places, with the general one.
func TestGPUMerge(t *testing.T) {
	b, err := cuda.On(open(t), cuda.Options{})
	if err != nil {
		t.Fatal(err)
	}
	noise := newMergeNoise(t, b, 1)
	mixed := [][2]int{{192, 576}, {1, 8}, {1536, 576}, {576, 1536}, {77, 72}, {33, 136}, {513, 520}}
	for _, c := range []struct {
		experts, rank, n int
		shapes           [][2]int // of the weights: rows, columns
	}{
		{8, 8, 2, mixed},
		{8, 1, 2, mixed},
		{4, 13, 2, mixed},
		{4, 23, 2, mixed},
		{64, 8, 2, mixed},
		{3, 64, 2, mixed},
		{2, 64, 1, mixed},
		{2, 40, 3, mixed},
		{1, 8, 1, mixed[:1]},
		{8, 8, 2, [][2]int{{4096, 11008}, {11008, 4096}, {4099, 4104}}},
		{8, 64, 2, [][2]int{{4096, 11008}, {11008, 4096}, {4099, 4104}}},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			noise := *noise
			noise.t = t
			var fast, general []kernels.Merge
			for _, s := range c.shapes {
				out, width := s[0], s[1]
				l := kernels.Merge{
					Dst: noise.alloc(kernels.BF16, out, width), Src: noise.tensor(out, width),
					A: noise.tensor(c.experts, c.rank, width), B: noise.tensor(c.experts, c.rank, out),
				}
				fast = append(fast, l)
				// One element further there is no round place, so that none of these goes through the ring.
				l.Dst = noise.alloc(kernels.BF16, out*width+1).View(1, out, width)
				general = append(general, l)
			}
			ids, weights := noise.alloc(kernels.I32, c.n), noise.alloc(kernels.F32, c.n)
			hostIDs, hostWeights := kernels.NewHost(kernels.I32, c.n), kernels.NewHost(kernels.F32, c.n)
			for k := range c.n {
				kernels.Slice[int32](hostIDs)[k] = int32((c.experts - 1 + k) % c.experts)
				kernels.Slice[float32](hostWeights)[k] = 0.3 + 0.2*float32(k)
			}
			b.Write(ids, hostIDs)
			b.Write(weights, hostWeights)
			scale := 1 / math.Sqrt(float64(c.n*c.rank))
			got, want := noise.prepare(fast), noise.prepare(general)
			b.Merge(want, ids, weights, kernels.Tensor{}, scale)
			var before [][]byte
			for try := range 3 {
				b.Merge(got, ids, weights, kernels.Tensor{}, scale)
				for i, l := range fast {
					x := noise.read(l.Dst)
					now := []byte(x.Mem.(kernels.Host))
					if try == 0 {
						before = append(before, now)
						sameMerge(t, fmt.Sprintf("layers[%d], %v", i, c.shapes[i]), x, noise.read(general[i].Dst))
					} else if !bytes.Equal(now, before[i]) {
						t.Errorf("layers[%d], %v: other bits when it is merged again", i, c.shapes[i])
					}
					b.Zero(l.Dst)
				}
			}
		})
	}
}

// sameMerge compares weights, all of about 1, that were rounded to bf16 and so were their parts.
func sameMerge(t *testing.T, what string, got, want kernels.Tensor) {
	t.Helper()
	x, y := kernels.Slice[kernels.BFloat16](got), kernels.Slice[kernels.BFloat16](want)
	for i := range x {
		g, w := float64(x[i].Float32()), float64(y[i].Float32())
		if !(math.Abs(g-w) <= 0.03*(1+math.Abs(w))) {
			t.Errorf("%s: element [%d %d] is %v, want %v", what, i/got.Shape[1], i%got.Shape[1], g, w)
			return
		}
	}
	if d := distance(got, want); !(d <= 3e-3) {
		t.Errorf("%s differs by %.2g of what it is", what, d)
	}
}

// TestGPUMergeMany switches the weights of a model of SmolLM2-135M's shape again and again, LORA_SWITCHES times if that is set, and wants the bits
// of a fresh merge of the last choice.
func TestGPUMergeMany(t *testing.T) {
	count := 2000
	if s := os.Getenv("LORA_SWITCHES"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil || count < 1 {
			t.Fatalf("LORA_SWITCHES is %q, expected a number of switches", s)
		}
	}
	b, err := cuda.On(open(t), cuda.Options{})
	if err != nil {
		t.Fatal(err)
	}
	noise := newMergeNoise(t, b, 0.02)
	const experts, rank, choices, top = 8, 8, 4096, 2
	var serving, fresh []kernels.Merge
	for range 30 {
		for _, s := range [][2]int{{576, 576}, {192, 576}, {192, 576}, {576, 576}, {1536, 576}, {1536, 576}, {576, 1536}} {
			l := kernels.Merge{
				Dst: noise.alloc(kernels.BF16, s[0], s[1]), Src: noise.tensor(s[0], s[1]),
				A: noise.tensor(experts, rank, s[1]), B: noise.tensor(experts, rank, s[0]),
			}
			serving = append(serving, l)
			l.Dst = noise.alloc(kernels.BF16, s[0], s[1])
			fresh = append(fresh, l)
		}
	}
	ids, weights := kernels.NewHost(kernels.I32, top*choices), kernels.NewHost(kernels.F32, top*choices)
	for i := range choices {
		first, w := noise.rand.IntN(experts), 0.5+noise.rand.Float32()/2
		copy(kernels.Slice[int32](ids)[top*i:], []int32{int32(first), int32((first + 1 + noise.rand.IntN(experts-1)) % experts)})
		copy(kernels.Slice[float32](weights)[top*i:], []float32{w, 1 - w})
	}
	id, weight, last := noise.alloc(kernels.I32, top*choices), noise.alloc(kernels.F32, top*choices), noise.alloc(kernels.I32, 2*top)
	b.Write(id, ids)
	b.Write(weight, weights)
	b.Write(last, kernels.FromSlice([]int32{-1, -1, -1, -1}, 2*top))
	m, f := noise.prepare(serving), noise.prepare(fresh)
	const scale, parts = 2, 8
	done, choice := 0, 0
	for part := range parts {
		for ; done < count*(part+1)/parts; done++ {
			choice = noise.rand.IntN(choices)
			b.Merge(m, id.View(top*choice, top), weight.View(top*choice, top), last, scale)
		}
		if done == 0 {
			continue
		}
		b.Merge(f, id.View(top*choice, top), weight.View(top*choice, top), kernels.Tensor{}, scale)
		for i := range serving {
			got, want := noise.read(serving[i].Dst), noise.read(fresh[i].Dst)
			if !bytes.Equal(got.Mem.(kernels.Host), want.Mem.(kernels.Host)) {
				t.Fatalf("after %d switches layers[%d] has other bits than a fresh merge", done, i)
			}
		}
	}
	t.Logf("after %d switches, compared %d times, the weights have the bits of a fresh merge", done, parts)
}
