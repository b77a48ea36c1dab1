package train

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"loratrain/datasets"
	"loratrain/kernels"
	"loratrain/model"
)

// small is a backend of limited memory, of which nothing is allocated.
type small struct {
	counted
	limit int // bytes
}

func (s *small) FreeMemory() (int, bool) { return s.limit - s.bytes, s.limit > 0 }
func (s *small) Zero(kernels.Tensor)     {}

func (s *small) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	x, err := s.counted.Alloc(t, shape...)
	if s.limit > 0 && s.bytes > s.limit {
		return x, errors.New("the device has no memory left")
	}
	return x, err
}

// prepareOn prepares a run of the embedded model on a backend.
func prepareOn(t *testing.T, b kernels.Backend, dir string, settings ...string) (*Prepared, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "own.jsonl")
	if err := os.WriteFile(file, []byte(strings.Repeat("{\"prompt\": \"one two three four five six\", \"answer\": \" seven\"}\n", 40)), 0o666); err != nil {
		t.Fatal(err)
	}
	cfg, err := Parse("test.yaml", nil, append([]string{"data.file=" + file, "train.batch=40", "train.micro_tokens=512"}, settings...)...)
	if err != nil {
		t.Fatal(err)
	}
	base, err := model.OpenDefault()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { base.Close() })
	return Prepare(cfg, RunOptions{Dir: dir, Base: base, Backend: b, Progress: silent{}, Catalog: datasets.Catalog{}})
}

// TestMemoryTooSmall refuses a run that does not fit, with figures and advice, before anything is placed that does not and before
// anything is written. One byte more and it is not refused.
func TestMemoryTooSmall(t *testing.T) {
	plan := func(settings ...string) memory {
		p, err := prepareOn(t, &small{}, "", settings...)
		if err != nil {
			t.Fatal(err)
		}
		m, err := p.r.planMemory()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	few := []string{"adapter.rank=1", "adapter.experts=2"}
	usual, recomputed, merging := plan(), plan("train.recompute=true"), plan(append(few, "train.batch=1", "adapter.shared_rank=1")...)
	if recomputed.activations*3 > usual.activations*2 {
		t.Errorf("recomputed activations take %d bytes, kept ones %d", recomputed.activations, usual.activations)
	}
	for _, c := range []struct {
		name     string
		limit    int
		settings []string
		says     []string
		advice   string
	}{
		{
			"weights", usual.weights - 1, nil,
			[]string{"the weights need " + size(usual.weights) + " of memory, and there are "},
			"use a smaller model or a GPU with more memory, or end other programs on this one",
		},
		{
			"weights and adapter", usual.weights + usual.trainable - 1, nil,
			[]string{"training needs ", "weights " + size(usual.weights), "adapter with gradients and moments " + size(usual.trainable)},
			"lower adapter.rank or adapter.experts",
		},
		{
			"activations", usual.all() - 1, nil,
			[]string{"a step of 512 tokens needs ", "activations " + size(usual.activations), "and there are " + size(usual.all()-1)},
			"set train.recompute to true, or lower train.micro_tokens, adapter.rank or adapter.experts",
		},
		{
			"recomputed activations", recomputed.all() - 1,
			[]string{"train.recompute=true"},
			[]string{"a step of 512 tokens needs ", "activations " + size(recomputed.activations)},
			"lower train.micro_tokens, adapter.rank or adapter.experts",
		},
		{
			"the export", merging.all() - 1, append(few, "train.batch=1", "adapter.shared_rank=1"),
			[]string{"verifying the export needs ", "merged weights " + size(merging.merged)},
			"lower the number of adapter.targets or adapter.shared_rank to 0",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			b := &small{limit: c.limit}
			p, err := prepareOn(t, b, dir, c.settings...)
			if err == nil {
				_, err = p.Run(t.Context())
			}
			if err == nil {
				t.Fatal("the run began")
			}
			first, advice, _ := strings.Cut(err.Error(), "\n")
			for _, want := range c.says {
				if !strings.Contains(first, want) {
					t.Errorf("error %q does not say %q", first, want)
				}
			}
			if advice != c.advice {
				t.Errorf("advice is %q, want %q", advice, c.advice)
			}
			if b.bytes > c.limit {
				t.Errorf("%d bytes were allocated of %d", b.bytes, c.limit)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("a folder was made")
			}
			b = &small{limit: c.limit + 1}
			if p, err = prepareOn(t, b, dir, c.settings...); err == nil {
				err = p.r.reserve()
			}
			if enough := c.name != "weights" && c.name != "weights and adapter"; enough != (err == nil) {
				t.Errorf("with a byte more: %v", err)
			}
		})
	}
}

// TestDescribeSaysWhatIsReserved compares the text with what is allocated then.
func TestDescribeSaysWhatIsReserved(t *testing.T) {
	for _, recompute := range []string{"false", "true"} {
		b := &small{}
		p, err := prepareOn(t, b, "", "train.recompute="+recompute)
		if err != nil {
			t.Fatal(err)
		}
		text, err := p.Describe()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.r.reserve(); err != nil {
			t.Fatal(err)
		}
		sizes, err := p.r.batchSizes()
		if err != nil || len(sizes) < 2 {
			t.Fatalf("batches of sizes %v, %v", sizes, err)
		}
		for _, n := range sizes {
			if _, err := p.r.stepper.program(n); err != nil {
				t.Fatal(err)
			}
		}
		m := p.r.memory
		if got := m.weights + m.trainable + m.activations; got != b.bytes {
			t.Errorf("%d bytes are allocated, planned were %d", b.bytes, got)
		}
		for _, want := range []string{size(m.activations), size(m.trainable), size(m.weights), size(m.all()), "512 tokens"} {
			if !strings.Contains(text, want) {
				t.Errorf("the description does not say %q:\n%s", want, text)
			}
		}
		if strings.Contains(text, "recomputed") != (recompute == "true") {
			t.Errorf("train.recompute is %s:\n%s", recompute, text)
		}
	}
}
