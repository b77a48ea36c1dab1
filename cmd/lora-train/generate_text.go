package main

import (
	"io"
	"math"
	"slices"
	"strings"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/model/tokenizer"
	"loratrain/router"
	"loratrain/train"
)

// generator makes texts of prompts, as many at once as its decoder has places.
type generator struct {
	tokens    *tokenizer.Tokenizer
	decoder   *model.Decoder
	served    *model.Served // nil: no adapter
	ends      []int32
	rule      kernels.Sampling
	most      int // tokens of a text
	positions int // of a prompt and its text
	seed      uint64
	special   bool
	report    bool      // note the experts of every token, which the decoder must be asked for
	ahead     bool      // queue a step before the tokens of the last one are known
	about     generated // what is said of all texts alike

	places []*continuation // nil: free
	sound  bool            // the logits of a prompt were looked at
}

// prepare makes the decoder. The function it returns gives its memory back.
func (g *generator) prepare(b kernels.Backend, a adapted, mode string, positions, sequences int) (func(), error) {
	placed, err := model.Place(b, a.base.Arch, a.base.Weights, positions)
	if err != nil {
		return nil, err
	}
	chosen, release := model.Fused, func() {}
	if a.export != nil {
		granularity := router.Granularity(a.export.Config.Granularity)
		if chosen, err = chooseMode(mode, granularity); err != nil {
			return nil, err
		}
		if g.served, err = model.Serve(placed, a.export); err != nil {
			return nil, err
		}
		g.about.Mode, release = chosen, g.served.Close
	}
	if g.decoder, err = model.NewDecoder(placed, g.served, chosen, positions, sequences); err != nil {
		release()
		return nil, err
	}
	g.decoder.SetRule(g.rule)
	_, late := b.(kernels.Capturer) // its results come later
	g.ahead = late && !g.report
	g.ends = append(g.tokens.EOS(), a.base.EOS...)
	g.positions, g.places = positions, make([]*continuation, sequences)
	return func() { g.decoder.Close(); release() }, nil
}

// chooseMode is the mode of that name, the fastest for none.
func chooseMode(name string, g router.Granularity) (model.Mode, error) {
	if name == "" {
		return model.Modes(g)[0], nil
	}
	mode, err := model.ParseMode(name, g)
	if err != nil {
		return "", train.UsageError{Err: err}
	}
	return mode, nil
}

// continuation is one prompt on its way.
type continuation struct {
	continued
	index   int // among all prompts
	prompt  []int32
	text    io.Writer // where it goes as it comes
	all     strings.Builder
	stream  *tokenizer.Stream
	queued  int // tokens that are chosen or will be by what is queued
	limit   int // of tokens
	full    stopReason
	experts [][][]int32
}

// continuation is ready for a prompt.
func (g *generator) continuation(index int, prompt string, ids []int32, text io.Writer) *continuation {
	c := &continuation{index: index, prompt: ids, text: text, stream: g.tokens.Stream(!g.special), limit: g.most, full: stopMax}
	c.continued = continued{Prompt: prompt, IDs: []int32{}, PromptTokens: len(ids)}
	if room := g.positions - len(ids) + 1; room < c.limit { // the last token is not run
		c.limit, c.full = room, stopContext
	}
	return c
}

// take adds a token to the text, unless the text ends.
func (c *continuation) take(id int32, ends []int32) error {
	if slices.Contains(ends, id) {
		return c.finish(stopEnd)
	}
	c.IDs = append(c.IDs, id)
	if err := c.write(c.stream.Write(id)); err != nil {
		return err
	}
	if len(c.IDs) == c.limit {
		return c.finish(c.full)
	}
	return nil
}

// write shows a piece of the text.
func (c *continuation) write(piece string) error {
	c.all.WriteString(piece)
	if piece == "" {
		return nil
	}
	_, err := io.WriteString(c.text, piece)
	return err
}

// finish shows the last piece.
func (c *continuation) finish(why stopReason) error {
	err := c.write(c.stream.Flush())
	c.Stop, c.Text, c.Tokens = why, c.all.String(), len(c.IDs)
	return err
}

// checkSound refuses a model that computes what is no number.
func (g *generator) checkSound(place int) error {
	if g.sound {
		return nil
	}
	g.sound = true
	for _, x := range g.decoder.Logits(place) {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return failf("the weights may be damaged: fetch the model again, or export the adapter again", "the model computes %v", x)
		}
	}
	return nil
}
