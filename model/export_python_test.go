package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/x448/float16"

	"loratrain/checkpoints"
	"loratrain/internal/testpython"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

const exportReader = "../scripts/serving/read_export.py"

// pythonTolerances are how far our logits may be from the script's, which are computed in float64 from the same files; relative to
// the logit where that is above 1. What float64 leaves is the order of sums.
var pythonTolerances = []struct {
	name string
	o    cpu.Options
	tol  float64
}{{"float32", cpu.Options{}, 1e-4}, {"float64", exact, 1e-9}}

// pythonCase is one export that both sides run.
type pythonCase struct {
	base string // its folder
	spec AdapterSpec
	tied bool // its routers have rows of zeros, so that all tokens meet equal logits
}

func (c pythonCase) String() string {
	s := fmt.Sprintf("%s, granularity %s, shared rank %d, on %v", filepath.Base(c.base), c.spec.Granularity, c.spec.Shared, c.spec.Targets)
	if c.tied {
		s += ", ties"
	}
	return s
}

// pythonCases are every granularity with a shared expert and without, with ties, on every architecture and on some layers only,
// and a base whose digest takes more than to hash a file.
func pythonCases(t *testing.T) (list []pythonCase) {
	for _, g := range router.Granularities() {
		for _, shared := range []int{0, 5} {
			list = append(list, pythonCase{goldenModel("llama"), specOf(g, shared), false})
		}
		if g != router.None {
			list = append(list, pythonCase{goldenModel("llama"), specOf(g, 0), true})
		}
	}
	for i, model := range []string{"llama31", "mistral", "qwen2", "qwen3"} {
		some := specOf(router.Granularities()[(i+1)%4], i)
		some.Targets = [][]Target{{QProj, DownProj}, {KProj}, {VProj, OProj, UpProj}, {GateProj}}[i]
		list = append(list, pythonCase{goldenModel(model), specOf(router.Granularities()[i], 2), false}, pythonCase{goldenModel(model), some, false})
	}
	return append(list, pythonCase{halfModel(t), specOf(router.Token, 0), false})
}

// halfModel is a tiny Llama in F16, with tensors that mean nothing: a copy of the embedding as output projection, a rotary cache.
func halfModel(t *testing.T) (dir string) {
	t.Helper()
	dir = variant(t, "llama", nil)
	retype(t, dir, func(x checkpoints.Tensor) (checkpoints.Tensor, bool) {
		values, err := x.Float32s()
		x.Type, x.Data = checkpoints.F16, nil
		for _, v := range values {
			x.Data = binary.LittleEndian.AppendUint16(x.Data, float16.Fromfloat32(v).Bits())
		}
		return x, err == nil
	})
	tensors := tensorsOf(t, dir)
	for _, x := range tensors {
		if x.Name == "model.embed_tokens.weight" {
			x.Name = "lm_head.weight"
			tensors = append(tensors, x)
		}
	}
	cache := checkpoints.Float32Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", []int{4}, make([]float32, 4))
	writeWeights(t, filepath.Join(dir, "model.safetensors"), append(tensors, cache))
	return dir
}

// export writes the adapter of a case, unverified.
func (c pythonCase) export(t *testing.T) (dir string) {
	t.Helper()
	m, _ := adaptedAt(t, c.base, cpu.Options{}, c.spec, false)
	for _, p := range m.Bank.Params {
		if c.tied && p.router() { // all but the first expert: they tie for the first place or for the second
			clear(kernels.Slice[float32](m.Bank.View(m.Params, p))[p.Shape[1]:])
		}
	}
	tensors, err := m.tensors()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "export")
	if err := checkpoints.WriteServing(dir, m.config(), tensors); err != nil {
		t.Fatal(err)
	}
	return dir
}

// compare decodes with an export in every mode and precision, a token at a time, and holds the logits against the script's (T, V).
func (c pythonCase) compare(t *testing.T, dir string, ids []int32, want kernels.Tensor) {
	t.Helper()
	e, err := checkpoints.OpenServing(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	base, ref := mustOpen(t, c.base), getter(want)
	if vocab := base.Arch.Vocab; !slices.Equal(want.Shape, []int{len(ids), vocab}) {
		t.Fatalf("%v: the script's logits are %v, want %v", c, want.Shape, []int{len(ids), vocab})
	}
	for _, p := range pythonTolerances {
		placed, err := Place(newCounter(t, p.o), base.Arch, base.Weights, len(ids))
		if err != nil {
			t.Fatal(err)
		}
		s, err := Serve(placed, e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		for _, mode := range Modes(c.spec.Granularity) {
			d, tol := mustDecoder(t, placed, s, mode, len(ids)), p.tol
			if mode == Layerwise && c.spec.Granularity == router.Token {
				tol = max(tol, 1e-5) // gates are computed, where the table has them rounded to float32
			}
			for i, id := range ids {
				largest, at := 0.0, 0
				for k, x := range mustFeed(t, d, id) {
					y := ref(i*base.Arch.Vocab + k)
					off := math.Abs(x-y) / max(1, math.Abs(y))
					if off > largest || math.IsNaN(off) {
						largest, at = off, k
					}
					if math.IsNaN(off) {
						break
					}
				}
				if !(largest <= tol) {
					t.Errorf("%v: %s, mode %s: after token %d (id %d) logit %d differs most, by %.3g, want %g at most", c, p.name, mode, i, id, at, largest, tol)
					break
				}
			}
		}
	}
}

// Another language reads exports by FORMAT.md alone and comes to the same logits.
func TestPythonReadsExports(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves it out: it starts Python with torch")
	}
	testpython.Need(t, "torch, safetensors, numpy")
	ids, text := randomIDs(21, 97, 19), []string{}
	for _, id := range ids {
		text = append(text, fmt.Sprint(id))
	}
	out, cases, dirs := filepath.Join(t.TempDir(), "logits.safetensors"), pythonCases(t), []string{}
	args := []string{exportReader, "--ids", strings.Join(text, ","), "--out", out, "--reference", *golden}
	for _, c := range cases {
		dirs = append(dirs, c.export(t))
		args = append(args, c.base, dirs[len(dirs)-1])
	}
	testpython.Run(t, args...)
	f, err := checkpoints.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, c := range cases {
		c.compare(t, dirs[i], ids, goldenTensor(t, f, dirs[i]))
	}

	// The digest tells it which base is meant: models of equal sizes are not taken for each other.
	said, err := testpython.Try(exportReader, "--ids", "1", "--out", out, goldenModel("llama"), dirs[slices.IndexFunc(cases, func(c pythonCase) bool {
		return c.base == goldenModel("llama31")
	})])
	if err == nil || !strings.Contains(said, "made for base tiny-llama31 (sha256:") {
		t.Errorf("another base: %v, %q, want a refusal", err, said)
	}
}
