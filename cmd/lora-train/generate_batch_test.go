package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/router"
)

// repeating is a backend that records, so that the loop runs a step ahead: what it recorded it asks for again.
type repeating struct {
	kernels.Backend
	runs *int
}

func (b repeating) Capture(f func()) (kernels.Recording, error) { return repeated{f, b.runs}, nil }

type repeated struct {
	again func()
	runs  *int
}

func (r repeated) Run()   { *r.runs++; r.again() }
func (r repeated) Close() {}

var batchPrompts = []string{
	"Anna lives in", "Question: What is the opposite of hot?\nAnswer:", "Bo", "The dog", "Who lives in Denby? I think that it is", "x", "Anna lives in",
}

// generatorFor continues batchPrompts, so many at once.
func generatorFor(t *testing.T, b kernels.Backend, export, mode string, rule kernels.Sampling, places int) *generator {
	t.Helper()
	a, err := openAdapted("", export)
	if err != nil {
		t.Fatal(err)
	}
	g := &generator{tokens: a.base.Tokenizer, rule: rule, most: 9, seed: 3}
	release, err := g.prepare(b, a, mode, 22, places) // the fifth prompt fills it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		release()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// all is what becomes of prompts, by their index.
func (g *generator) all(t *testing.T, indices ...int) map[int]continued {
	t.Helper()
	got := map[int]continued{}
	err := g.run(t.Context(), source{
		next: func() *continuation {
			if len(indices) == 0 {
				return nil
			}
			i := indices[0]
			indices = indices[1:]
			return g.continuation(i, batchPrompts[i], g.tokens.Encode(batchPrompts[i], true), io.Discard)
		},
		done: func(c *continuation) error {
			got[c.index] = c.continued
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func openCPU(t *testing.T) kernels.Backend {
	t.Helper()
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// A prompt's text is the same alone and with any others, whether steps run ahead of what is read or not.
func TestBatchIsLikeSinglePrompts(t *testing.T) {
	b := openCPU(t)
	runs := 0
	every := []int{0, 1, 2, 3, 4, 5, 6}
	for _, granularity := range router.Granularities() {
		export := newExport(t, granularity, "3")
		for _, mode := range model.Modes(granularity) {
			for _, rule := range []kernels.Sampling{{}, {Temperature: 1.2, TopK: 50}} {
				want := map[int]continued{}
				one := generatorFor(t, b, export, string(mode), rule, 1)
				for i := range batchPrompts {
					want[i] = one.all(t, i)[i]
					if want[i].Stop == "" || want[i].Tokens != len(want[i].IDs) {
						t.Fatalf("prompt %d: %+v", i, want[i])
					}
				}
				single := generation{generator: one, text: io.Discard, prompt: batchPrompts[0], ids: one.tokens.Encode(batchPrompts[0], true)}
				if err := single.run(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want[0], single.result.continued, cmp.AllowUnexported(continued{})); diff != "" {
					t.Errorf("%s, %s, %+v, the first prompt (-of a file +of --prompt):\n%s", granularity, mode, rule, diff)
				}
				for _, places := range []int{1, 2, 3, 16} {
					if places > 1 && mode == model.Merged && granularity == router.Token {
						continue
					}
					for _, on := range []kernels.Backend{b, repeating{b, &runs}} {
						got := generatorFor(t, on, export, string(mode), rule, places).all(t, every...)
						if diff := cmp.Diff(want, got, cmp.AllowUnexported(continued{})); diff != "" {
							t.Errorf("%s, %s, %+v, %d at once (-alone +together):\n%s", granularity, mode, rule, places, diff)
						}
					}
				}
			}
		}
	}
	if runs == 0 {
		t.Error("no step was repeated")
	}
}

// The same prompt at two places of a file has two texts where chance decides, and one where it does not.
func TestSeedAndIndexDecide(t *testing.T) {
	b := openCPU(t)
	for temperature, same := range map[float64]bool{0: true, 5: false} {
		got := generatorFor(t, b, "", "", kernels.Sampling{Temperature: temperature}, 4).all(t, 0, 6)
		if slices.Equal(got[0].IDs, got[6].IDs) != same {
			t.Errorf("temperature %g: the same prompt twice gives %v and %v", temperature, got[0].IDs, got[6].IDs)
		}
	}
}

// Texts that are done early wait for those before them; an interrupt leaves whole lines, in order.
func TestBatchInterrupted(t *testing.T) {
	for stopAt := 1; stopAt <= len(batchPrompts); stopAt++ {
		g := generatorFor(t, openCPU(t), "", "", kernels.Sampling{Temperature: 1}, 3)
		var out bytes.Buffer
		var prompts []filePrompt
		for i, p := range batchPrompts {
			prompts = append(prompts, filePrompt{prompt: p, id: json.RawMessage(fmt.Sprint(i))})
		}
		w := &batchWriter{out: &out, prompts: prompts, waiting: map[int]*continuation{}, progress: newBatchProgress(io.Discard, 1, false)}
		ctx, cancel := context.WithCancel(t.Context())
		next := 0
		err := g.run(ctx, source{
			next: func() *continuation {
				if next == len(prompts) {
					return nil
				}
				next++
				c := g.continuation(next-1, prompts[next-1].prompt, g.tokens.Encode(prompts[next-1].prompt, true), io.Discard)
				c.limit = 1 + 5*(next%3) // the third is done first
				return c
			},
			done: func(c *continuation) error {
				if err := w.done(c); err != nil {
					return err
				}
				if w.texts == stopAt {
					cancel()
				}
				return nil
			},
		})
		cancel()
		if all := w.texts == len(prompts); all && err != nil || !all && !errors.Is(err, context.Canceled) {
			t.Errorf("after %d texts: error %v", stopAt, err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if out.Len() == 0 {
			lines = nil
		}
		if len(lines) != w.written || w.written+len(w.waiting) != w.texts || w.texts < stopAt {
			t.Errorf("%d lines; %d texts are written, %d wait, %d are done of %d", len(lines), w.written, len(w.waiting), w.texts, stopAt)
		}
		for i, line := range lines {
			var text batchText
			if err := json.Unmarshal([]byte(line), &text); err != nil || string(text.ID) != fmt.Sprint(i) || text.Prompt != batchPrompts[i] {
				t.Errorf("line %d is %s: %v", i+1, line, err)
			}
		}
	}
}

func TestBatchProgress(t *testing.T) {
	var screen bytes.Buffer
	p := newBatchProgress(&screen, 7, true)
	if !strings.Contains(screen.String(), "(0/7)") {
		t.Errorf("at the beginning the screen shows %q", screen.String())
	}
	screen.Reset()
	p.show(3, 40)
	if text := screen.String(); !strings.Contains(text, "(3/7)") || !strings.Contains(text, "tokens/s") || strings.Contains(text, "\n") {
		t.Errorf("after three texts it shows %q", text)
	}
	screen.Reset()
	p.clear()
	if text := screen.String(); !strings.HasPrefix(text, "\r") || strings.Trim(text, "\r \x1b[2K") != "" {
		t.Errorf("a bar is cleared by %q", text)
	}
	screen.Reset()
	silent := newBatchProgress(&screen, 7, false)
	silent.show(1, 1)
	silent.clear()
	if screen.Len() > 0 {
		t.Errorf("where nobody looks it shows %q", screen.String())
	}
}

// brokenPipe takes one line.
type brokenPipe struct{ lines int }

func (w *brokenPipe) Write(p []byte) (int, error) {
	if w.lines++; w.lines > 1 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestBatchStopsWhereNobodyReads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "prompts.jsonl")
	if err := os.WriteFile(file, []byte(strings.Repeat("\"Anna lives in\"\n", 40)), 0o600); err != nil {
		t.Fatal(err)
	}
	root, out := newRoot(), &brokenPipe{}
	root.SetArgs([]string{"generate", "--backend", "cpu", "--batch", file, "--batch-size", "2", "--max-tokens", "2", "-q"})
	root.SetOut(out)
	if err := root.Execute(); !errors.Is(err, io.ErrClosedPipe) || out.lines != 2 {
		t.Errorf("after %d lines: error %v", out.lines, err)
	}
}

func TestReadPrompts(t *testing.T) {
	const advice = "\n" + promptAdvice
	for _, c := range []struct {
		name, text string
		want       string // prompts and ids, or an error
	}{
		{"both kinds", "\ufeff{\"prompt\": \"a\\nb\", \"id\": 7}\r\n\n  \"c\"  \n{\"id\":\"x\",\"prompt\":\"d\"}", `in:1 "a\nb" 7, in:3 "c" , in:4 "d" "x"`},
		{"ids of two kinds", "{\"prompt\":\"a\",\"id\":1}\n{\"prompt\":\"a\",\"id\":\"1\"}\n\"a\"\n\"a\"", `in:1 "a" 1, in:2 "a" "1", in:3 "a" , in:4 "a" `},
		{"nothing", "", "in: no prompts" + advice},
		{"blank lines", "\n \n", "in: no prompts" + advice},
		{"no JSON", "\"a\"\nAnna\n", "in:2: no JSON: invalid character 'A' looking for beginning of value" + advice},
		{"cut off", `{"prompt": "a`, "in:1: no JSON: unexpected end of JSON input" + advice},
		{"two values", `"a" "b"`, "in:1: no JSON: invalid character '\"' after top-level value" + advice},
		{"a number", "\n17", "in:2: expected an object or a string, got 17" + advice},
		{"null", "null", "in:1: expected an object or a string, got null" + advice},
		{"a list", `["a"]`, `in:1: expected an object or a string, got ["a"]` + advice},
		{"no prompt", `{"id": 1}`, `in:1: no "prompt"` + advice},
		{"another case", `{"Prompt": "a"}`, `in:1: unknown field "Prompt"` + advice},
		{"a field more", `{"prompt": "a", "answer": "b"}`, `in:1: unknown field "answer"` + advice},
		{"a field twice", `{"prompt": "a", "prompt": "b"}`, "in:1: field \"prompt\" appears twice\nkeep one of them"},
		{"a prompt of another kind", `{"prompt": ["a"]}`, `in:1: "prompt" is ["a"], expected a string` + advice},
		{"a prompt of null", `{"prompt": null}`, `in:1: "prompt" is null, expected a string` + advice},
		{"an id of another kind", `{"prompt": "a", "id": true}`, "in:1: \"id\" is true\nleave it out, or give a string or a number"},
		{"an empty prompt", "\"a\"\n\"\"", "in:2: the prompt is empty\nthe model continues a text: give it one"},
		{"an empty prompt of an object", `{"prompt": ""}`, "in:1: the prompt is empty\nthe model continues a text: give it one"},
		{"an id twice", "{\"prompt\":\"a\",\"id\":\"x\"}\n\"a\"\n{\"prompt\":\"b\",\"id\": \"x\"}", "in:3: id \"x\" is that of in:1 too\ngive each prompt an id of its own, or none"},
		{"no UTF-8", "\"a\xff\"", "in:1: not UTF-8\nsave the file as UTF-8"},
		{"a line without end", "\"a\"\n\"" + strings.Repeat("a", maxPromptBytes), "in:2: longer than 16.8 MB\nwrite one prompt on each line"},
	} {
		got, err := readPrompts("-", strings.NewReader(c.text))
		var list []string
		for _, p := range got {
			list = append(list, fmt.Sprintf("%s %q %s", p.where, p.prompt, p.id))
		}
		found := strings.Join(list, ", ")
		if err != nil {
			found = err.Error()
		}
		if found = strings.ReplaceAll(found, "standard input", "in"); found != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, found, c.want)
		}
	}
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): filepath.Join(dir, "none") + ": no such file or directory\ncheck the path",
		dir:                        dir + ": is a directory\ncheck that it is a file that can be read",
	} {
		if _, err := readPrompts(path, nil); fmt.Sprint(err) != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
