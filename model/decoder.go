package model

import (
	"errors"
	"fmt"
	"slices"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// Mode is how a decoder applies experts.
type Mode string

// The modes. Fused applies the chosen experts beside the base's weights, looked up in the routing table. Merged adds them to
// a copy of the weights before each token, from the pristine ones, and then runs the bare backbone (LoRA-Switch).
// Layerwise computes the routers and applies each layer's experts by itself, the cost that the other two remove.
const (
	Fused     Mode = "fused"
	Merged    Mode = "merged"
	Layerwise Mode = "layerwise"
)

// Modes lists those that an adapter of a granularity can be decoded in, the fastest first.
func Modes(g router.Granularity) []Mode {
	switch g {
	case router.Token, router.None:
		return []Mode{Fused, Merged, Layerwise}
	default:
		return []Mode{Layerwise}
	}
}

// ParseMode is the Mode of that name, if an adapter of that granularity has it.
func ParseMode(name string, g router.Granularity) (Mode, error) {
	for _, m := range Modes(g) {
		if string(m) == name {
			return m, nil
		}
	}
	for _, m := range Modes(router.Token) {
		if string(m) == name {
			return "", fmt.Errorf("mode %s needs one decision per token, this adapter decides per %s\nuse --mode %s", name, g, Modes(g)[0])
		}
	}
	return "", fmt.Errorf("unknown mode %q\nuse one of %v", name, Modes(router.Token))
}

// Decoder generates one sequence, a token at a time.
type Decoder struct {
	base    *Placed
	adapter *Served // nil: the base alone
	mode    Mode
	x       *graph.Immediate
	values  *Values // of the base
	serving *Values // of the merged copy, with Merged
	cache   *Cache
	pos     int
	logits  graph.V     // (1, V), of the last token
	beside  *servedPass // the last pass, if its experts were applied beside the weights

	merging kernels.Merging // into serving, with Merged
	merged  mergedChoice
}

// mergedChoice is what the serving copy holds.
type mergedChoice struct {
	set     bool
	ids     [router.Top]int32
	weights [router.Top]float32
}

// NewDecoder is ready for sequences of up to a number of tokens, no more than the base was placed for. adapter may be nil: then
// the base is decoded alone, whatever the mode.
func NewDecoder(base *Placed, adapter *Served, mode Mode, context int) (*Decoder, error) {
	d := &Decoder{base: base, adapter: adapter, mode: mode}
	if adapter != nil {
		d.base = adapter.Base
		if _, err := ParseMode(string(mode), adapter.Spec.Granularity); err != nil {
			return nil, err
		}
	}
	if context > d.base.Positions() {
		return nil, fmt.Errorf("a context of %d tokens, the model was placed for %d", context, d.base.Positions())
	}
	d.x = graph.NewImmediate(d.base.Backend)
	d.values = d.base.Bind(d.x)
	var err error
	if d.cache, err = NewCache(d.x, d.base.Arch, context); err != nil {
		return nil, err
	}
	if adapter != nil && mode == Merged {
		if err := d.prepareMerge(); err != nil {
			d.Close()
			return nil, err
		}
	}
	return d, nil
}

func (d *Decoder) prepareMerge() error {
	s := d.adapter
	copied, jobs, err := d.base.copyTargets(s.Spec.Targets, func(l int, t Target) servedLinear { return s.layers[l].linears[t] })
	if err != nil {
		return fmt.Errorf("%w\nuse --mode fused, which needs no copy", err)
	}
	d.serving = copied.Bind(d.x)
	if d.merging, err = d.base.Backend.PrepareMerge(jobs); err != nil {
		for _, j := range jobs {
			d.base.Backend.Free(j.Dst)
		}
		return err
	}
	if s.Spec.Granularity == router.None {
		return s.merge(d.x, d.merging, []int32{0}, []float32{1})
	}
	return nil
}

// switchTo merges the experts of a token, unless they are those in force.
func (d *Decoder) switchTo(id int32) error {
	if d.adapter.Spec.Granularity != router.Token {
		return nil
	}
	want := mergedChoice{set: true}
	want.ids, want.weights = d.adapter.Table(id)
	if want == d.merged {
		return nil
	}
	d.merged = mergedChoice{} // until it has worked
	if err := d.adapter.merge(d.x, d.merging, want.ids[:], want.weights[:]); err != nil {
		return err
	}
	d.merged = want
	return nil
}

// Reset begins a new sequence.
func (d *Decoder) Reset() { d.pos = 0 }

// Room is how many tokens still fit.
func (d *Decoder) Room() int { return d.cache.Positions() - d.pos }

// Close gives memory back.
func (d *Decoder) Close() {
	d.forget()
	d.cache.Free(d.base.Backend)
	if d.merging != nil {
		for _, j := range d.merging.Layers() {
			d.base.Backend.Free(j.Dst)
		}
		d.merging.Close()
		d.merging = nil
	}
	d.x.Close()
}

// forget gives back what the last pass left.
func (d *Decoder) forget() {
	d.x.Done(d.logits)
	d.logits = graph.V{}
	if d.beside != nil {
		d.beside.Release(d.x)
		d.beside = nil
	}
}

// Feed runs tokens, the first of a sequence at position 0, and leaves the logits of the token that follows the last. More than one
// at once, a prompt, is never merged: every token has its own experts.
func (d *Decoder) Feed(ids ...int32) error {
	if len(ids) == 0 {
		return errors.New("no tokens to run\ngive a prompt of at least one token")
	}
	if len(ids) > d.Room() {
		return fmt.Errorf("%d tokens after %d do not fit a context of %d\nshorten the prompt or raise --context",
			len(ids), d.pos, d.cache.Positions())
	}
	for _, id := range ids {
		if id < 0 || int(id) >= d.base.Arch.Vocab {
			return fmt.Errorf("token %d, the model has ids below %d\nuse the tokenizer that belongs to the model", id, d.base.Arch.Vocab)
		}
	}
	values, merged := d.values, d.adapter != nil && d.mode == Merged && len(ids) == 1
	if merged {
		if err := d.switchTo(ids[0]); err != nil {
			return err
		}
		values = d.serving
	}
	d.forget()
	err := graph.Catch(d.base.Backend, func() { d.pass(ids, values, merged) })
	if err == nil {
		d.pos += len(ids)
	}
	return err
}

func (d *Decoder) pass(ids []int32, values *Values, merged bool) {
	x, n := d.x, len(ids)
	var ad Adapter
	var beside *servedPass
	if d.adapter != nil && !merged {
		beside = d.adapter.pass(x, ids, d.mode != Layerwise)
		ad = beside
	}
	pos, spans := make([]int32, n), []int32(nil)
	for t := range pos {
		pos[t] = int32(d.pos + t)
		first := int32(0)
		if w := d.base.Arch.Window; w > 0 {
			first = max(0, pos[t]-int32(w)+1)
		}
		spans = append(spans, 0, 0, first, pos[t]+1)
	}
	in := Inputs{IDs: x.Ints(ids, n), Pos: x.Ints(pos, n), Spans: x.Ints(spans, n, 4), Cache: d.cache}
	d.cache.at = in.Pos
	hidden := Hidden(x, values, ad, in)
	width := d.base.Arch.Width
	last := x.Bind("last", hidden.Tensor().View((n-1)*width, 1, width))
	d.logits, d.beside = graph.Linear(x, last, values.Head, graph.V{}, graph.V{}), beside
	x.Done(hidden, in.IDs, in.Pos, in.Spans)
}

// Logits is those of the token that follows what was fed: (V).
func (d *Decoder) Logits() []float64 {
	host := kernels.NewHost(d.logits.Type, d.logits.Shape...)
	d.base.Backend.Read(host, d.logits.Tensor())
	get, list := getter(host), make([]float64, host.Len())
	for i := range list {
		list[i] = get(i)
	}
	return list
}

// Sample chooses the next token; u is uniform in [0, 1).
func (d *Decoder) Sample(rule kernels.Sampling, u float32) (id int32, err error) {
	b := d.base.Backend
	err = graph.Catch(b, func() {
		v, r := d.x.Ints([]int32{0}, 1), d.x.Floats([]float32{u}, 1)
		b.Sample(v.Tensor(), d.logits.Tensor(), r.Tensor(), rule)
		out := kernels.NewHost(kernels.I32, 1)
		b.Read(out, v.Tensor())
		id = kernels.Slice[int32](out)[0]
		d.x.Done(v, r)
	})
	return id, err
}

// Experts is the experts that the last token fed used, for every router there is, the larger gate first. They are read from the
// backend only here, so that a step does not wait for what nobody asks for.
func (d *Decoder) Experts() [][]int32 {
	switch {
	case d.beside != nil:
		return d.beside.lastChoices(d.base.Backend)
	case d.merged.set && !d.logits.None():
		return [][]int32{slices.Clone(d.merged.ids[:])}
	default:
		return nil
	}
}
