package model

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

func TestShapes(t *testing.T) {
	for _, c := range []struct {
		name       string
		parameters int // as the models' pages say
	}{{"llama2-7b", 6738415616}, {"smollm2-135m", 134515008}} {
		a, err := ShapeOf(c.name)
		if err != nil {
			t.Fatal(err)
		}
		n, w := 0, Weights{}
		for _, s := range w.slots(a, [targets]bool{}) {
			n += kernels.Len(s.shape...)
		}
		if n != c.parameters {
			t.Errorf("%s has %d parameters, want %d", c.name, n, c.parameters)
		}
	}
	base, err := OpenDefault()
	if err != nil {
		t.Fatal(err)
	}
	if tiny, err := ShapeOf("tiny"); err != nil || !reflect.DeepEqual(tiny, base.Arch) {
		t.Errorf("tiny is %+v, the embedded model %+v", tiny, base.Arch)
	}
	if _, err := ShapeOf("llama9"); err == nil || !strings.Contains(err.Error(), "llama2-7b") {
		t.Errorf("an unknown shape: %v", err)
	}
}

// TestPlaceRandom looks at every weight: of the right size, none like another, the same for a seed; and a pass is finite.
func TestPlaceRandom(t *testing.T) {
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	a, err := ShapeOf("tiny")
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlaceRandom(b, a, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	same, err := PlaceRandom(b, a, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(elements16(p.weights.Layers[1].W[UpProj]), elements16(same.weights.Layers[1].W[UpProj])) {
		t.Error("the same seed gives other weights")
	}
	seen := [][]kernels.BFloat16{}
	check := func(name string, w kernels.Tensor) {
		x, sum, squares := elements16(w), 0.0, 0.0
		for _, v := range x {
			sum += float64(v.Float32())
			squares += float64(v.Float32()) * float64(v.Float32())
		}
		n := float64(len(x))
		if mean, deviation := sum/n, math.Sqrt(squares/n); math.Abs(mean) > 0.02*6/math.Sqrt(n) || math.Abs(deviation-0.02) > 0.001 {
			t.Errorf("%s has mean %g and deviation %g, want 0 and 0.02", name, mean, deviation)
		}
		for _, other := range seen {
			if slices.Equal(other[:64], x[:64]) {
				t.Errorf("%s begins like another weight", name)
			}
		}
		seen = append(seen, x)
	}
	check("embed", p.weights.Embed)
	for _, l := range p.weights.Layers {
		for target, w := range l.W {
			check(Target(target).String(), w)
		}
		if n := elements16(l.PostNorm); n[0].Float32() != 1 || n[len(n)-1].Float32() != 1 {
			t.Errorf("a norm's weights are %v", n)
		}
	}
	x := graph.NewImmediate(b)
	h := Hidden(x, p.Bind(x), nil, Inputs{IDs: x.Ints([]int32{7, 9}, 2), Pos: x.Ints([]int32{0, 1}, 2), Spans: x.Ints([]int32{0, 0, 0, 1, 0, 0, 0, 2}, 2, 4)})
	for i, v := range kernels.Slice[float32](h.Tensor()) {
		if math.IsNaN(float64(v)) || v == 0 {
			t.Fatalf("element %d of the states is %v", i, v)
		}
	}
}

func elements16(t kernels.Tensor) []kernels.BFloat16 { return kernels.Slice[kernels.BFloat16](t) }

// TestNoiseWraps fills a tensor larger than the pool.
func TestNoiseWraps(t *testing.T) {
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	noise, err := NewNoise(b, kernels.F32, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer noise.Close()
	big, err := noise.Tensor(noiseElements + 1000)
	if err != nil {
		t.Fatal(err)
	}
	x := kernels.Slice[float32](big)
	if !slices.Equal(x[noiseElements:], x[:1000]) || slices.Equal(x[:1000], x[1000:2000]) || slices.Contains(x, 0) {
		t.Error("a tensor larger than the pool is not filled with it")
	}
	if _, err := NewNoise(b, kernels.I32, 3); err == nil {
		t.Error("random ids were made")
	}
}
