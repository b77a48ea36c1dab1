package main

import (
	"context"
	"slices"

	"loratrain/model"
)

// source gives the prompts that are next, nil if there are no more; done is told of each text that is complete.
type source struct {
	next    func() *continuation
	started func(c *continuation)
	done    func(c *continuation) error
}

// fetched is tokens on their way from the backend, of the texts that were in these places; nil: of none.
type fetched struct {
	of   []*continuation
	wait func() ([]int32, error)
}

// run continues prompts until there are no more, or the context ends. A place that gets free takes the next prompt. With ahead, a step is
// queued before the tokens of the one before are read, and runs in vain for a text that these tokens end.
func (g *generator) run(ctx context.Context, from source) error {
	var queue []fetched
	for {
		started, err := g.fill(ctx, from)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(started, isText) {
			queue = append(queue, fetched{started, g.decoder.Tokens()})
		}
		late := 0
		if stepped := g.ahead || len(queue) == 0; stepped && g.wanted() {
			if err := g.step(ctx); err != nil {
				return err
			}
			queue = append(queue, fetched{slices.Clone(g.places), g.decoder.Tokens()})
			if g.ahead {
				late = 1
			}
		}
		if len(queue) == 0 {
			return nil
		}
		for len(queue) > late {
			if err := g.take(queue[0], from); err != nil {
				return err
			}
			queue = queue[1:]
		}
	}
}

func isText(c *continuation) bool { return c != nil }

// fill starts the next prompts in free places, and returns which.
func (g *generator) fill(ctx context.Context, from source) ([]*continuation, error) {
	started := make([]*continuation, len(g.places))
	for place := range g.places {
		if g.places[place] != nil {
			continue
		}
		c := from.next()
		if c == nil {
			break
		}
		g.places[place], started[place] = c, c
		if err := g.prefill(ctx, place, c); err != nil {
			return nil, err
		}
		c.queued = 1
		if from.started != nil {
			from.started(c)
		}
	}
	return started, nil
}

// prefill runs a prompt, in pieces so that an interrupt need not wait.
func (g *generator) prefill(ctx context.Context, place int, c *continuation) error {
	begun := false
	for ids := range slices.Chunk(c.prompt, g.decoder.PrefillTokens()) {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := error(nil)
		if begun {
			err = g.decoder.Extend(place, ids...)
		} else {
			err = g.decoder.Start(place, model.PromptKey(g.seed, c.index), ids...)
		}
		if err != nil {
			return err
		}
		begun = true
	}
	return g.checkSound(place)
}

// wanted says whether any text needs another token than those that are queued.
func (g *generator) wanted() bool {
	return slices.ContainsFunc(g.places, func(c *continuation) bool { return c != nil && c.queued < c.limit })
}

// step queues the next token of every text.
func (g *generator) step(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := g.decoder.Step(); err != nil {
		return err
	}
	for place, c := range g.places {
		if c == nil {
			continue
		}
		c.queued++
		if !g.report {
			continue
		}
		if experts := g.decoder.Experts(place); len(experts) > 0 {
			c.experts = append(c.experts, experts)
		}
	}
	return nil
}

// take gives tokens to their texts. What came after the end of one is dropped.
func (g *generator) take(f fetched, from source) error {
	ids, err := f.wait()
	if err != nil {
		return err
	}
	for place, c := range f.of {
		if c == nil || g.places[place] != c {
			continue
		}
		if err := c.take(ids[place], g.ends); err != nil {
			return err
		}
		if c.Stop == "" {
			continue
		}
		g.decoder.Stop(place)
		g.places[place] = nil
		if err := from.done(c); err != nil {
			return err
		}
	}
	return nil
}
