package graph

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// newBackend is the CPU in float64 or float32, with the matrix library that is the same on every machine.
func newBackend(t testing.TB, float64s bool) kernels.Backend {
	t.Helper()
	b, err := cpu.New(cpu.Options{Float64: float64s, Matrix: "go", Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// random is numbers that depend on the name alone.
func random(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(h.Sum64(), 1))
}

func normal(name string, n int) []float64 {
	r, xs := random(name), make([]float64, n)
	for i := range xs {
		xs[i] = 0.7 * r.NormFloat64()
	}
	return xs
}

// float64s is the elements of a float64 tensor of the CPU.
func float64s(t kernels.Tensor) []float64 { return kernels.Slice[float64](t) }

func tensorOf(xs []float64, shape ...int) kernels.Tensor { return kernels.FromSlice(xs, shape...) }

// bound is a value of given numbers.
func bound(x Exec, name string, xs []float64, shape ...int) V {
	return x.Bind(name, tensorOf(xs, shape...))
}

// dot is Σ y·w, a loss that no operation of the package favours: (1).
func dot(x Exec, y, w V) V {
	return x.Apply(&Op{
		Name: "dot", Out: []Spec{params(x, 1)}, Diff: []int{0},
		Run: func(_ kernels.Backend, out, in []kernels.Tensor) {
			sum, ws := 0.0, float64s(in[1])
			for i, y := range float64s(in[0]) {
				sum += y * ws[i]
			}
			float64s(out[0])[0] = sum
		},
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "gradient of dot", Out: []Spec{in[0].Spec},
				Run: func(_ kernels.Backend, out, in []kernels.Tensor) {
					dy, dst := float64s(in[0])[0], float64s(out[0])
					for i, w := range float64s(in[1]) {
						dst[i] = dy * w
					}
				},
			}, dy, in[1])
		},
	}, y, w)[0]
}

// lift is x itself. Its gradient adds to memory, so that an activation behind it can be a leaf like a trainable tensor.
func lift(x Exec, v V) V {
	return x.Apply(&Op{
		Name: "lift", Out: []Spec{v.Spec}, Diff: []int{0},
		Run: func(b kernels.Backend, out, in []kernels.Tensor) { b.Copy(out[0], in[0]) },
		Grad: func(x Exec, in, _ []V, dy V, _ Ask) []V {
			return x.Apply(&Op{
				Name: "gradient of lift", Out: []Spec{in[0].Spec}, Adds: true,
				Run: func(_ kernels.Backend, out, in []kernels.Tensor) {
					dst := float64s(out[0])
					for i, d := range float64s(in[0]) {
						dst[i] += d
					}
				},
			}, dy)
		},
	}, v)[0]
}

// spoil fills an arena with not-a-numbers, so that whatever reads memory before it was written shows.
func spoil(a *Arena) {
	if a.mem.None() {
		return
	}
	bytes := a.mem.Mem.(kernels.Host)
	for i := range bytes {
		bytes[i] = 0xff
	}
}

// compiled is the program of values and gradients, in an arena of its own that is spoiled.
func compiled(t testing.TB, r *Recorder, keep, sums []V) *Program {
	t.Helper()
	arena := NewArena(r.b)
	p, err := r.Compile(arena, keep, sums)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if err := arena.Grow(); err != nil {
		t.Fatal(err)
	}
	spoil(arena)
	return p
}

func mustRun(t testing.TB, p *Program) {
	t.Helper()
	if err := p.Run(); err != nil {
		t.Fatal(err)
	}
}

// panics fails unless f panics with a message that has want in it.
func panics(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if r := recover(); !strings.Contains(fmt.Sprint(r), want) {
			t.Errorf("panic %v, want %q", r, want)
		}
	}()
	f()
}
