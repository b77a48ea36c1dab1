package cuda_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/emulator"
)

// spy is a device that pretends to have more multiprocessors and writes down what is launched.
type spy struct {
	cuda.Device
	processors int
	launched   []string
}

func (s *spy) Info() cuda.Info {
	i := s.Device.Info()
	i.Multiprocessors = s.processors
	return i
}

func (s *spy) Launch(kernel string, l cuda.Launch, args ...any) {
	s.launched = append(s.launched, kernel)
	s.Device.Launch(kernel, l, args...)
}

// bench is a backend in bf16, and numbers for it.
type bench struct {
	t    *testing.T
	b    *cuda.Backend
	dev  *spy
	rand *rand.Rand
}

func newBench(t *testing.T, processors int) *bench {
	dev := &spy{Device: emulator.ForTest(t, emulator.Options{}), processors: processors}
	b, err := cuda.On(dev, cuda.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{t, b, dev, rand.New(rand.NewPCG(1, 2))}
}

// array is a matrix of numbers that its type can hold, and where it lies on the device, between NaNs.
type array struct {
	rows, cols int
	x          []float64
	t          kernels.Tensor
}

func (a array) at(i, j int) float64 { return a.x[i*a.cols+j] }

const margin = 64 // elements before and behind an array; it stays aligned

func (h *bench) array(typ kernels.Type, rows, cols int, value func(i, j int) float64) array {
	h.t.Helper()
	n := rows * cols
	host := kernels.NewHost(typ, n+2*margin)
	a := array{rows: rows, cols: cols, x: make([]float64, n)}
	for i := range n + 2*margin {
		v := math.NaN()
		if i >= margin && i < margin+n {
			v = value((i-margin)/cols, (i-margin)%cols)
		}
		stored := float32(v)
		if typ == kernels.BF16 {
			stored = kernels.ToBFloat16(stored).Float32()
			kernels.Slice[kernels.BFloat16](host)[i] = kernels.ToBFloat16(stored)
		} else {
			kernels.Slice[float32](host)[i] = stored
		}
		if i >= margin && i < margin+n {
			a.x[i-margin] = float64(stored)
		}
	}
	whole, err := h.b.Place(host)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.b.Free(whole) })
	a.t = whole.View(margin, rows, cols)
	return a
}

func (h *bench) normal(typ kernels.Type, rows, cols int) array {
	return h.array(typ, rows, cols, func(int, int) float64 { return h.rand.NormFloat64() })
}

func (h *bench) poison(typ kernels.Type, rows, cols int) array {
	return h.array(typ, rows, cols, func(int, int) float64 { return math.NaN() })
}

// read is what the device has in a now.
func (h *bench) read(a array) array {
	host := kernels.NewHost(a.t.Type, a.rows, a.cols)
	h.b.Read(host, a.t)
	a.x = make([]float64, a.rows*a.cols)
	for i := range a.x {
		if a.t.Type == kernels.BF16 {
			a.x[i] = float64(kernels.Slice[kernels.BFloat16](host)[i].Float32())
		} else {
			a.x[i] = float64(kernels.Slice[float32](host)[i])
		}
	}
	return a
}

// product is one element of a sum of products: want, and the sum of the magnitudes.
func product(n int, a, b func(k int) float64) (want, size float64) {
	for k := range n {
		p := a(k) * b(k)
		want += p
		size += math.Abs(p)
	}
	return want, size
}

// compare fails where got is further from want than rounding once and sums of float32 explain.
func (h *bench) compare(name string, got array, want func(i, j int) (want, size float64)) {
	h.t.Helper()
	once := 0x1p-23
	if got.t.Type == kernels.BF16 {
		once = 0x1p-8
	}
	wrong := 0
	for i := range got.rows {
		for j := range got.cols {
			w, size := want(i, j)
			if tol := once*math.Abs(w) + 0x1p-18*size; math.Abs(got.at(i, j)-w) <= tol {
				continue
			} else if wrong++; wrong <= 3 {
				h.t.Errorf("%s[%d %d] is %v, want %v ± %.3g", name, i, j, got.at(i, j), w, tol)
			}
		}
	}
	if wrong > 3 {
		h.t.Errorf("%d elements of %s are wrong", wrong, name)
	}
}

// twice runs op two times, the outputs from the same state, and wants a kernel with this prefix and the same bits.
func (h *bench) twice(kernel string, op func(), outputs ...array) {
	h.t.Helper()
	h.dev.launched = nil
	var before, first []kernels.Tensor
	for _, o := range outputs {
		host := kernels.NewHost(o.t.Type, o.rows, o.cols)
		h.b.Read(host, o.t)
		before = append(before, host)
	}
	op()
	if !slices.ContainsFunc(h.dev.launched, func(s string) bool { return strings.HasPrefix(s, kernel) }) {
		h.t.Errorf("launched %v, expected %s", h.dev.launched, kernel)
	}
	for i, o := range outputs {
		host := kernels.NewHost(o.t.Type, o.rows, o.cols)
		h.b.Read(host, o.t)
		first = append(first, host)
		h.b.Write(o.t, before[i])
	}
	op()
	for i, o := range outputs {
		host := kernels.NewHost(o.t.Type, o.rows, o.cols)
		h.b.Read(host, o.t)
		if !bytes.Equal(host.Mem.(kernels.Host), first[i].Mem.(kernels.Host)) {
			h.t.Errorf("output %d of %s has other bits when it is repeated", i, kernel)
		}
	}
	if err := h.b.Sync(); err != nil {
		h.t.Fatal(err)
	}
}

// thinCase is a shape for the kernels of thin.cuh.
type thinCase struct {
	tokens, width         int
	experts, rank, shared int
	processors            int
}

func (n thinCase) cols() int { return n.experts*n.rank + n.shared }

func (n thinCase) String() string {
	return fmt.Sprintf("%d tokens of %d, %d·%d+%d columns, %d multiprocessors", n.tokens, n.width, n.experts, n.rank, n.shared, n.processors)
}

var thinCases = []thinCase{
	{1, 8, 1, 8, 0, 3},
	{1, 1536, 8, 2, 0, 132},
	{63, 576, 5, 3, 1, 3},
	{64, 64, 8, 8, 0, 132},
	{65, 1536, 8, 8, 0, 132},
	{200, 584, 64, 1, 0, 3},
	{200, 1536, 8, 8, 8, 132},
	{300, 136, 16, 16, 0, 3},
	{65, 200, 4, 8, 0, 132},
	{65, 576, 0, 0, 128, 132},
	{63, 1544, 8, 32, 0, 3},
	{130, 640, 3, 64, 8, 132},
	{1100, 72, 2, 16, 0, 132},
	{700, 200, 3, 66, 10, 132},
}

// gates is powers of two, so that s·(u ⊙ Ĝ) is exact in bf16.
func (n thinCase) gates(h *bench) array {
	return h.array(kernels.F32, n.tokens, n.experts, func(t, e int) float64 {
		return []float64{0, 1, 0.5, 0.25}[h.rand.IntN(4)]
	})
}

const thinScale = 0.5

// gated is an element of s·(u ⊙ Ĝ).
func (n thinCase) gated(u, gates array, t, c int) float64 {
	if c < n.experts*n.rank {
		return thinScale * u.at(t, c) * gates.at(t, c/n.rank)
	}
	return thinScale * u.at(t, c)
}

func (n thinCase) bank(a, b, gates array) kernels.Switch {
	sw := kernels.Switch{A: a.t, B: b.t, Rank: n.rank, Scale: thinScale}
	if n.experts > 0 {
		sw.Gates = gates.t
	}
	return sw
}

// eachThin tests shapes and alignments that the kernels for few columns are for, which the suite's are not.
func eachThin(t *testing.T, test func(h *bench, n thinCase)) {
	for _, n := range thinCases {
		t.Run(n.String(), func(t *testing.T) { test(newBench(t, n.processors), n) })
	}
}

func TestSwitchLinearOnTensorCores(t *testing.T) {
	eachThin(t, func(h *bench, n thinCase) {
		const out = 24
		x, z, w := h.normal(kernels.BF16, n.tokens, n.width), h.normal(kernels.BF16, n.tokens, n.width), h.normal(kernels.BF16, out, n.width)
		a, b := h.normal(kernels.BF16, n.width, n.cols()), h.normal(kernels.BF16, n.cols(), out)
		gates, plus := n.gates(h), h.normal(kernels.BF16, n.tokens, out)
		y, u := h.poison(kernels.BF16, n.tokens, out), h.poison(kernels.BF16, n.tokens, n.cols())
		h.twice("switch_hidden_", func() { h.b.SwitchLinear(y.t, u.t, x.t, z.t, w.t, kernels.Tensor{}, plus.t, n.bank(a, b, gates)) }, y, u)
		u, y = h.read(u), h.read(y)
		h.compare("u", u, func(t, c int) (want, size float64) {
			return product(n.width, func(i int) float64 { return z.at(t, i) }, func(i int) float64 { return a.at(i, c) })
		})
		h.compare("y", y, func(t, o int) (want, size float64) {
			base, baseSize := product(n.width, func(i int) float64 { return x.at(t, i) }, func(i int) float64 { return w.at(o, i) })
			mixed, mixedSize := product(n.cols(), func(c int) float64 { return n.gated(u, gates, t, c) }, func(c int) float64 { return b.at(c, o) })
			// What plus and the experts add is rounded before the rest is added to it.
			first := plus.at(t, o) + mixed
			return base + first, baseSize + mixedSize + math.Abs(plus.at(t, o)) + 0x1p10*math.Abs(first)
		})
	})
}

func TestSwitchGradHiddenOnTensorCores(t *testing.T) {
	eachThin(t, func(h *bench, n thinCase) {
		dy, u := h.normal(kernels.BF16, n.tokens, n.width), h.normal(kernels.BF16, n.tokens, n.cols())
		b, gates := h.normal(kernels.BF16, n.cols(), n.width), n.gates(h)
		du, dg := h.poison(kernels.BF16, n.tokens, n.cols()), h.poison(kernels.F32, n.tokens, n.experts)
		h.twice("switch_grad_hidden_", func() { h.b.SwitchGradHidden(du.t, dg.t, dy.t, u.t, n.bank(array{}, b, gates)) }, du, dg)
		du, dg = h.read(du), h.read(dg)
		v := func(t, c int) (want, size float64) {
			want, size = product(n.width, func(o int) float64 { return dy.at(t, o) }, func(o int) float64 { return b.at(c, o) })
			return thinScale * want, thinScale * size
		}
		h.compare("du", du, func(t, c int) (want, size float64) {
			want, size = v(t, c)
			if c < n.experts*n.rank {
				return want * gates.at(t, c/n.rank), size
			}
			return want, size
		})
		h.compare("dg", dg, func(t, e int) (want, size float64) {
			for c := e * n.rank; c < (e+1)*n.rank; c++ {
				w, s := v(t, c)
				want += w * u.at(t, c)
				size += s * math.Abs(u.at(t, c))
			}
			return want, size
		})
	})
}

func TestSwitchGradAOnTensorCores(t *testing.T) {
	eachThin(t, func(h *bench, n thinCase) {
		z, du := h.normal(kernels.BF16, n.tokens, n.width), h.normal(kernels.BF16, n.tokens, n.cols())
		before := h.normal(kernels.F32, n.width, n.cols())
		h.twice("switch_grad_a_", func() { h.b.SwitchGradA(before.t, z.t, du.t) }, before)
		h.compare("da", h.read(before), func(i, c int) (want, size float64) {
			want, size = product(n.tokens, func(t int) float64 { return z.at(t, i) }, func(t int) float64 { return du.at(t, c) })
			return want + before.at(i, c), size + math.Abs(before.at(i, c))
		})
	})
}

func TestSwitchGradBOnTensorCores(t *testing.T) {
	eachThin(t, func(h *bench, n thinCase) {
		u, dy, gates := h.normal(kernels.BF16, n.tokens, n.cols()), h.normal(kernels.BF16, n.tokens, n.width), n.gates(h)
		before := h.normal(kernels.F32, n.cols(), n.width)
		kernel := "switch_grad_b_"
		if n.experts > 0 && n.experts%4 == 0 && n.experts <= 16 && n.rank%8 == 0 {
			kernel += "gated_"
		}
		h.twice(kernel, func() { h.b.SwitchGradB(before.t, u.t, dy.t, n.bank(array{}, array{}, gates)) }, before)
		h.compare("db", h.read(before), func(c, o int) (want, size float64) {
			want, size = product(n.tokens, func(t int) float64 { return n.gated(u, gates, t, c) }, func(t int) float64 { return dy.at(t, o) })
			return want + before.at(c, o), size + math.Abs(before.at(c, o))
		})
	})
}
