package main

import (
	"context"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"loratrain/router"
)

// prefillTokens is how much of a prompt is computed at once: enough for large matrices, little enough that an interrupt
// need not wait.
const prefillTokens = 512

// run generates until there is a reason to stop, the context's error being one of them.
func (g *generation) run(ctx context.Context) error {
	r := &g.result
	r.IDs, r.PromptTokens = []int32{}, len(r.PromptIDs)
	begin := time.Now()
	err := g.prefill(ctx)
	r.Seconds.Prefill = time.Since(begin).Seconds()
	if err == nil {
		begin = time.Now()
		err = g.decode(ctx)
		r.Seconds.Decode = time.Since(begin).Seconds()
	}
	r.Text, r.Tokens = g.all.String(), len(r.IDs)
	if fed := g.fed; fed > 0 {
		r.TokensPerSecond = float64(fed) / r.Seconds.Decode
	}
	if err != nil {
		r.Stop = stopInterrupted
	}
	if r.Text != "" && !strings.HasSuffix(r.Text, "\n") {
		if _, err := io.WriteString(g.text, "\n"); err != nil {
			return err
		}
	}
	return err
}

func (g *generation) prefill(ctx context.Context) error {
	for ids := range slices.Chunk(g.result.PromptIDs, prefillTokens) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := g.decoder.Feed(ids...); err != nil {
			return err
		}
	}
	if g.served != nil && g.served.Spec.Granularity == router.Token {
		for _, id := range g.result.PromptIDs {
			experts, _ := g.served.Table(id)
			g.result.PromptExperts = append(g.result.PromptExperts, [][]int32{experts[:]})
		}
	}
	for _, x := range g.decoder.Logits() {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return failf("the weights may be damaged: fetch the model again, or export the adapter again", "the model computes %v", x)
		}
	}
	return nil
}

func (g *generation) decode(ctx context.Context) error {
	r := &g.result
	stream, random := g.tokens.Stream(!g.special), rand.New(rand.NewPCG(g.seed, 0))
	for {
		if err := ctx.Err(); err != nil {
			return g.finish(stream.Flush(), err)
		}
		id, err := g.decoder.Sample(g.rule, random.Float32())
		if err != nil {
			return err
		}
		if slices.Contains(g.ends, id) {
			r.Stop = stopEnd
			return g.finish(stream.Flush(), nil)
		}
		r.IDs = append(r.IDs, id)
		if err := g.write(stream.Write(id)); err != nil {
			return err
		}
		switch {
		case len(r.IDs) == g.most:
			r.Stop = stopMax
			return g.finish(stream.Flush(), nil)
		case g.decoder.Room() == 0:
			r.Stop = stopContext
			return g.finish(stream.Flush(), nil)
		}
		if err := g.decoder.Feed(id); err != nil {
			return err
		}
		g.fed++
		if !g.report {
			continue
		}
		if experts := g.decoder.Experts(); len(experts) > 0 {
			own := make([][]int32, len(experts))
			for i, pair := range experts {
				own[i] = slices.Clone(pair)
			}
			r.Experts = append(r.Experts, own)
		}
	}
}

// write shows a piece of the text.
func (g *generation) write(piece string) error {
	g.all.WriteString(piece)
	if piece == "" {
		return nil
	}
	_, err := io.WriteString(g.text, piece)
	return err
}

// finish shows the last piece.
func (g *generation) finish(piece string, reason error) error {
	if err := g.write(piece); err != nil {
		return err
	}
	return reason
}
