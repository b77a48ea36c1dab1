package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
	"loratrain/train"
)

const defaultBatchSize = 16

// batchText is a line of what --batch writes.
type batchText struct {
	ID json.RawMessage `json:"id,omitempty"`
	continued
}

// runBatch continues the prompts of a file.
func (f *generateFlags) runBatch(cmd *cobra.Command, g *generator, b kernels.Backend, a adapted, prompts []filePrompt) error {
	room, advice, err := f.roomIn(a.base.Arch.Context)
	if err != nil {
		return err
	}
	w := &batchWriter{out: cmd.OutOrStdout(), prompts: prompts, waiting: map[int]*continuation{}}
	most, ids := 0, make([][]int32, len(prompts))
	for i, p := range prompts {
		ids[i] = g.tokens.Encode(p.prompt, true)
		if err := fits(len(ids[i]), room, advice, ""); err != nil {
			return fmt.Errorf("%s: %w", p.where, err)
		}
		most = max(most, positions(len(ids[i]), room, f.maxTokens))
	}
	size, err := f.sequences(cmd.Flags().Changed("batch-size"), a, len(prompts))
	if err != nil {
		return err
	}
	closeDecoder, err := g.prepare(b, a, f.mode, most, size)
	if err != nil {
		return err
	}
	defer closeDecoder()
	to := cmd.ErrOrStderr()
	w.progress = newBatchProgress(to, len(prompts), !quiet(cmd) && train.IsTerminal(to))
	next, begin := 0, time.Now()
	err = g.run(cmd.Context(), source{
		next: func() *continuation {
			if next == len(prompts) {
				return nil
			}
			next++
			return g.continuation(next-1, prompts[next-1].prompt, ids[next-1], io.Discard)
		},
		done: w.done,
	})
	w.progress.clear()
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if !quiet(cmd) {
		w.summarise(cmd.ErrOrStderr(), &g.about, size, time.Since(begin).Seconds())
	}
	return err
}

// sequences is how many prompts are computed at once.
func (f *generateFlags) sequences(given bool, a adapted, prompts int) (int, error) {
	size := f.batchSize
	if a.export != nil {
		granularity := router.Granularity(a.export.Config.Granularity)
		mode, err := chooseMode(f.mode, granularity)
		if err != nil {
			return 0, err
		}
		if mode == model.Merged && granularity == router.Token {
			if given && size > 1 {
				return 0, usagef("use --mode fused, or --batch-size 1",
					"--batch-size %d: mode merged has one token's experts in the weights", size)
			}
			size = 1
		}
	}
	return min(size, prompts), nil
}

// batchWriter writes texts in the order of their prompts.
type batchWriter struct {
	out      io.Writer
	prompts  []filePrompt
	waiting  map[int]*continuation // done, after one that is not
	written  int
	tokens   int // of texts that are done
	texts    int
	progress *batchProgress
}

// done writes a text, and those that waited for it.
func (w *batchWriter) done(c *continuation) error {
	w.waiting[c.index] = c
	w.texts++
	w.tokens += c.Tokens
	for {
		c := w.waiting[w.written]
		if c == nil {
			w.progress.show(w.texts, w.tokens)
			return nil
		}
		w.progress.clear()
		if err := printJSON(w.out, batchText{w.prompts[w.written].id, c.continued}); err != nil {
			return err
		}
		delete(w.waiting, w.written)
		w.written++
	}
}

// summarise says for people what was done and how fast.
func (w *batchWriter) summarise(to io.Writer, about *generated, size int, took float64) {
	with := ""
	if about.Adapter != "" {
		with = fmt.Sprintf(" with %s, %s", about.Adapter, about.Mode)
	}
	interrupted := ""
	if n := len(w.prompts); w.written < n {
		interrupted = fmt.Sprintf("; interrupted, %d of %d are written", w.written, n)
	}
	fmt.Fprintf(to, "%s%s, on %s\n", about.Model, with, about.Backend)
	fmt.Fprintf(to, "%s, %d at once: %s in %s, %s%s\n", plural(w.texts, "text"), size, plural(w.tokens, "token"), seconds(took),
		perSecond(float64(w.tokens)/took), interrupted)
}

// batchProgress is a bar on a terminal, elsewhere nothing.
type batchProgress struct {
	bar   *progressbar.ProgressBar // nil: no bar
	begin time.Time
}

func newBatchProgress(w io.Writer, texts int, shown bool) *batchProgress {
	p := &batchProgress{begin: time.Now()}
	if shown {
		p.bar = progressbar.NewOptions(texts, progressbar.OptionSetWriter(w), progressbar.OptionSetWidth(20),
			progressbar.OptionSetElapsedTime(false), progressbar.OptionSetDescription("texts"), progressbar.OptionShowCount(),
			progressbar.OptionSetRenderBlankState(true))
	}
	return p
}

// show draws the bar. A terminal that went away must not stop the texts.
func (p *batchProgress) show(texts, tokens int) {
	if p.bar == nil {
		return
	}
	p.bar.Describe(fmt.Sprintf("texts, %s", perSecond(float64(tokens)/time.Since(p.begin).Seconds())))
	_ = p.bar.Set(texts)
}

// clear makes place for a line.
func (p *batchProgress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
