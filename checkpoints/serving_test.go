package checkpoints

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// someDigest is that of no model: SHA-256 of nothing.
const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// oddConfig has widths that all differ, odd ones among them, so that a swap of
// any two shows.
func oddConfig(g Granularity, shared int) Config {
	c := Config{
		Base: Base{
			Name: "some/base", Digest: someDigest,
			Dims: Dims{Layers: 2, Width: 9, MLPWidth: 14, Heads: 3, KVHeads: 1, HeadDim: 5, Vocabulary: 11},
		},
		Targets: slices.Clone(Targets), Granularity: g, Experts: 3, Rank: 3, SharedRank: shared, Alpha: 7,
	}
	if g == Unrouted {
		c.Experts = 1
	}
	return c
}

// tensorsFor makes a valid adapter whose values differ everywhere, as F32.
func tensorsFor(c Config) []Tensor {
	var out []Tensor
	for s := range c.specs() {
		n := 1
		for _, d := range s.shape {
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(i+1+len(out))/1024 - 1 // not exact in bf16
		}
		switch s.name {
		case "model.table.weights":
			for i := range values {
				values[i] = []float32{0.75, 0.25}[i%2]
			}
		case "model.table.ids":
			var data []byte
			for v := range c.Base.Vocabulary {
				data = binary.LittleEndian.AppendUint32(data, uint32(v%c.Experts))
				data = binary.LittleEndian.AppendUint32(data, uint32((v+1)%c.Experts))
			}
			out = append(out, Tensor{s.name, I32, s.shape, data})
			continue
		}
		out = append(out, Float32Tensor(s.name, s.shape, values))
	}
	return out
}

func everyConfig() map[string]Config {
	few := oddConfig(PerToken, 0)
	few.Targets = []string{"k_proj", "down_proj"}
	return map[string]Config{
		"token": oddConfig(PerToken, 0), "token, shared": oddConfig(PerToken, 1), "block, shared": oddConfig(PerBlock, 5),
		"layer": oddConfig(PerLayer, 0), "none": oddConfig(Unrouted, 0), "none, shared": oddConfig(Unrouted, 2), "two targets": few,
	}
}

func TestServingRoundTrip(t *testing.T) {
	for name, c := range everyConfig() {
		dir := filepath.Join(t.TempDir(), "export")
		given := tensorsFor(c)
		if err := WriteServing(dir, c, given); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s, err := OpenServing(dir)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c, s.Config); diff != "" {
			t.Errorf("%s: config differs (-want +got):\n%s", name, diff)
		}
		if got := len(s.Tensors()); got != len(given) {
			t.Errorf("%s: %d tensors, want %d", name, got, len(given))
		}
		for _, want := range given {
			got, ok := s.Tensor(want.Name)
			if !ok {
				t.Errorf("%s: no tensor %q", name, want.Name)
				continue
			}
			if strings.Contains(want.Name, "_A") || strings.Contains(want.Name, "_B") {
				want, err = roundToBF16(want)
				if err != nil {
					t.Fatal(err)
				}
			}
			sameTensors(t, []Tensor{got}, []Tensor{want})
		}
		wantNames(t, name, dir, configFile, tensorFile)
		again := filepath.Join(t.TempDir(), "again")
		if err := WriteServing(again, s.Config, s.Tensors()); err != nil { // from BF16 now
			t.Fatalf("%s: %v", name, err)
		}
		for _, file := range []string{configFile, tensorFile} {
			if a, b := read(t, dir, file), read(t, again, file); !bytes.Equal(a, b) {
				t.Errorf("%s: %s differs when written again", name, file)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func read(t *testing.T, dir, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Names and shapes as FORMAT.md lists them, written out by hand.
func TestServingNamesAndShapes(t *testing.T) {
	c := oddConfig(PerLayer, 4)
	c.Base.Layers = 1
	c.Targets = []string{"q_proj", "o_proj", "up_proj"}
	var got []string
	for s := range c.specs() {
		got = append(got, fmt.Sprint(s.name, " ", s.kind, " ", s.shape))
	}
	want := []string{
		"model.layers.0.self_attn.q_proj.lora_A BF16 [3 3 9]", "model.layers.0.self_attn.q_proj.lora_B BF16 [3 3 15]",
		"model.layers.0.self_attn.q_proj.shared_A BF16 [4 9]", "model.layers.0.self_attn.q_proj.shared_B BF16 [4 15]",
		"model.layers.0.self_attn.q_proj.router F32 [3 9]",
		"model.layers.0.self_attn.o_proj.lora_A BF16 [3 3 15]", "model.layers.0.self_attn.o_proj.lora_B BF16 [3 3 9]",
		"model.layers.0.self_attn.o_proj.shared_A BF16 [4 15]", "model.layers.0.self_attn.o_proj.shared_B BF16 [4 9]",
		"model.layers.0.self_attn.o_proj.router F32 [3 15]",
		"model.layers.0.mlp.up_proj.lora_A BF16 [3 3 9]", "model.layers.0.mlp.up_proj.lora_B BF16 [3 3 14]",
		"model.layers.0.mlp.up_proj.shared_A BF16 [4 9]", "model.layers.0.mlp.up_proj.shared_B BF16 [4 14]",
		"model.layers.0.mlp.up_proj.router F32 [3 9]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	for g, want := range map[Granularity][]string{
		PerToken: {"model.router F32 [3 9]", "model.table.ids I32 [11 2]", "model.table.weights F32 [11 2]"},
		PerBlock: {"model.layers.0.router F32 [3 9]", "model.layers.1.router F32 [3 9]"},
		Unrouted: nil,
	} {
		var got []string
		for s := range oddConfig(g, 0).specs() {
			if !strings.Contains(s.name, "lora_") {
				got = append(got, fmt.Sprint(s.name, " ", s.kind, " ", s.shape))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", g, diff)
		}
	}
}

// The example of FORMAT.md is what is written.
func TestFormatDocumentShowsTheConfig(t *testing.T) {
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Base: Base{
			Name: "HuggingFaceTB/SmolLM2-135M-Instruct", Digest: "sha256:6b0d3a8f4f0f7c1b5d0c9a52c3ff7e1ab4f6cf9b0a7d4b3e2a1908f7e6d5c4b3",
			Dims: Dims{Layers: 30, Width: 576, MLPWidth: 1536, Heads: 9, KVHeads: 3, HeadDim: 64, Vocabulary: 49152},
		},
		Targets: Targets, Granularity: PerToken, Experts: 8, Rank: 4, SharedRank: 32, Alpha: 8,
	}
	want, err := encodeJSON(c.json())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(doc, want) {
		t.Errorf("FORMAT.md lacks this example:\n%s", want)
	}
}

func TestOpenServingWithoutItsFiles(t *testing.T) {
	for _, file := range []string{configFile, tensorFile} {
		dir := written(t, oddConfig(Unrouted, 0), nil)
		if err := os.Remove(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenServing(dir); err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, file)+": no such file") {
			t.Errorf("without %s: got %v", file, err)
		}
	}
}

func TestCheckBase(t *testing.T) {
	c := oddConfig(PerToken, 0)
	s, err := OpenServing(written(t, c, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CheckBase("a renamed copy", c.Base.Digest, c.Base.Dims); err != nil {
		t.Errorf("same digest: %v", err)
	}
	err = s.CheckBase("other/model", "sha256:11", c.Base.Dims)
	want := s.Dir + ": made for base some/base (digest " + someDigest + "), this is other/model (digest sha256:11)\n"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("other digest: got %v, want %q and advice", err, want)
	}
	dims := c.Base.Dims
	dims.KVHeads++
	if err := s.CheckBase("some/base", c.Base.Digest, dims); err == nil || !strings.Contains(err.Error(), "KVHeads:2") {
		t.Errorf("other dims: got %v, want an error that shows both", err)
	}
}

// writers are both ways of writing an adapter.
var writers = map[string]func(string, Config, []Tensor) error{
	"serving": func(dir string, c Config, tensors []Tensor) error { return WriteServing(dir, c, tensors) },
	"PEFT":    WritePEFT,
}

// A folder that a check refuses is never seen, and the check sees it complete.
func TestWriteServingChecksBeforeItAppears(t *testing.T) {
	c, dir := oddConfig(PerToken, 0), filepath.Join(t.TempDir(), "export")
	refused, looked := errors.New("refused"), 0
	err := WriteServing(dir, c, tensorsFor(c), func(path string) error {
		looked++
		if _, err := os.Stat(dir); err == nil {
			t.Error("the folder was there before it was checked")
		}
		s, err := OpenServing(path)
		if err != nil {
			t.Errorf("the folder that is to be checked: %v", err)
			return nil
		}
		return errors.Join(s.Close(), refused)
	}, func(string) error { t.Error("checked again after a refusal"); return nil })
	if !errors.Is(err, refused) || looked != 1 {
		t.Errorf("got %v after %d checks, want the refusal", err, looked)
	}
	wantNames(t, "refused", filepath.Dir(dir))
}

func TestWriteServingIsRefusedAFolderThatExists(t *testing.T) {
	c := oddConfig(Unrouted, 0)
	dir := written(t, c, nil)
	before := read(t, dir, tensorFile)
	for name, write := range writers {
		if err := write(dir, c, tensorsFor(c)); err == nil || !strings.Contains(err.Error(), ErrExists.Error()) {
			t.Errorf("%s: got %v, want ErrExists", name, err)
		}
	}
	if !bytes.Equal(before, read(t, dir, tensorFile)) {
		t.Error("the folder that was there changed")
	}
}
