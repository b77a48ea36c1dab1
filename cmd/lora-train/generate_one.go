package main

import (
	"context"
	"io"
	"strings"
	"time"

	"loratrain/router"
)

// generation is one prompt, whose text is shown as it comes.
type generation struct {
	*generator
	text   io.Writer
	prompt string
	ids    []int32 // of prompt

	result generated
}

// run generates until there is a reason to stop, the context's error being one of them.
func (g *generation) run(ctx context.Context) error {
	r := &g.result
	*r = g.about
	r.PromptIDs = g.ids
	if g.served != nil && g.served.Spec.Granularity == router.Token {
		for _, id := range g.ids {
			experts, _ := g.served.Table(id)
			r.PromptExperts = append(r.PromptExperts, [][]int32{experts[:]})
		}
	}
	c := g.continuation(0, g.prompt, g.ids, g.text)
	given, begin, decoding := false, time.Now(), time.Time{}
	err := g.generator.run(ctx, source{
		next: func() *continuation {
			if given {
				return nil
			}
			given = true
			return c
		},
		started: func(*continuation) { decoding = time.Now() },
		done:    func(*continuation) error { return nil },
	})
	if decoding.IsZero() {
		decoding = time.Now()
	}
	r.Seconds.Prefill, r.Seconds.Decode = decoding.Sub(begin).Seconds(), time.Since(decoding).Seconds()
	if c.Stop == "" {
		if broken := c.finish(stopInterrupted); err == nil {
			err = broken
		}
	}
	r.continued, r.Experts = c.continued, c.experts
	if fed := c.queued - 1; fed > 0 {
		r.TokensPerSecond = float64(fed) / r.Seconds.Decode
	}
	if r.Text != "" && !strings.HasSuffix(r.Text, "\n") {
		if _, err := io.WriteString(g.text, "\n"); err != nil {
			return err
		}
	}
	return err
}
