package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"loratrain/checkpoints"
	"loratrain/kernels"
)

var tinyModels = []string{"llama", "llama31", "mistral", "qwen2", "qwen3"}

func goldenModel(name string) string { return filepath.Join(*golden, "tiny-"+name) }

func mustOpen(t testing.TB, path string) *Base {
	t.Helper()
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close %s: %v", path, err)
		}
	})
	return b
}

// refused checks that a model does not open, and what is said about it; DIR in want stands for the folder dir.
func refused(t *testing.T, path, dir, want string) {
	t.Helper()
	b, err := Open(path)
	if err == nil {
		b.Close()
		t.Fatalf("opened, want the error\n%s", want)
	}
	got := strings.ReplaceAll(err.Error(), dir, "DIR")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// slotsOf lists the tensors of a model that is open, by name.
func slotsOf(b *Base) map[string]kernels.Tensor {
	w, layers := b.Weights, b.Weights.Layers
	bias := [targets]bool{}
	for i, t := range layers[0].Bias {
		bias[i] = !t.None()
	}
	all := w.slots(b.Arch, bias)
	copy(w.Layers, layers)
	named := map[string]kernels.Tensor{}
	for _, s := range all {
		named[s.name] = *s.dst
	}
	return named
}

// differ reports the tensors that differ between two models.
func differ(t *testing.T, got, want *Base) {
	t.Helper()
	g, w := slotsOf(got), slotsOf(want)
	for name, tensor := range w {
		sameTensor(t, name, g[name], tensor)
	}
	if len(g) != len(w) {
		t.Errorf("%d tensors, want %d", len(g), len(w))
	}
}

// sameTensor reports the first byte in which two tensors differ.
func sameTensor(t *testing.T, name string, got, want kernels.Tensor) {
	t.Helper()
	if got.None() || got.Type != want.Type || !slices.Equal(got.Shape, want.Shape) {
		t.Errorf("tensor %q is %v, want %v", name, got, want)
		return
	}
	got, want = widened(got), widened(want)
	g, w := got.Mem.(kernels.Host), want.Mem.(kernels.Host)
	for i := range w {
		if g[i] != w[i] {
			t.Errorf("tensor %q: byte %d is %#x, want %#x", name, i, g[i], w[i])
			return
		}
	}
}

// writeWeights writes a safetensors file.
func writeWeights(t *testing.T, path string, tensors []checkpoints.Tensor) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(checkpoints.Write(f, tensors, nil), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// gone as a value of edits removes the key.
const gone = "<gone>"

type edits map[string]any

// variant copies a tiny model to a folder called smol, its configuration edited.
func variant(t *testing.T, model string, config edits) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "smol")
	var values map[string]any
	if err := json.Unmarshal(read(t, filepath.Join(goldenModel(model), "config.json")), &values); err != nil {
		t.Fatal(err)
	}
	for key, v := range config {
		if values[key] = v; v == gone {
			delete(values, key)
		}
	}
	data, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), string(data))
	write(t, filepath.Join(dir, "model.safetensors"), string(read(t, filepath.Join(goldenModel(model), "model.safetensors"))))
	return dir
}

// tensorsOf reads the tensors of a folder into memory.
func tensorsOf(t *testing.T, dir string) []checkpoints.Tensor {
	t.Helper()
	f, err := checkpoints.OpenSharded(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tensors := f.Tensors()
	for i := range tensors {
		tensors[i].Data = append([]byte(nil), tensors[i].Data...)
	}
	return tensors
}

// retype writes a tiny model's weights with each tensor changed by f, which may drop some.
func retype(t *testing.T, dir string, f func(checkpoints.Tensor) (checkpoints.Tensor, bool)) {
	t.Helper()
	var out []checkpoints.Tensor
	for _, tensor := range tensorsOf(t, dir) {
		if tensor, ok := f(tensor); ok {
			out = append(out, tensor)
		}
	}
	writeWeights(t, filepath.Join(dir, "model.safetensors"), out)
}

func TestOpenPaths(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "empty", "README.md"), "nothing")
	write(t, filepath.Join(dir, "two", "a.gguf"), "GGUF")
	write(t, filepath.Join(dir, "two", "b.gguf"), "GGUF")
	write(t, filepath.Join(dir, "void.gguf"), "")
	const advice = "\ngive a Hugging Face model folder or a .gguf file"
	for path, want := range map[string]string{
		"nowhere":         "DIR/nowhere: no such file or directory" + advice,
		"empty":           "DIR/empty: neither config.json nor a .gguf file is there" + advice,
		"empty/README.md": "DIR/empty/README.md: no model: not GGUF, and no config.json lies beside it" + advice,
		"two":             "DIR/two: 2 .gguf files and no config.json\ngive the path of one of them",
		"void.gguf":       "DIR/void.gguf: an empty file, or none at all\nfetch the file again",
	} {
		t.Run(path, func(t *testing.T) { refused(t, filepath.Join(dir, path), dir, want) })
	}
	if _, err := Open(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v is no fs.ErrNotExist", err)
	}
}

// A file of the folder, and the folder with a slash, open the same model under the same name.
func TestOpenSynonyms(t *testing.T) {
	dir := variant(t, "llama", nil)
	want := mustOpen(t, dir)
	for _, path := range []string{dir + "/", dir + "/config.json", dir + "/model.safetensors"} {
		got := mustOpen(t, path)
		if got.Name != "smol" || got.Path != path || got.Digest() != want.Digest() {
			t.Errorf("%s: name %q, path %q, digest %s, want smol, itself, %s", path, got.Name, got.Path, got.Digest(), want.Digest())
		}
	}
}

func TestNameOf(t *testing.T) {
	for path, want := range map[string]string{
		"/m/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct",
		"/m/llama-3.1-8b.Q4_K_M.gguf":        "llama-3.1-8b",
		"/m/qwen2-0_5b-instruct-fp16.gguf":   "qwen2-0_5b-instruct-fp16",
		"/m/tiny-bf16.gguf":                  "tiny",
		"/m/tiny.F32.gguf":                   "tiny",
		"/m/base-IQ4_XS.gguf":                "base",
		"/m/SmolLM2-135M":                    "SmolLM2-135M",
		"/m/SmolLM2-135M/":                   "SmolLM2-135M",
		"/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/93efa2f": "SmolLM2-135M",
	} {
		if got := nameOf(path); got != want {
			t.Errorf("nameOf(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestNeedTokenizer(t *testing.T) {
	dir := variant(t, "llama", nil)
	want := dir + ": no tokenizer.json\nput the tokenizer.json that belongs to the model beside config.json"
	if _, err := mustOpen(t, dir).NeedTokenizer(); fmt.Sprint(err) != want {
		t.Errorf("without a file: %v, want %s", err, want)
	}
	write(t, filepath.Join(dir, "tokenizer.json"), `{"version": "1.0"`)
	b := mustOpen(t, dir)
	if _, err := b.NeedTokenizer(); err == nil || b.Tokenizer != nil {
		t.Errorf("a broken file gives tokenizer %v and error %v", b.Tokenizer, err)
	}
}

// The embedded default is the folder that it was embedded from.
func TestOpenDefault(t *testing.T) {
	got, err := OpenDefault()
	if err != nil {
		t.Fatal(err)
	}
	want := mustOpen(t, "tiny")
	differ(t, got, want)
	if diff := cmp.Diff(want.Arch, got.Arch); diff != "" || got.Digest() != want.Digest() || got.Name != "tiny" || got.Path != "" {
		t.Errorf("%q at %q has digest %s, want tiny nowhere with %s; architecture (-want +got):\n%s", got.Name, got.Path, got.Digest(), want.Digest(), diff)
	}
	if len(got.EOS) == 0 {
		t.Error("nothing ends a text")
	}
	tok, err := got.NeedTokenizer()
	if err != nil {
		t.Fatal(err)
	}
	const text = "A robin is a bird."
	if back := tok.Decode(tok.Encode(text, false), true); back != text {
		t.Errorf("text comes back as %q", back)
	}
	if err := got.Close(); err != nil {
		t.Error(err)
	}
}

// What the program carries is checked like any other model.
func TestOpenEmbeddedRefuses(t *testing.T) {
	whole := fstest.MapFS{}
	for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json"} {
		whole[name] = &fstest.MapFile{Data: read(t, filepath.Join("tiny", name))}
	}
	for name := range whole {
		broken := maps.Clone(whole)
		broken[name] = &fstest.MapFile{Data: whole[name].Data[:100]}
		b, err := openEmbedded("broken", broken)
		if err == nil {
			_, err = b.NeedTokenizer()
		}
		if err == nil || !strings.HasPrefix(err.Error(), "broken/"+name) {
			t.Errorf("%s cut short: error %v", name, err)
		}
		delete(broken, name)
		if _, err := openEmbedded("broken", broken); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no %s: error %v", name, err)
		}
	}
}
