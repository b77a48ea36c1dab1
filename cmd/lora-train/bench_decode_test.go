package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/router"
	"loratrain/train"
)

// benchDecode is the figures of a measurement of a small model, and the error.
func benchDecode(t *testing.T, args ...string) (decodeBench, error) {
	t.Helper()
	var out, progress bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs(append([]string{"bench", "decode", "--rounds", "2", "--steps", "3", "--json", "-"}, args...))
	failed := root.Execute()
	var r decodeBench
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %v: %s", failed, err, out.String())
	}
	return r, failed
}

// TestBenchDecode holds the figures against each other, and the sizes against sums done by hand.
func TestBenchDecode(t *testing.T) {
	r, err := benchDecode(t, "--shape", "tiny", "--backend", "cpu", "--experts", "4", "--rank", "2", "--context", "20")
	if err != nil {
		t.Fatal(err)
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if !(math.Abs(got-want) <= 1e-9*math.Abs(want)) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	const (
		linears = 2 * (2*128*128 + 2*64*128 + 3*128*384)
		weights = 2 * (linears + 5*128 + 3165*128 + 128) // norms, the output projection, a row of the embedding
		experts = 2 * 2 * 2 * 2 * (2*256 + 2*192 + 3*512)
		routers = 4 * 4 * 2 * (6*128 + 384)
	)
	want := []struct {
		decodeCase
		weights, experts float64
	}{
		{decodeCase{backbone, "", 0, 0, 1, 20}, weights, 0},
		{decodeCase{"fused", router.Token, 4, 2, 1, 20}, weights, experts},
		{decodeCase{"merged", router.Token, 4, 2, 1, 20}, weights + 2*4*linears, experts},
		{decodeCase{"layerwise", router.Layer, 4, 2, 1, 20}, weights, experts + routers},
	}
	if len(r.Rows) != len(want) || r.Rounds != 2 || r.Steps != 3 || r.Model != "tiny" || !strings.HasPrefix(r.Backend, "CPU") || !(r.Copy > 0) {
		t.Fatalf("%+v", r)
	}
	for i, w := range want {
		row := r.Rows[i]
		if row.decodeCase != w.decodeCase || row.Failed != "" || row.RunsAs != oneByOne || row.InParts == "" {
			t.Errorf("row %d: %+v, want %v", i, row, w)
		}
		near(w.Mode+" weights", row.Weights, w.weights)
		near(w.Mode+" experts", row.ExpertBytes, w.experts)
		// Steps see 21, 22 and 23 tokens and write one: 64 numbers each of keys and values in two layers.
		near(w.Mode+" cache", row.Cache, 2*2*64*4*(22+1))
		near(w.Mode+" bytes", row.Bytes, row.Weights+row.ExpertBytes+row.Cache)
		near(w.Mode+" limit", row.LimitMS, 1e3*row.Bytes/r.Copy)
		near(w.Mode+" share", row.Share, row.LimitMS/row.MS.Median)
		near(w.Mode+" tokens", row.TokensPerSecond, 1e3/row.MS.Median)
		if ratio := row.MS.Median / r.Rows[0].MS.Median; i > 0 {
			near(w.Mode+" ratio", row.OfBackbone, ratio)
		} else if row.OfBackbone != 0 {
			t.Errorf("the backbone takes %v of its own time", row.OfBackbone)
		}
		if s := row.MS; !(s.Min > 0) || s.Min > s.Median || s.Median > s.Max {
			t.Errorf("%s: %+v", w.Mode, s)
		}
	}
}

// TestBenchDecodeBatch counts the experts that sequences share once, and has no merged mode.
func TestBenchDecodeBatch(t *testing.T) {
	r, err := benchDecode(t, "--backend", "cpu", "--experts", "4", "--rank", "2", "--context", "5", "--batch", "6")
	if err != nil {
		t.Fatal(err)
	}
	var modes []string
	const one = 2 * 2 * 2 * (2*256 + 2*192 + 3*512) // bytes of an expert
	for _, row := range r.Rows {
		modes = append(modes, row.Mode)
		if row.Cache != 6*2*2*64*4*(7+1) {
			t.Errorf("%s: %v bytes of keys and values", row.Mode, row.Cache)
		}
		// Six tokens of two experts each want three or four of four.
		if row.Mode == "fused" && (row.ExpertBytes < 2.5*one || row.ExpertBytes > 4*one) {
			t.Errorf("%v bytes of experts, one has %d", row.ExpertBytes, one)
		}
	}
	if want := []string{backbone, "fused", "layerwise"}; !slices.Equal(modes, want) {
		t.Errorf("measured are %v, want %v", modes, want)
	}
}

// TestBenchDecodeOfDevice records the steps.
func TestBenchDecodeOfDevice(t *testing.T) {
	b := testgpu.All()[0].Open(t, false)
	was := openCUDA
	defer func() { openCUDA = was }()
	openCUDA = func(int, bool) (kernels.Backend, error) { return b, nil }
	r, err := benchDecode(t, "--backend", "cuda", "--experts", "2", "--rank", "1", "--context", "2", "--steps", "1", "--rounds", "1")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Rows {
		if row.RunsAs != recordedGraph || row.InParts == "" { // the emulator has no kernels for Hopper
			t.Errorf("%s runs as %s, in parts because %q", row.Mode, row.RunsAs, row.InParts)
		}
	}
	if len(r.Rows) != 4 {
		t.Errorf("%+v", r.Rows)
	}
}

// wholes is a backend that runs a step as one operation.
type wholes struct {
	kernels.Backend
	kernels.Stepper
}

// again is a recording of a backend that cannot record.
type again func()

func (r again) Run() { r() }
func (again) Close() {}

func (wholes) Capture(f func()) (kernels.Recording, error) { return again(f), nil }

// TestBenchDecodeOneKernel says so, and names nothing that is in parts.
func TestBenchDecodeOneKernel(t *testing.T) {
	b, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	was := openCUDA
	defer func() { openCUDA = was }()
	openCUDA = func(int, bool) (kernels.Backend, error) { return wholes{b, b.(kernels.Stepper)}, nil }
	r, err := benchDecode(t, "--backend", "cuda", "--context", "3", "-q")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Rows {
		want := oneKernel
		if row.Mode == string(model.Layerwise) {
			want = recordedGraph
		}
		if row.RunsAs != want || (row.InParts == "") != (want == oneKernel) {
			t.Errorf("%s runs as %s, in parts because %q", row.Mode, row.RunsAs, row.InParts)
		}
	}
}

// tight is a backend that has no memory to merge experts into.
type tight struct{ kernels.Backend }

func (tight) FreeMemory() (int, bool) { return 1e6, true }

// TestBenchDecodeGoesOn measures what it can, and tells of the rest.
func TestBenchDecodeGoesOn(t *testing.T) {
	b, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	was := openCUDA
	defer func() { openCUDA = was }()
	openCUDA = func(int, bool) (kernels.Backend, error) { return tight{b}, nil }
	r, err := benchDecode(t, "--backend", "cuda", "--context", "3", "-q")
	const want = "1 of 4 rows not measured; merged, 8 experts of rank 8, batch 1, context 3: " +
		"mode merged: a copy of the weights to merge experts into needs 1.573 MB of memory, and 1.000 MB are free\nuse --mode fused, which needs no copy"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	for _, row := range r.Rows {
		if failed := row.Mode == "merged"; failed != (row.Failed != "") || failed == (row.MS.Median > 0) {
			t.Errorf("%+v", row)
		}
	}
	o := decodeBench{Rows: []decodeRow{{err: errDevice}}}
	if o.failure() != errDevice { //nolint:errorlint // itself
		t.Errorf("of one row: %v", o.failure())
	}
}

// spoils is a backend whose output projection computes NaN for the last of several rows.
type spoils struct{ kernels.Backend }

func (b spoils) Linear(y, x, w, bias, plus kernels.Tensor) {
	b.Backend.Linear(y, x, w, bias, plus)
	if rows, columns := y.Shape[0], y.Shape[1]; rows > 1 && columns == 3165 {
		b.Write(y.View(y.Len()-1, 1), kernels.FromSlice([]float32{float32(math.NaN())}, 1))
	}
}

// TestBenchDecodeIsSound refuses the time of steps whose logits are no numbers.
func TestBenchDecodeIsSound(t *testing.T) {
	b, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := &benchDecodeFlags{shape: "tiny", batch: 2, context: 1, steps: 1, rounds: 1}
	m := decodeMeasurement{f: f, b: spoils{b}, ctx: t.Context(), progress: train.NewProgress(&bytes.Buffer{}, false, true)}
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if err := m.out.failure(); err == nil || err.Error() != "sequence 1 of 2: the model computes NaN" {
		t.Errorf("got %v", err)
	}
}

// TestAllDecodeCases are those that BENCHMARKS.md has, each once and behind its backbone.
func TestAllDecodeCases(t *testing.T) {
	list := allDecodeCases()
	seen, measured := map[decodeCase]bool{}, decodeBench{}
	for _, c := range list {
		if seen[c] || !c.possible() {
			t.Errorf("%v is there twice, or cannot be", c)
		}
		seen[c] = true
		if c.Mode == backbone {
			measured.Rows = append(measured.Rows, decodeRow{decodeCase: c})
		}
		if measured.backboneOf(c) == nil {
			t.Errorf("%v has no backbone before it", c)
		}
	}
	rows := 0
	for _, mode := range []string{backbone, "fused", "merged", "layerwise"} {
		for _, at := range [][2]int{{1, 128}, {4, 128}, {16, 128}, {64, 128}, {1, 2048}, {16, 2048}} {
			for _, e := range [][2]int{{8, 8}, {4, 8}, {16, 8}, {64, 8}, {4, 64}, {8, 64}, {16, 64}, {64, 64}} {
				c := decodeCase{Mode: mode, Batch: at[0], Context: at[1]}
				if mode == backbone && e == [2]int{8, 8} {
					rows++
				} else if mode == backbone || mode == "merged" && at[0] > 1 || e != [2]int{8, 8} && at != [2]int{1, 128} {
					continue
				} else {
					rows++
					c = c.with(model.Mode(mode), e[0], e[1])
				}
				if !seen[c] {
					t.Errorf("%v is not measured", c)
				}
			}
		}
	}
	if rows != len(list) {
		t.Errorf("%d rows, want %d", len(list), rows)
	}
}

// TestDecodeTable shows rows with and without figures.
func TestDecodeTable(t *testing.T) {
	o := decodeBench{Backend: "a card", Model: "m", Adapter: "runs/x", Copy: 3e12, Rounds: 5, Steps: 1}
	row := func(c decodeCase, ms, ratio float64) decodeRow {
		r := decodeRow{decodeCase: c, Weights: 1.2e10, Cache: 1e9, OfBackbone: ratio}
		r.finish(spread{ms, ms - 0.5, ms + 0.5}, o.Copy)
		r.RunsAs, r.InParts = recordedGraph, "heads of 7"
		if ratio == 0 {
			r.RunsAs, r.InParts = oneKernel, ""
		}
		return r
	}
	one := decodeCase{Mode: backbone, Batch: 2, Context: 2048}
	o.Rows = []decodeRow{row(one, 5, 0), row(one.with(model.Fused, 64, 8), 6, 1.2), {decodeCase: one.with(model.Layerwise, 4, 8), err: errDevice}}
	const want = `model     m
adapter   runs/x
backend   a card
copy      3,000 GB/s read and written
measured  5 rounds of 1 step
graphs    heads of 7

  mode       experts  batch  context  ms/step  least   most  tokens/s  GB/step  of copy  of backbone  runs as
  backbone                2    2,048    5.000  4.500  5.500       400       13   86.7 %               one kernel
  fused       64 x 8      2    2,048    6.000  5.500  6.500       333       13   72.2 %        1.200  recorded graph
  layerwise    4 x 8      2    2,048        -
`
	if got := o.table(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if s := o.Rows[2].summary(); s != "" {
		t.Errorf("a row that failed for no reason: %s", s)
	}
	o.Rows[2].Failed = errors.Join(errDevice, errors.New("advice")).Error()
	if s := o.Rows[2].summary(); s != errDevice.Error() {
		t.Errorf("a row that failed: %s", s)
	}
}

// TestBenchDecodeOfAdapter takes the experts of an export.
func TestBenchDecodeOfAdapter(t *testing.T) {
	for g, modes := range map[router.Granularity][]string{
		router.Token: {backbone, "fused", "layerwise"}, router.Block: {backbone, "layerwise"}, router.None: {backbone, "fused", "merged", "layerwise"},
	} {
		t.Run(string(g), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "export")
			base, err := model.OpenDefault()
			if err != nil {
				t.Fatal(err)
			}
			defer base.Close()
			m, err := makeAdapted(base, g, 2)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Export(dir, [][]int32{{1, 2}}); err != nil {
				t.Fatal(err)
			}
			r, err := benchDecode(t, "--adapter", dir, "--backend", "cpu", "--batch", "2", "--context", "3")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, row := range r.Rows {
				got = append(got, row.Mode)
				if row.Mode != backbone && (row.Granularity != g || row.Rank != 2) {
					t.Errorf("%+v", row)
				}
			}
			if !slices.Equal(got, modes) || r.Adapter != dir || r.Model != base.Name {
				t.Errorf("modes %v, adapter %s, model %s", got, r.Adapter, r.Model)
			}
		})
	}
}

// TestBenchDecodePlot writes the drawing of what was measured.
func TestBenchDecodePlot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decode.svg")
	r, err := benchDecode(t, "--backend", "cpu", "--experts", "0", "--context", "1", "--plot", path)
	if err != nil {
		t.Fatal(err)
	}
	drawn, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%.3f ms, ", r.Rows[0].MS.Median); len(r.Rows) != 1 || !strings.Contains(string(drawn), want) {
		t.Errorf("%q is not in %s", want, drawn)
	}
}
