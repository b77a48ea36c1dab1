package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// exact is the backend in which two ways to one number agree almost to the last digit.
var exact = cpu.Options{Float64: true}

// specOf is a small adapter: three experts of rank 3, scale 2/3 and a shared expert of the given rank.
func specOf(g router.Granularity, shared int) AdapterSpec {
	s := AdapterSpec{Granularity: g, Experts: 3, Rank: 3, Shared: shared, Alpha: 2, Targets: AllTargets()}
	if g == router.None {
		s.Experts = 1
	}
	return s
}

// eachKind runs a test for every granularity, with a shared expert and without.
func eachKind(t *testing.T, f func(t *testing.T, spec AdapterSpec)) {
	for _, g := range router.Granularities() {
		for _, shared := range []int{0, 5} {
			t.Run(fmt.Sprintf("%s/shared %d", g, shared), func(t *testing.T) { f(t, specOf(g, shared)) })
		}
	}
}

// positions is how many the models of these tests are placed for.
const positions = 48

// adapted is a tiny model with an adapter in which every number matters: B is not zero and routers are decided.
// With rounded, the experts are such that an export holds them exactly.
func adapted(t testing.TB, model string, o cpu.Options, spec AdapterSpec, rounded bool) (Adapted, *counter) {
	t.Helper()
	return adaptedAt(t, goldenModel(model), o, spec, rounded)
}

// adaptedAt is adapted of the model at a path.
func adaptedAt(t testing.TB, path string, o cpu.Options, spec AdapterSpec, rounded bool) (Adapted, *counter) {
	t.Helper()
	b := newCounter(t, o)
	return adaptedOn(t, path, b, spec, rounded), b
}

// adaptedOn is that on any backend.
func adaptedOn(t testing.TB, path string, b kernels.Backend, spec AdapterSpec, rounded bool) Adapted {
	t.Helper()
	base := mustOpen(t, path)
	placed, err := Place(b, base.Arch, base.Weights, positions)
	if err != nil {
		t.Fatal(err)
	}
	return bankOf(t, base, placed, spec, rounded, 0.3)
}

// bankOf is that for a model that is placed, with B of a size.
func bankOf(t testing.TB, base *Base, placed *Placed, spec AdapterSpec, rounded bool, size float64) Adapted {
	t.Helper()
	b, bank := placed.Backend, NewBank(base.Arch, spec)
	params := kernels.NewHost(b.Param(), bank.Size())
	bank.Init(params, 7)
	r := rand.New(rand.NewPCG(3, 4))
	for _, p := range bank.Params {
		view := bank.View(params, p)
		get, set := getter(view), setter(view)
		for i := range p.Len() {
			x := float32(get(i))
			switch {
			case strings.HasSuffix(p.Name, ".router"):
				x = float32(r.NormFloat64())
			case strings.HasSuffix(p.Name, ".B"):
				x = float32(r.NormFloat64() * size)
			}
			if rounded && !strings.HasSuffix(p.Name, ".router") {
				x = kernels.ToBFloat16(x).Float32()
			}
			set(i, float64(x))
		}
	}
	params, err := b.Place(params)
	if err != nil {
		t.Fatal(err)
	}
	return Adapted{Base: base, Placed: placed, Bank: bank, Params: params}
}

// served writes the export of an adapter, unverified, and opens it.
func served(t testing.TB, m Adapted) (*Served, *checkpoints.Serving) {
	t.Helper()
	tensors, err := m.tensors()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "export")
	if err := checkpoints.WriteServing(dir, m.config(), tensors); err != nil {
		t.Fatal(err)
	}
	e, err := checkpoints.OpenServing(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(m.Placed, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, e
}

func mustDecoder(t testing.TB, base *Placed, s *Served, mode Mode, context int) *Decoder {
	t.Helper()
	return mustDecoderOf(t, base, s, mode, context, 1)
}

func mustDecoderOf(t testing.TB, base *Placed, s *Served, mode Mode, context, sequences int) *Decoder {
	t.Helper()
	d, err := NewDecoder(base, s, mode, context, sequences)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// feed runs tokens of a decoder's only sequence: one of them in a step, more at once.
func feed(d *Decoder, ids ...int32) error {
	if d.lengths[0] == stopped {
		if err := d.Start(0, 0); err != nil {
			return err
		}
	}
	if len(ids) != 1 {
		return d.Extend(0, ids...)
	}
	if err := d.Put(0, ids[0]); err != nil {
		return err
	}
	return d.Step()
}

func mustFeed(t *testing.T, d *Decoder, ids ...int32) []float64 {
	t.Helper()
	if err := feed(d, ids...); err != nil {
		t.Fatal(err)
	}
	return d.Logits(0)
}

// randomIDs is a text of a tiny model's vocabulary.
func randomIDs(seed uint64, vocab, n int) []int32 {
	r, ids := rand.New(rand.NewPCG(seed, 0)), make([]int32, n)
	for i := range ids {
		ids[i] = r.Int32N(int32(vocab))
	}
	return ids
}

// agree reports the first logit that differs by more than tol, relative where it is large.
func agree(t *testing.T, what string, got, want []float64, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d logits, want %d", what, len(got), len(want))
	}
	for i := range want {
		if !(math.Abs(got[i]-want[i]) <= tol*max(1, math.Abs(want[i]))) {
			t.Fatalf("%s: logit %d is %.12g, want %.12g", what, i, got[i], want[i])
		}
	}
}
