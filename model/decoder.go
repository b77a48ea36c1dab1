package model

import (
	"errors"
	"fmt"
	"slices"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// MaxSequences is how many sequences a Decoder can have.
const MaxSequences = 64

// prefillTokens is how much of a prompt a backend computes at once: enough for large matrices, little enough that memory is small and that
// who gives a longer prompt piece by piece can stop between them. What computes in bf16 is a card, which has to fill a hundred multiprocessors.
func prefillTokens(b kernels.Backend) int {
	if b.Float() == kernels.BF16 {
		return 2048
	}
	return 512
}

// Decoder generates up to MaxSequences sequences at once, a token of each in a step. Sequences are known by their place, from 0 on; each
// starts and ends by itself, and another can be started in its place.
//
// What a step needs lies on the backend, and a [kernels.Capturer] records the step once and repeats it: Step queues it and returns, and
// nobody need wait for its tokens before the next step is queued.
type Decoder struct {
	base    *Placed
	adapter *Served // nil: the base alone
	mode    Mode
	room    int // tokens of a sequence
	rule    kernels.Sampling
	x       *graph.Immediate
	values  *Values // of the base
	serving *Values // of copied, with Merged
	cache   *Cache
	state   state
	lengths []int  // of each sequence, as they will be when all that is queued is done; stopped
	chosen  []bool // the token that follows is chosen

	step      *servedPass   // the experts of the last step; nil: of none
	prefilled []*servedPass // those of each sequence's tokens since the last step, if there are any
	warm      bool          // a step has run, so that another needs no more memory
	recording kernels.Recording

	copied  *Placed         // the base with the merged copy, with Merged
	merging kernels.Merging // into it

	whole   kernels.Step // nil: a step is many operations
	inParts error        // why
}

var errNoTokens = errors.New("no tokens to run\ngive a prompt of at least one token")

// stopped is the length of a sequence that is not decoded.
const stopped = -1

// NewDecoder is ready for a number of sequences of up to context tokens, no more than the base was placed for. adapter may be nil:
// then the base is decoded alone, whatever the mode. Tokens are chosen greedily.
func NewDecoder(base *Placed, adapter *Served, mode Mode, context, sequences int) (*Decoder, error) {
	if adapter != nil {
		base = adapter.Base
	}
	return newDecoder(base, adapter, mode, context, sequences, stepperOf(base.Backend))
}

// newDecoder is that with steps as one operation, if there is a stepper.
func newDecoder(base *Placed, adapter *Served, mode Mode, context, sequences int, whole kernels.Stepper) (*Decoder, error) {
	d := &Decoder{base: base, adapter: adapter, mode: mode, room: context}
	if err := d.check(sequences); err != nil {
		return nil, err
	}
	d.x = graph.NewImmediate(d.base.Backend)
	d.values = d.base.Bind(d.x)
	d.lengths, d.chosen = slices.Repeat([]int{stopped}, sequences), make([]bool, sequences)
	d.prefilled = make([]*servedPass, sequences)
	var err error
	if d.cache, err = NewCache(d.x, d.base.Arch, sequences, context); err != nil {
		return nil, err
	}
	if d.state, err = newState(d.base, d.adapter, sequences, context); err == nil && adapter != nil && mode == Merged {
		err = d.prepareMerge()
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	d.prepareWhole(whole)
	return d, nil
}

func (d *Decoder) check(sequences int) error {
	if d.adapter != nil {
		if _, err := ParseMode(string(d.mode), d.adapter.Spec.Granularity); err != nil {
			return err
		}
	}
	switch {
	case sequences < 1 || sequences > MaxSequences:
		return fmt.Errorf("%d sequences at once, expected 1 to %d", sequences, MaxSequences)
	case sequences > 1 && d.switches():
		return fmt.Errorf("mode %s has one token's experts in the weights, it cannot decode %d sequences at once\nuse --mode %s, or one sequence at a time",
			d.mode, sequences, Fused)
	case d.room > d.base.Positions():
		return fmt.Errorf("a context of %d tokens, the model was placed for %d", d.room, d.base.Positions())
	}
	return nil
}

// tabled says whether experts are looked up in the routing table.
func (d *Decoder) tabled() bool {
	return d.adapter != nil && d.adapter.Spec.Granularity == router.Token && d.mode != Layerwise
}

// SetRule changes how tokens are chosen from here on.
func (d *Decoder) SetRule(rule kernels.Sampling) {
	if rule != d.rule {
		d.rule = rule
		d.forgetRecording()
	}
}

// Start begins a sequence in a place, whatever was there, with the tokens of its prompt, and chooses the token that follows. key
// decides all its chance: what is chosen depends on the sequence alone, not on its place or the others. Without tokens the sequence is
// empty, and Put gives it its first. If it fails for want of memory the place is stopped.
func (d *Decoder) Start(seq int, key uint64, ids ...int32) error {
	if err := d.fits(0, ids); err != nil {
		return err
	}
	b := d.base.Backend
	b.Write(d.state.Keys.View(2*seq, 2), kernels.FromSlice([]int32{int32(key >> 32), int32(key)}, 2))
	d.state.keys[seq] = key
	d.release(seq)
	d.setLength(seq, 0)
	d.chosen[seq] = false
	err := d.prefill(seq, ids)
	if err != nil {
		d.Stop(seq)
	}
	return err
}

// Extend puts more tokens behind those of a sequence and chooses the token that follows them instead of the one that was chosen.
func (d *Decoder) Extend(seq int, ids ...int32) error {
	if err := d.alive(seq); err != nil {
		return err
	}
	if len(ids) == 0 {
		return errNoTokens
	}
	if err := d.fits(d.lengths[seq], ids); err != nil {
		return err
	}
	return d.prefill(seq, ids)
}

// Put replaces the token that was chosen for a sequence.
func (d *Decoder) Put(seq int, id int32) error {
	if err := d.alive(seq); err != nil {
		return err
	}
	if err := d.fits(d.lengths[seq], []int32{id}); err != nil {
		return err
	}
	d.base.Backend.Write(d.state.Tokens.View(seq, 1), kernels.FromSlice([]int32{id}, 1))
	d.chosen[seq] = true
	return nil
}

// Stop ends a sequence: steps pass it by.
func (d *Decoder) Stop(seq int) {
	d.release(seq)
	d.setLength(seq, stopped)
}

func (d *Decoder) alive(seq int) error {
	if d.lengths[seq] == stopped {
		return fmt.Errorf("sequence %d is stopped", seq)
	}
	return nil
}

// fits refuses tokens that the model does not have or that there is no room for behind n others.
func (d *Decoder) fits(n int, ids []int32) error {
	if n+len(ids) > d.room {
		return fmt.Errorf("%d tokens after %d do not fit a context of %d\nshorten the prompt or raise --context", len(ids), n, d.room)
	}
	for _, id := range ids {
		if id < 0 || int(id) >= d.base.Arch.Vocab {
			return fmt.Errorf("token %d, the model has ids below %d\nuse the tokenizer that belongs to the model", id, d.base.Arch.Vocab)
		}
	}
	return nil
}

// Room is how many tokens a sequence still has room for, when all that is queued is done.
func (d *Decoder) Room(seq int) int { return d.room - max(d.lengths[seq], 0) }

// PrefillTokens is how many tokens of a prompt are computed at once.
func (d *Decoder) PrefillTokens() int { return prefillTokens(d.base.Backend) }

// Tokens is the token chosen last for each sequence, to be read when the function that it returns is called, which waits for it: a step may
// be queued before. What it says of a stopped or full sequence means nothing.
func (d *Decoder) Tokens() (wait func() ([]int32, error)) {
	ids := slices.Repeat([]int32{-1}, len(d.lengths))
	arrive := d.base.Backend.Fetch(kernels.FromSlice(ids, len(ids)), d.state.Tokens)
	return func() ([]int32, error) {
		arrive()
		if ids[0] < 0 { // which is never chosen: the device has failed
			if err := d.base.Backend.Sync(); err != nil {
				return nil, err
			}
			return nil, errors.New("the chosen tokens did not arrive")
		}
		return ids, nil
	}
}

// Logits is those that a sequence's next token was chosen by: (V).
func (d *Decoder) Logits(seq int) []float64 {
	vocab := d.base.Arch.Vocab
	host := kernels.NewHost(d.state.logits.Type, vocab)
	d.base.Backend.Read(host, d.state.logits.View(seq*vocab, vocab))
	get, list := getter(host), make([]float64, vocab)
	for i := range list {
		list[i] = get(i)
	}
	return list
}

// Experts is the experts that the last token run of a sequence used, for every router there is, the larger gate first. They are read
// from the backend only here, so that a step does not wait for what nobody asks for.
func (d *Decoder) Experts(seq int) [][]int32 {
	b := d.base.Backend
	switch p := d.prefilled[seq]; {
	case d.lengths[seq] <= 0:
		return nil
	case p != nil:
		return p.choicesOf(b, p.tokens-1)
	case d.step != nil:
		return d.step.choicesOf(b, seq)
	}
	return nil
}

// Close gives memory back.
func (d *Decoder) Close() {
	d.forgetRecording()
	for seq := range d.prefilled {
		d.release(seq)
	}
	d.releaseStep()
	b := d.base.Backend
	if d.whole != nil {
		d.whole.Close()
		d.whole = nil
	}
	d.cache.Free(b)
	d.state.free(b)
	if d.merging != nil {
		freeCopies(b, d.merging.Layers())
		d.merging.Close()
		d.merging = nil
	}
	d.x.Close()
}
