package main

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// benchSwitch is the figures of a measurement of small weights.
func benchSwitch(t *testing.T, args ...string) switchBench {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"bench", "switch", "--experts", "4", "--rank", "2", "--rounds", "2", "--json", "-"}, args...))
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	var r switchBench
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return r
}

// TestBenchSwitch holds the figures against each other, and the sizes against sums done by hand.
func TestBenchSwitch(t *testing.T) {
	r := benchSwitch(t, "--shape", "tiny", "--backend", "cpu")
	near := func(what string, got, want float64) {
		t.Helper()
		if !(math.Abs(got-want) <= 1e-9*math.Abs(want)) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	const weights = 2 * (2*128*128 + 2*64*128 + 3*128*384)
	near("linear layers", float64(r.Linears), 14)
	near("weights", float64(r.Weights), weights)
	// bf16 is read, float32 written; two experts of rank 2 are read, of (128 + 128), (128 + 64) and (128 + 384) numbers.
	near("bytes", r.Bytes, 6*weights+2*2*2*2*(2*256+2*192+3*512))
	near("rate", r.Rate, r.Bytes/(r.MS.Median/1e3))
	near("share", r.Share, r.Rate/r.Copy)
	near("merges", float64(r.Compared), float64(2+r.Rounds*r.Switches))
	for name, s := range map[string]spread{"ms": r.MS, "in force": r.InForceUS} {
		if !(s.Min > 0) || s.Min > s.Median || s.Median > s.Max {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if r.InForceUS.Median > 1e3*r.MS.Min {
		t.Errorf("what is in force takes %v µs, a switch %v ms", r.InForceUS.Median, r.MS.Min)
	}
	if r.Rounds != 2 || r.Experts != 4 || r.Rank != 2 || r.Model != "tiny" || !strings.HasPrefix(r.Backend, "CPU") {
		t.Errorf("%+v", r)
	}
}

// TestBenchSwitchOfDevice does it where merges can be recorded.
func TestBenchSwitchOfDevice(t *testing.T) {
	b := testgpu.All()[0].Open(t, false)
	was := openCUDA
	defer func() { openCUDA = was }()
	openCUDA = func(int, bool) (kernels.Backend, error) { return b, nil }
	r := benchSwitch(t, "--shape", "tiny", "--backend", "cuda", "--rounds", "1")
	if r.Compared < 3 || r.InForceUS.Median > 1e3*r.MS.Min {
		t.Errorf("%+v", r)
	}
}

// blurs is a backend that adds something to the last of several layers.
type blurs struct{ kernels.Backend }

func (b blurs) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	b.Backend.Merge(m, ids, weights, force, scale)
	if n := len(m.Layers()); n > 1 {
		last := m.Layers()[n-1].Dst
		at := last.View(last.Len()-1, 1)
		b.Sum(at, at, at)
	}
}

// TestBenchSwitchComparesBits finds the layer that is wrong.
func TestBenchSwitchComparesBits(t *testing.T) {
	b, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := switchMeasurement{f: &benchSwitchFlags{shape: "tiny", experts: 2, rank: 1, rounds: 1}, b: blurs{b}, ctx: t.Context()}
	if err = m.run(); err == nil || !strings.Contains(err.Error(), "layers.1.mlp.down_proj has other bits after") {
		t.Errorf("got %v", err)
	}
}

// TestChoices are all legal, and each another than the one before it.
func TestChoices(t *testing.T) {
	b, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, experts := range []int{2, 3, 64} {
		c, err := placeChoices(b, experts)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int32]bool{}
		for i := range choiceCount + 1 {
			ids, weights := c.at(i)
			id, w := kernels.Slice[int32](ids), kernels.Slice[float32](weights)
			if slices.Min(id) < 0 || int(slices.Max(id)) >= experts || id[0] == id[1] || w[0]+w[1] != 1 || w[0] < w[1] {
				t.Errorf("choice %d of %d experts is %v with %v", i, experts, id, w)
			}
			before, beforeW := c.at(i + choiceCount - 1)
			if slices.Equal(id, kernels.Slice[int32](before)) && slices.Equal(w, kernels.Slice[float32](beforeW)) {
				t.Errorf("choice %d of %d experts is the one before it", i, experts)
			}
			seen[id[0]], seen[id[1]] = true, true
		}
		if len(seen) < min(experts, 48) {
			t.Errorf("of %d experts %d are chosen", experts, len(seen))
		}
	}
}
