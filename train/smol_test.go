package train

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"loratrain/checkpoints"
	"loratrain/datasets"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/router"
)

// smolPath is SmolLM2's GGUF, for the tests that need a real model.
func smolPath(t testing.TB) string {
	t.Helper()
	path := os.Getenv("LORA_SMOLLM2")
	if path == "" {
		t.Skip("LORA_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf; .ci/run fetches it and sets the variable")
	}
	return path
}

// hashed makes the tensor of golden's reference.hashed: element i is scale·(2u-1), u the upper 24 bits of splitmix64 of
// fnv1a64(name) + i.
func hashed(name string, shape []int, scale float64) checkpoints.Tensor {
	h := uint64(14695981039346656037)
	for _, c := range []byte(name) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	values := make([]float32, kernels.Len(shape...))
	for i := range values {
		z := h + uint64(i) + 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		values[i] = float32(scale * (2*float64(z>>40)/(1<<24) - 1))
	}
	return checkpoints.Float32Tensor(name, shape, values)
}

// hashedStart is the adapter that smol.json's steps begin with, in our file layout.
func hashedStart(a model.Arch, spec model.AdapterSpec) []checkpoints.Tensor {
	var list []checkpoints.Tensor
	e, r := spec.Experts, spec.Rank
	for l := range a.Layers {
		for _, t := range spec.Targets {
			in, out := a.Shape(t)
			m := model.Module(l, t)
			list = append(list, hashed(m+".lora_A", []int{e, r, in}, 1/math.Sqrt(float64(in))))
			b := hashed(m+".lora_B", []int{e, out, r}, 0.02)
			values, _ := b.Float32s()
			values, shape := swapLast(values, b.Shape)
			list = append(list, checkpoints.Float32Tensor(b.Name, shape, values))
		}
	}
	return append(list, hashed("model.router", []int{e, a.Width}, 0.1))
}

// TestGoldenSmolSteps is five token-wise steps of SmolLM2-135M. They are too many operations for the emulator.
func TestGoldenSmolSteps(t *testing.T) {
	path := smolPath(t)
	var c trajectory
	readJSON(t, "smol.json", &c)
	c.Granularity = string(router.Token)
	start := func(a model.Arch) []checkpoints.Tensor { return hashedStart(a, c.spec()) }
	f32 := tolerances{loss: 1e-4 / 14, norm: 1e-3, grad: 1e-4} // the losses are near 14
	backends := append([]compared{{"cpu", onCPU(cpu.Options{}), f32}}, onGPUs(" f32", true, false, f32)...)
	// What bf16 keeps of a gradient depends on its sums' cancellation: its norms are held loosely and its elements not at all.
	backends = append(backends, onGPUs(" bf16", false, false, tolerances{loss: 5e-3, norm: 0.1, grad: math.Inf(1)})...)
	for _, p := range backends {
		t.Run(p.name, func(t *testing.T) { c.follow(t, p.open(t), path, "smol.safetensors", start, p.tol) })
	}
}

// TestGoldenSmolLogits is the logits of three prompts.
func TestGoldenSmolLogits(t *testing.T) {
	path := smolPath(t)
	var c struct{ Prompts int }
	readJSON(t, "smol.json", &c)
	b := openBackend(t, cpu.Options{})
	_, placed := placeBase(t, b, path, 256)
	f := openTensors(t, "smol.safetensors")
	x := graph.NewImmediate(b)
	values := placed.Bind(x)
	for p := range c.Prompts {
		name := fmt.Sprintf("prompt%d", p)
		ids := int32s(t, f, name+".ids")
		n := len(ids)
		var logits []float32
		err := graph.Catch(b, func() {
			batch := datasets.Batch{IDs: ids, Pos: make([]int32, n), Seq: make([]int32, n), PrefixFrom: make([]int32, n), PrefixTo: make([]int32, n), OwnFrom: make([]int32, n)}
			for i := range ids {
				batch.Pos[i] = int32(i)
			}
			h := model.Hidden(x, values, nil, model.Inputs{
				IDs: x.Ints(ids, n), Pos: x.Ints(batch.Pos, n), Spans: x.Ints(spans(placed.Arch, batch), n, 4),
			})
			l := graph.Linear(x, h, values.Head, graph.V{}, graph.V{})
			host := kernels.NewHost(kernels.F32, l.Shape...)
			b.Read(host, l.Tensor())
			logits = kernels.Slice[float32](host)
		})
		if err != nil {
			t.Fatal(err)
		}
		vocab := placed.Arch.Vocab
		last, argmaxes, next := floats(t, f, name+".last_logits"), int32s(t, f, name+".argmax"), floats(t, f, name+".logprob_next")
		for v, want := range last {
			if got := logits[(n-1)*vocab+v]; !(math.Abs(float64(got-want)) <= 1e-3) {
				t.Fatalf("%s: last logit %d is %.7g, golden %.7g", name, v, got, want)
			}
		}
		for i := range ids {
			row := make([]float64, vocab)
			for v := range row {
				row[v] = float64(logits[i*vocab+v])
			}
			if got, want := argmax(row), int(argmaxes[i]); got != want && row[got]-row[want] > 1e-3 {
				t.Errorf("%s: token %d is followed by %d, golden %d", name, i, got, want)
			}
			if i+1 == n {
				continue
			}
			z, largest := 0.0, row[argmax(row)]
			for _, l := range row {
				z += math.Exp(l - largest)
			}
			lp := row[ids[i+1]] - largest - math.Log(z)
			if !(math.Abs(lp-float64(next[i])) <= 1e-3) {
				t.Errorf("%s: log-probability after token %d is %.6g, golden %.6g", name, i, lp, next[i])
			}
		}
	}
}

func int32s(t *testing.T, f *checkpoints.File, name string) []int32 {
	t.Helper()
	x, ok := f.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %q", name)
	}
	list := make([]int32, x.Len())
	for i := range list {
		b := x.Data[4*i:]
		list[i] = int32(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
	}
	return list
}

func floats(t *testing.T, f *checkpoints.File, name string) []float32 {
	t.Helper()
	x, ok := f.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %q", name)
	}
	list, err := x.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// itemsApart is how far apart the items are that TestGoldenArcEasy takes: all of them are minutes of a processor's time.
const itemsApart = 24

// TestGoldenArcEasy evaluates the base on ARC-Easy's test split item by item, on every 24th item, or on all with LORA_ITEMS=all. LORA_BENCHMARKS
// names the folder that holds the benchmark files.
func TestGoldenArcEasy(t *testing.T) {
	path := smolPath(t)
	dir := os.Getenv("LORA_BENCHMARKS")
	if dir == "" {
		t.Skip("LORA_BENCHMARKS does not name the folder with ARC-Easy/test.json; .ci/run sets it")
	}
	task, err := datasets.Catalog{Dir: dir}.Load("arc_easy", datasets.Test)
	if err != nil {
		t.Fatal(err)
	}
	want := goldenItems(t)
	if len(want) != len(task.Items) {
		t.Fatalf("%d items, golden has %d", len(task.Items), len(want))
	}
	if os.Getenv("LORA_ITEMS") != "all" {
		var some []ItemResult
		all := task.Items
		task.Items = nil
		for i := 0; i < len(all); i += itemsApart {
			task.Items, some = append(task.Items, all[i]), append(some, want[i])
		}
		want = some
	}
	b := openBackend(t, cpu.Options{})
	base, placed := placeBase(t, b, path, 512)
	e := NewEvaluator(placed, datasets.Encoder{Tokenizer: base.Tokenizer, Template: datasets.Cloze, EOS: -1, MaxLength: 512}, 1024)
	defer e.Close()
	score, err := e.Evaluate(t.Context(), task, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	same, right, rightNorm := 0, 0, 0
	for i, r := range score.Results {
		if want[i].Prediction == want[i].Gold {
			right++
		}
		if want[i].PredictionNorm == want[i].Gold {
			rightNorm++
		}
		if r.Gold != want[i].Gold {
			t.Errorf("item %d: gold option %d, golden %d", want[i].Item, r.Gold, want[i].Gold)
		}
		if r.Prediction == want[i].Prediction && r.PredictionNorm == want[i].PredictionNorm {
			same++
		}
		for o, ll := range want[i].LogLikelihood {
			if !(math.Abs(r.LogLikelihood[o]-ll) <= 1e-2) {
				t.Errorf("item %d, option %d: log-likelihood %.4f, golden %.4f", want[i].Item, o, r.LogLikelihood[o], ll)
			}
		}
	}
	others := max(1, len(want)/200) // half a percent, where two options are as likely
	if len(want)-same > others {
		t.Errorf("same predictions on %d of %d items, all but %d are wanted", same, len(want), others)
	}
	acc, _ := accuracy(right, len(want))
	accNorm, _ := accuracy(rightNorm, len(want))
	if most := (float64(others) + 0.5) / float64(len(want)); math.Abs(score.Acc-acc) > most || math.Abs(score.AccNorm-accNorm) > most {
		t.Errorf("acc %.4f, acc_norm %.4f; golden %.4f, %.4f", score.Acc, score.AccNorm, acc, accNorm)
	}
	t.Logf("same predictions on %d of %d items; acc %.4f, acc_norm %.4f", same, len(want), score.Acc, score.AccNorm)
}

func goldenItems(t *testing.T) []ItemResult {
	t.Helper()
	f, err := os.Open(filepath.Join(*golden, "smol-arc-easy.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var items []ItemResult
	for lines := bufio.NewScanner(z); lines.Scan(); {
		var r ItemResult
		if err := json.NewDecoder(strings.NewReader(lines.Text())).Decode(&r); err != nil {
			t.Fatalf("line %d: %v", len(items)+1, err)
		}
		items = append(items, r)
	}
	return items
}
