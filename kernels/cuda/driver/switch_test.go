//go:build gpu

package driver_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// pretends is a device that says it has another compute capability, or another number of multiprocessors.
type pretends struct {
	cuda.Device
	major, processors int
}

func (p pretends) Info() cuda.Info {
	i := p.Device.Info()
	i.Major, i.Minor = p.major, 0
	if p.processors > 0 {
		i.Multiprocessors = p.processors
	}
	return i
}

type switchCase struct {
	tokens, width         int
	experts, rank, shared int
	processors            int // 0: as many as there are
}

// results is what the operations on dense experts give for one case, always from the same inputs.
func (c switchCase) results(t *testing.T, b *cuda.Backend) map[string]kernels.Tensor {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	array := func(typ kernels.Type, rows, cols int, value func() float32) kernels.Tensor {
		host := kernels.NewHost(typ, rows, cols)
		for i := range rows * cols {
			if typ == kernels.BF16 {
				kernels.Slice[kernels.BFloat16](host)[i] = kernels.ToBFloat16(value())
			} else {
				kernels.Slice[float32](host)[i] = value()
			}
		}
		x, err := b.Place(host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Free(x) })
		return x
	}
	normal := func() float32 { return float32(r.NormFloat64()) }
	poison := func() float32 { return float32(math.NaN()) }
	const out = 8
	columns := c.experts*c.rank + c.shared
	x, w := array(kernels.BF16, c.tokens, c.width, normal), array(kernels.BF16, out, c.width, normal)
	hidden := array(kernels.BF16, c.tokens, columns, normal)
	sw := kernels.Switch{
		A: array(kernels.BF16, c.width, columns, normal), B: array(kernels.BF16, columns, c.width, normal), Rank: c.rank, Scale: 1.25,
	}
	if c.experts > 0 {
		sw.Gates = array(kernels.F32, c.tokens, c.experts, r.Float32)
	}
	narrow := sw
	narrow.B = array(kernels.BF16, columns, out, normal)

	got := map[string]kernels.Tensor{
		"y": array(kernels.BF16, c.tokens, out, poison), "u": array(kernels.BF16, c.tokens, columns, poison),
		"du": array(kernels.BF16, c.tokens, columns, poison), "dg": array(kernels.F32, c.tokens, max(c.experts, 1), poison),
		"da": array(kernels.F32, c.width, columns, normal), "db": array(kernels.F32, columns, c.width, normal),
	}
	if c.experts == 0 {
		delete(got, "dg")
	}
	b.SwitchLinear(got["y"], got["u"], x, x, w, kernels.Tensor{}, kernels.Tensor{}, narrow)
	b.SwitchGradHidden(got["du"], got["dg"], x, hidden, sw)
	b.SwitchGradA(got["da"], x, hidden)
	b.SwitchGradB(got["db"], hidden, x, sw)
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	for name, x := range got {
		host := kernels.NewHost(x.Type, x.Shape...)
		b.Read(host, x)
		got[name] = host
	}
	return got
}

// TestGPUSwitch compares the kernels that a card has for itself with the general ones, which the suite and the emulator test.
func TestGPUSwitch(t *testing.T) {
	d := open(t)
	if i := d.Info(); i.Major != 9 || i.Minor != 0 {
		t.Skipf("a card of compute capability %d.%d has no kernels of its own for this; one of 9.0 has", i.Major, i.Minor)
	}
	cases := []switchCase{
		{1, 8, 1, 8, 0, 0},
		{1, 4096, 8, 8, 0, 0},
		{77, 72, 4, 8, 8, 0},
		{63, 576, 5, 3, 1, 0},
		{2049, 4104, 8, 8, 0, 0},
		{333, 328, 5, 10, 6, 0},
		{130, 640, 0, 0, 64, 0},
		{300, 136, 16, 4, 0, 0},
		{300, 136, 32, 2, 0, 0},
		{200, 2048, 64, 1, 0, 0},
		{513, 11008, 8, 7, 8, 0},
		{1100, 1984, 8, 8, 0, 60},
	}
	for _, processors := range []int{9, 14, 17, 20, 40, 45, 64, 70, 85, 90, 180} { // every size of tiles and clusters
		cases = append(cases, switchCase{1100, 1032, 8, 8, 0, processors})
	}
	backend := func(major, processors int) *cuda.Backend {
		b, err := cuda.On(pretends{d, major, processors}, cuda.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	general, own := backend(8, 0), map[int]*cuda.Backend{}
	for _, c := range cases {
		if own[c.processors] == nil {
			own[c.processors] = backend(9, c.processors)
		}
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			want := c.results(t, general)
			got, again := c.results(t, own[c.processors]), c.results(t, own[c.processors])
			for name := range want {
				if !bytes.Equal(got[name].Mem.(kernels.Host), again[name].Mem.(kernels.Host)) {
					t.Errorf("%s has other bits when it is repeated", name)
				}
				most := 1e-5
				switch {
				case name == "y":
					most = 5e-3 // the general way rounds to bf16 once more
				case want[name].Type == kernels.BF16:
					most = 1e-3 // some sums lie at the middle between two numbers
				}
				if diff := distance(got[name], want[name]); !(diff <= most) {
					t.Errorf("%s differs by %.2g of what it is", name, diff)
				}
			}
		})
	}
}

// distance is ‖got − want‖ / ‖want‖.
func distance(got, want kernels.Tensor) float64 {
	at := func(x kernels.Tensor, i int) float64 {
		if x.Type == kernels.BF16 {
			return float64(kernels.Slice[kernels.BFloat16](x)[i].Float32())
		}
		return float64(kernels.Slice[float32](x)[i])
	}
	var d, w float64
	for i := range want.Len() {
		d += math.Pow(at(got, i)-at(want, i), 2)
		w += math.Pow(at(want, i), 2)
	}
	return math.Sqrt(d / w)
}
