package main

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/router"
)

// prompt is "Anna lives in" for the embedded model.
var prompt = []int32{2414, 2366, 632}

// newExport makes a random adapter of a granularity for the embedded model.
func newExport(t *testing.T, g router.Granularity, sharedRank string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	if err := makeExport(dir, []string{string(g), sharedRank}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newGeneration is ready to run on the embedded model with an exported adapter, in a mode or the default one.
func newGeneration(t *testing.T, export, mode string, most int) *generation {
	t.Helper()
	a, err := openAdapted("", export)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	g := &generation{generator: &generator{tokens: a.base.Tokenizer, most: most, report: true}, text: io.Discard, ids: prompt}
	release, err := g.prepare(b, a, mode, len(prompt)+most, 1)
	if err != nil {
		t.Fatal(err)
	}
	g.ends = nil // whatever the experts make of it, the text goes on
	t.Cleanup(func() {
		release()
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestModesGenerateTheSame(t *testing.T) {
	const most = 30
	for _, granularity := range []router.Granularity{router.Token, router.None} {
		export := newExport(t, granularity, "3")
		var first []int32
		for _, mode := range model.Modes(granularity) {
			g := newGeneration(t, export, string(mode), most)
			if err := g.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = g.result.IDs
			}
			if diff := cmp.Diff(first, g.result.IDs); diff != "" || len(first) != most || g.result.Mode != mode {
				t.Errorf("granularity %s, %d tokens in mode %s, want %s (-%s +%s):\n%s", granularity, len(g.result.IDs), g.result.Mode, mode,
					model.Modes(granularity)[0], mode, diff)
			}
		}
	}
}

func TestExpertsOfEachToken(t *testing.T) {
	routers := map[router.Granularity]int{router.Token: 1, router.Block: 2, router.Layer: 14, router.None: 0}
	for granularity, want := range routers {
		g := newGeneration(t, newExport(t, granularity, "0"), "", 8)
		if err := g.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := g.result
		if want == 0 {
			if r.Experts != nil || r.PromptExperts != nil {
				t.Errorf("%s: experts %v and %v, want none", granularity, r.PromptExperts, r.Experts)
			}
			continue
		}
		if len(r.IDs) != 8 || len(r.Experts) != 7 {
			t.Errorf("%s: %d tokens and experts of %d, want 8 and 7", granularity, len(r.IDs), len(r.Experts))
		}
		for i, pairs := range r.Experts {
			if len(pairs) != want || slices.ContainsFunc(pairs, func(p []int32) bool { return len(p) != 2 || p[0] == p[1] }) {
				t.Errorf("%s: token %d has experts %v, want %d pairs", granularity, i, pairs, want)
			}
		}
		if granularity != router.Token {
			continue
		}
		for i, id := range append(slices.Clone(prompt), r.IDs[:7]...) {
			table, _ := g.served.Table(id)
			if diff := cmp.Diff([][]int32{table[:]}, append(slices.Clone(r.PromptExperts), r.Experts...)[i]); diff != "" {
				t.Errorf("token %d, id %d (-table +reported):\n%s", i, id, diff)
			}
		}
	}
}

func TestGenerationStopsAtAnEnd(t *testing.T) {
	export := newExport(t, router.Token, "0")
	free := newGeneration(t, export, "", 6)
	if err := free.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if free.result.Stop != stopMax {
		t.Errorf("without ends it stopped for %q, want %q", free.result.Stop, stopMax)
	}
	end := slices.IndexFunc(free.result.IDs, func(id int32) bool { return id != free.result.IDs[0] })
	if end < 0 {
		t.Fatalf("ids %v are all the same", free.result.IDs)
	}
	g := newGeneration(t, export, "", 6)
	g.ends = []int32{-7, free.result.IDs[end]}
	if err := g.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(free.result.IDs[:end], g.result.IDs); diff != "" || g.result.Stop != stopEnd {
		t.Errorf("stopped for %q (-want +got):\n%s", g.result.Stop, diff)
	}
}

// interrupter ends a context as soon as something is written to it.
type interrupter struct {
	text   []byte
	cancel func()
}

func (w *interrupter) Write(p []byte) (int, error) {
	w.cancel()
	w.text = append(w.text, p...)
	return len(p), nil
}

func TestInterruptKeepsTheText(t *testing.T) {
	g := newGeneration(t, newExport(t, router.Token, "0"), "", 20)
	ctx, cancel := context.WithCancel(t.Context())
	w := &interrupter{cancel: cancel}
	g.text = w
	if err := g.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want %v", err, context.Canceled)
	}
	r := g.result
	if r.Stop != stopInterrupted || r.Tokens < 1 || r.Tokens > 5 {
		t.Errorf("stopped for %q after %d tokens, want %q after the first that shows", r.Stop, r.Tokens, stopInterrupted)
	}
	if string(w.text) != r.Text+"\n" || r.Text == "" {
		t.Errorf("wrote %q, the text is %q", string(w.text), r.Text)
	}
}

func TestInterruptedPromptComputesNothing(t *testing.T) {
	g := newGeneration(t, newExport(t, router.Token, "0"), "", 20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want %v", err, context.Canceled)
	}
	if room := g.decoder.Room(0); room != len(prompt)+20 || g.result.Stop != stopInterrupted {
		t.Errorf("room for %d tokens, want %d; stopped for %q", room, len(prompt)+20, g.result.Stop)
	}
}

func TestPositions(t *testing.T) {
	tests := []struct {
		name                         string
		context, most, limit, prompt int
		want                         int
		wrong                        bool
	}{
		{name: "prompt and text", most: 10, limit: 256, prompt: 5, want: 15},
		{name: "the model's limit", most: 1000, limit: 256, prompt: 5, want: 256},
		{name: "a context", context: 8, most: 10, limit: 256, prompt: 5, want: 8},
		{name: "a context that is not needed", context: 100, most: 10, limit: 256, prompt: 5, want: 15},
		{name: "a full prompt", context: 5, most: 10, limit: 256, prompt: 5, want: 5},
		{name: "no overflow", most: 1<<63 - 1, limit: 256, prompt: 5, want: 256},
		{name: "a prompt too long", context: 4, most: 10, limit: 256, prompt: 5, wrong: true},
		{name: "a prompt beyond the model", most: 10, limit: 256, prompt: 257, wrong: true},
		{name: "a context beyond the model", context: 257, most: 10, limit: 256, prompt: 5, wrong: true},
		{name: "no prompt", most: 10, limit: 256, wrong: true},
	}
	for _, test := range tests {
		f := generateFlags{context: test.context, maxTokens: test.most}
		room, advice, err := f.roomIn(test.limit)
		if err == nil {
			err = fits(test.prompt, room, advice, "")
		}
		if err != nil != test.wrong {
			t.Errorf("%s: error %v, want one: %v", test.name, err, test.wrong)
		}
		if got := positions(test.prompt, room, test.most); err == nil && got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}
