package model

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// An export of any adapter verifies, says how far it is from what was trained, and gives all its memory back.
func TestExport(t *testing.T) {
	check := func(t *testing.T, model string, o cpu.Options, spec AdapterSpec, rounded bool, between, least, most float64) {
		t.Helper()
		m, b := adapted(t, model, o, spec, rounded)
		vocab, dir := m.Base.Arch.Vocab, filepath.Join(t.TempDir(), "export")
		a, err := m.Export(dir, [][]int32{randomIDs(1, vocab, 11), {5}, randomIDs(2, vocab, positions)})
		if err != nil {
			t.Fatal(err)
		}
		if a.Prompts != 3 || !slices.Equal(a.Modes, Modes(spec.Granularity)) {
			t.Errorf("%d prompts in the modes %v, want 3 in %v", a.Prompts, a.Modes, Modes(spec.Granularity))
		}
		if !(a.Between >= 0 && a.Between <= between) || !(a.Rounding >= least && a.Rounding <= most) {
			t.Errorf("modes differ by %g and rounding by %g, want at most %g, and %g to %g", a.Between, a.Rounding, between, least, most)
		}
		b.settled(t)
		e, err := checkpoints.OpenServing(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if got, err := SpecOf(e.Config); err != nil || !cmp.Equal(got, spec) {
			t.Errorf("the export says %+v, %v, want %+v", got, err, spec)
		}
		if got, want := e.Config.Base, (checkpoints.Base{Name: "tiny-" + model, Digest: m.Base.Digest(), Dims: DimsOf(m.Base.Arch)}); got != want {
			t.Errorf("the export is for %+v, want %+v", got, want)
		}
	}
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		for _, model := range []string{"llama", "qwen2"} {
			// Rounding to eight bits moves logits, but does not replace them; without any, what remains is the table's weights in f32.
			check(t, model, cpu.Options{}, spec, false, 1e-4, 1e-3, 3)
			check(t, model, exact, spec, true, 1e-5, 0, 1e-5)
		}
	})
	t.Run("some layers", func(t *testing.T) {
		for _, on := range [][]Target{{OProj}, {KProj, DownProj}} {
			for _, g := range router.Granularities() {
				spec := specOf(g, 3)
				spec.Targets = on
				check(t, "mistral", exact, spec, true, 1e-5, 0, 1e-5)
			}
		}
	})
}

// The routing table of an export is the router's choice for every token of the vocabulary.
func TestExportedTable(t *testing.T) {
	m, _ := adapted(t, "llama", exact, specOf(router.Token, 0), true)
	s, e := served(t, m)
	n := newNaive(m, e, false)
	all := make([]int32, m.Base.Arch.Vocab)
	for id := range all {
		all[id] = int32(id)
	}
	n.logits(all) // the routers' choices do not depend on what comes before
	for id := range all {
		experts, weights := s.Table(int32(id))
		if want := n.choices[0][id]; !slices.Equal(experts[:], want) {
			t.Fatalf("token %d goes to %v, the router says %v", id, experts, want)
		}
		for k, e := range experts {
			if want := n.tokenGates[id][e]; math.Abs(float64(weights[k])-want) > 1e-7 {
				t.Fatalf("token %d: weight %d is %g, the router says %g", id, k, weights[k], want)
			}
		}
	}
}

// A vocabulary larger than what is routed at once has a whole table.
func TestTableInPieces(t *testing.T) {
	m, b := adapted(t, "llama", exact, specOf(router.Token, 0), true)
	const copies = 23 // of 97 rows: two pieces and a part
	embed := m.Base.Weights.Embed
	long := kernels.NewHost(embed.Type, copies*embed.Shape[0], embed.Shape[1])
	for i := range copies {
		copy(long.Mem.(kernels.Host)[i*embed.Bytes():], embed.Mem.(kernels.Host))
	}
	a, w := m.Base.Arch, m.Base.Weights
	a.Vocab, w.Embed = long.Shape[0], long
	want, err := m.table()
	if err != nil {
		t.Fatal(err)
	}
	if m.Placed, err = Place(b, a, w, 1); err != nil {
		t.Fatal(err)
	}
	got, err := m.table()
	if err != nil {
		t.Fatal(err)
	}
	for k := range want {
		if !slices.Equal(got[k].Shape, []int{copies * embed.Shape[0], 2}) || !bytes.Equal(got[k].Data, bytes.Repeat(want[k].Data, copies)) {
			t.Errorf("%s of the same tokens %d times over is not itself %d times over", want[k].Name, copies, copies)
		}
	}
}

// What lies where the export should go stays as it is.
func TestExportRefusesWhatExists(t *testing.T) {
	m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 0), false)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "folder", "note"), "mine")
	write(t, filepath.Join(dir, "file"), "mine")
	for _, name := range []string{"folder", "file"} {
		path := filepath.Join(dir, name)
		for what, err := range map[string]error{
			"export": second(m.Export(path, [][]int32{{1}})), "PEFT export": m.ExportPEFT(path),
		} {
			if err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), "\n") {
				t.Errorf("%s to a %s that exists: error %v", what, name, err)
			}
		}
	}
	if string(read(t, filepath.Join(dir, "folder", "note")))+string(read(t, filepath.Join(dir, "file"))) != "minemine" {
		t.Error("what was there is not as it was")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func second[T any](_ T, err error) error { return err }

// Prompts that cannot be run are an error, and no export stays behind.
func TestExportPrompts(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 4), false)
	for _, c := range []struct {
		prompts [][]int32
		want    string
	}{
		{nil, "DIR: no prompts to verify the export with"},
		{[][]int32{{1}, {}}, "DIR: mode fused: prompt 2: no tokens to run\ngive a prompt of at least one token"},
		{[][]int32{{1, 97, 2}}, "DIR: mode fused: prompt 1: token 97, the model has ids below 97\nuse the tokenizer that belongs to the model"},
		{[][]int32{{1, 97}}, "DIR: mode fused: prompt 1: token 97, the model has ids below 97\nuse the tokenizer that belongs to the model"},
		{[][]int32{make([]int32, positions+1)}, "DIR: mode fused: a context of 49 tokens, the model was placed for 48"},
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "export")
		_, err := m.Export(dir, c.prompts)
		if got := strings.ReplaceAll(fmt.Sprint(err), dir, "DIR"); got != c.want {
			t.Errorf("prompts %v: error %s, want %s", c.prompts, got, c.want)
		}
		if entries, err := os.ReadDir(parent); err != nil || len(entries) > 0 {
			t.Errorf("prompts %v: left behind: %v, %v", c.prompts, entries, err)
		}
		b.settled(t)
	}
}

// A backend whose merge is off by a thousandth is found out, and nothing is exported.
func TestExportOfModesThatDisagree(t *testing.T) {
	for _, g := range []router.Granularity{router.Token, router.None} {
		m, b := adapted(t, "llama", cpu.Options{}, specOf(g, 0), false)
		b.skew = 1e-3
		dir := filepath.Join(t.TempDir(), "export")
		_, err := m.Export(dir, [][]int32{randomIDs(3, m.Base.Arch.Vocab, 7)})
		const want = ": modes fused and merged differ by "
		if err == nil || !strings.HasPrefix(err.Error(), dir+want) || !strings.Contains(err.Error(), "after prompt 1\nnothing was exported; ") {
			t.Errorf("granularity %s: error %v, want %s%s…", g, err, dir, want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("granularity %s: the export is still there: %v", g, err)
		}
		b.settled(t)
	}
}

// edited is the adapter's tensors, one of them changed by f.
func edited(t *testing.T, m Adapted, name string, f func(data []byte)) []checkpoints.Tensor {
	t.Helper()
	list, err := m.tensors()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(t checkpoints.Tensor) bool { return t.Name == name })
	list[i].Data = bytes.Clone(list[i].Data)
	f(list[i].Data)
	return list
}

// One number that is not what was trained is found in any tensor, be it of a token or a layer that no prompt shows.
func TestVerifyFindsOneNumber(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 2), false)
	c, prompts := m.config(), [][]int32{{1, 2, 3}}
	right, err := m.tensors()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"model.layers.1.mlp.down_proj.lora_A", "model.layers.0.self_attn.k_proj.lora_B", "model.layers.1.mlp.up_proj.shared_A",
		"model.layers.0.self_attn.q_proj.shared_B", "model.router", "model.table.ids", "model.table.weights",
	} {
		wrong := edited(t, m, name, func(data []byte) {
			last := data[len(data)-8:]
			if strings.HasPrefix(name, "model.table.") { // the two experts of the last token, or their weights, change places
				copy(last, slices.Concat(last[4:], last[:4]))
				return
			}
			last[6] ^= 0x80 // the leading bit of the last number's second byte: still there in bf16
		})
		dir := filepath.Join(t.TempDir(), "export")
		if err := checkpoints.WriteServing(dir, c, wrong); err != nil {
			t.Fatal(err)
		}
		_, err := m.verify(dir, c, right, prompts)
		if want := fmt.Sprintf("tensor %q is not what was written\nnothing was exported; check the disk", name); fmt.Sprint(err) != want {
			t.Errorf("error %v, want %s", err, want)
		}
		if _, err := m.verify(dir, c, wrong, prompts); name == "model.layers.1.mlp.down_proj.lora_A" && err != nil {
			t.Errorf("the same numbers as were meant: %v", err)
		}
		b.settled(t)
	}
}

// A table that was meant but is not what the router says makes modes differ.
func TestVerifyTableAgainstRouter(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 0), false)
	c, token := m.config(), 17
	wrong := edited(t, m, "model.table.ids", func(data []byte) {
		entry := data[8*token : 8*token+8]
		copy(entry, slices.Concat(entry[4:], entry[:4]))
	})
	dir := filepath.Join(t.TempDir(), "export")
	if err := checkpoints.WriteServing(dir, c, wrong); err != nil {
		t.Fatal(err)
	}
	a, err := m.verify(dir, c, wrong, [][]int32{{1, 2}, {3, int32(token)}})
	if err == nil || !strings.HasPrefix(err.Error(), "modes fused and layerwise differ by ") || !strings.Contains(err.Error(), "after prompt 2") {
		t.Errorf("error %v", err)
	}
	if !(a.Between > 1e-3) {
		t.Errorf("modes differ by %g", a.Between)
	}
	if _, err := m.verify(dir, c, wrong, [][]int32{{1, 2}}); err != nil {
		t.Errorf("without that token: %v", err)
	}
	b.settled(t)
}

// An export that is cut short, gone, or of another base is refused.
func TestVerifyRefuses(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Block, 0), false)
	c, prompts := m.config(), [][]int32{{1, 2}}
	tensors, err := m.tensors()
	if err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(dir string, c *checkpoints.Config){
		"another digest": func(_ string, c *checkpoints.Config) { c.Base.Digest = "sha256:0" },
		"another size":   func(_ string, c *checkpoints.Config) { c.Base.Heads++ },
		"cut short": func(dir string, _ *checkpoints.Config) {
			path := filepath.Join(dir, "adapter_model.safetensors")
			write(t, path, string(read(t, path)[:1000]))
		},
		"no config": func(dir string, _ *checkpoints.Config) { os.Remove(filepath.Join(dir, "adapter_config.json")) },
		"gone":      func(dir string, _ *checkpoints.Config) { os.RemoveAll(dir) },
	} {
		dir, mine := filepath.Join(t.TempDir(), "export"), c
		if err := checkpoints.WriteServing(dir, c, tensors); err != nil {
			t.Fatal(err)
		}
		spoil(dir, &mine)
		if _, err := m.verify(dir, mine, tensors, prompts); err == nil || !strings.HasPrefix(err.Error(), dir) {
			t.Errorf("%s: error %v", what, err)
		}
		b.settled(t)
	}
}

// Memory that runs out anywhere in an export is an error, and nothing half-done stays.
func TestExportOutOfMemory(t *testing.T) {
	for _, g := range []router.Granularity{router.Token, router.None} {
		m, b := adapted(t, "llama", cpu.Options{}, specOf(g, 2), false)
		dir, prompts := filepath.Join(t.TempDir(), "export"), [][]int32{{1, 2, 3}}
		for n := 0; ; n += 1 + n/9 {
			b.left = n
			_, err := m.Export(dir, prompts)
			if err == nil {
				break
			}
			if !errors.Is(err, errNoMemory) {
				t.Fatalf("granularity %s, %d allocations: error %v", g, n, err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("granularity %s, %d allocations: an export was left", g, n)
			}
			b.settled(t)
		}
	}
}

// limited is a backend with room for so many copies of a model's linear layers.
type limited struct {
	*counter
	bytes int
}

func (l limited) FreeMemory() (int, bool) {
	for _, t := range l.held {
		if len(t.Shape) == 2 { // the copies are all that there is beside activations of one row or few
			l.bytes -= t.Bytes()
		}
	}
	return l.bytes, true
}

// TestExportLeavesOutWhatDoesNotFit: merging the shared expert takes one copy of the weights, the mode that merges another.
func TestExportLeavesOutWhatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		copies float64
		shared int
		want   []Mode
	}{
		{0.5, 0, []Mode{Fused, Layerwise}},
		{1.5, 0, []Mode{Fused, Merged, Layerwise}},
		{1.5, 5, []Mode{Fused, Layerwise}},
		{2.5, 5, []Mode{Fused, Merged, Layerwise}},
	} {
		m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, c.shared), false)
		one := CopyBytes(b.Float(), m.Placed.Arch, m.Bank.Spec.Targets)
		m.Placed = m.Placed.On(limited{b, int(c.copies * float64(one))})
		a, err := m.Export(filepath.Join(t.TempDir(), "export"), [][]int32{{1, 2, 3}})
		if err != nil {
			t.Errorf("room for %g copies, shared rank %d: %v", c.copies, c.shared, err)
		}
		if !slices.Equal(a.Modes, c.want) {
			t.Errorf("room for %g copies, shared rank %d: modes %v, want %v", c.copies, c.shared, a.Modes, c.want)
		}
	}
}
