package model

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/checkpoints"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// The adapters for peft are in their folders, and hold each expert's own numbers.
func TestExportPEFT(t *testing.T) {
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		m, b := adapted(t, "llama", cpu.Options{}, spec, false)
		dir := filepath.Join(t.TempDir(), "peft")
		if err := m.ExportPEFT(dir); err != nil {
			t.Fatal(err)
		}
		b.settled(t)
		var got []string
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				path, err = filepath.Rel(dir, path)
				got = append(got, path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		adapter := func(folder string) []string {
			return []string{filepath.Join(folder, "adapter_config.json"), filepath.Join(folder, "adapter_model.safetensors")}
		}
		want := adapter("")
		if spec.Granularity != router.None {
			want = slices.Concat(adapter("expert-0"), adapter("expert-1"), adapter("expert-2"), []string{"router.safetensors"})
			if spec.Shared > 0 {
				want = append(want, adapter("shared")...)
			}
		}
		want = append(want, "switch.json")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("files (-want +got):\n%s", diff)
		}
		for e := range spec.Experts {
			folder := filepath.Join(dir, fmt.Sprintf("expert-%d", e))
			if spec.Granularity == router.None {
				folder = dir
			}
			samePEFT(t, m, folder, e)
		}
	})
}

// samePEFT holds expert e in a folder against the columns e·R… of the training layout.
func samePEFT(t *testing.T, m Adapted, folder string, e int) {
	t.Helper()
	spec, rank := m.Bank.Spec, m.Bank.Spec.Rank
	if spec.Granularity == router.None {
		rank += spec.Shared // joined to it
	}
	var c struct {
		Rank  int     `json:"r"`
		Alpha float64 `json:"lora_alpha"`
	}
	if err := json.Unmarshal(read(t, filepath.Join(folder, "adapter_config.json")), &c); err != nil {
		t.Fatal(err)
	}
	if c.Rank != rank || math.Abs(c.Alpha/float64(c.Rank)-spec.Scale()) > 1e-12 {
		t.Errorf("%s: rank %d and alpha %g, want rank %d and a scale of %g", folder, c.Rank, c.Alpha, rank, spec.Scale())
	}
	f, err := checkpoints.Open(filepath.Join(folder, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range m.Bank.Params {
		get := getter(m.Bank.View(m.Params, p))
		module, kind := p.Name[:len(p.Name)-1], p.Name[len(p.Name)-1:]
		switch kind {
		case "A": // A[d, e·R+r] is lora_A[r, d]
			in, columns := p.Shape[0], p.Shape[1]
			a := getter(goldenTensor(t, f, "base_model.model."+module+"lora_A.weight"))
			for i := range rank * in {
				if r, d := i/in, i%in; a(i) != get(d*columns+e*spec.Rank+r) {
					t.Fatalf("%s: %slora_A[%d, %d] is %g, want %g", folder, module, r, d, a(i), get(d*columns+e*spec.Rank+r))
				}
			}
		case "B": // B[e·R+r, o] is lora_B[o, r]
			out := p.Shape[1]
			b := getter(goldenTensor(t, f, "base_model.model."+module+"lora_B.weight"))
			for i := range rank * out {
				if o, r := i/rank, i%rank; b(i) != get((e*spec.Rank+r)*out+o) {
					t.Fatalf("%s: %slora_B[%d, %d] is %g, want %g", folder, module, o, r, b(i), get((e*spec.Rank+r)*out+o))
				}
			}
		}
	}
}
