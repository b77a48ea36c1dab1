package model

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"

	"loratrain/checkpoints"
	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/router"
)

// Adapted is a base and an adapter trained on it, in the layout of training.
type Adapted struct {
	Base   *Base
	Placed *Placed
	Bank   *Bank
	Params kernels.Tensor // in the backend's memory
}

// config is what an export says of itself.
func (m Adapted) config() checkpoints.Config {
	s := m.Bank.Spec
	c := checkpoints.Config{
		Base:        checkpoints.Base{Name: m.Base.Name, Digest: m.Base.Digest(), Dims: DimsOf(m.Placed.Arch)},
		Granularity: checkpoints.Granularity(s.Granularity), Experts: s.Experts, Rank: s.Rank, SharedRank: s.Shared, Alpha: s.Alpha,
	}
	for _, t := range s.Targets {
		c.Targets = append(c.Targets, t.String())
	}
	return c
}

// tensors is what an export holds, in f32: the trained ones and, with router.Token, the routing table.
func (m Adapted) tensors() ([]checkpoints.Tensor, error) {
	host := kernels.NewHost(m.Params.Type, m.Params.Shape...)
	m.Placed.Backend.Read(host, m.Params)
	if err := m.Placed.Backend.Sync(); err != nil {
		return nil, err
	}
	list := m.Bank.Tensors(inType(host, kernels.F32))
	if m.Bank.Spec.Granularity != router.Token {
		return list, nil
	}
	table, err := m.table()
	return append(list, table...), err
}

// ExportPEFT writes each expert as an adapter that Python's peft loads.
func (m Adapted) ExportPEFT(dir string) error {
	tensors, err := m.tensors()
	if err != nil {
		return err
	}
	return checkpoints.WritePEFT(dir, m.config(), tensors)
}

// Agreement is what the verification of an export measured, on float32 logits.
type Agreement struct {
	Prompts int    `json:"prompts"`
	Modes   []Mode `json:"modes"`
	// Between is the largest difference between two modes on the exported weights, Rounding that between the export and the
	// adapter it was made from.
	Between  float64 `json:"between"`
	Rounding float64 `json:"rounding"`
}

// tolerance is how far modes may differ on the same weights, relative to the largest logit where that is above 1. They add the
// same numbers in another order.
const tolerance = 1e-4

// Export writes the serving folder, reads it back, and runs every mode that applies on prompts, ids that real text gave, at least
// one; Merged only where its copy of the weights fits. What does not agree is deleted and never seen as dir. All is computed in float32.
func (m Adapted) Export(dir string, prompts [][]int32) (Agreement, error) {
	if len(prompts) == 0 {
		return Agreement{}, fmt.Errorf("%s: no prompts to verify the export with", dir)
	}
	if b, ok := m.Placed.Backend.(kernels.Exacter); ok && m.Placed.Backend.Float() == kernels.BF16 {
		exact := b.Exact()
		m.Placed = m.Placed.On(exact)
		a, err := m.export(dir, prompts)
		return a, cmp.Or(err, exact.Close())
	}
	return m.export(dir, prompts)
}

func (m Adapted) export(dir string, prompts [][]int32) (Agreement, error) {
	c := m.config()
	tensors, err := m.tensors()
	if err != nil {
		return Agreement{}, err
	}
	var a Agreement
	err = checkpoints.WriteServing(dir, c, tensors, func(written string) (err error) {
		if a, err = m.verify(written, c, tensors, prompts); err != nil {
			err = fmt.Errorf("%s: %w", dir, err)
		}
		return err
	})
	return a, err
}

// tableRows is how many token ids are routed at once.
const tableRows = 1024

// table is the routing table of the whole vocabulary as tensors of the file layout.
func (m Adapted) table() ([]checkpoints.Tensor, error) {
	b, vocab := m.Placed.Backend, m.Placed.Arch.Vocab
	ids, weights := kernels.NewHost(kernels.I32, vocab, router.Top), kernels.NewHost(kernels.F32, vocab, router.Top)
	x := graph.NewImmediate(b)
	defer x.Close()
	values := m.Placed.Bind(x)
	ad, _ := m.Bank.Bind(x, m.Params, Dropout{})
	r, _ := ad.param(tokenRouter)
	err := graph.Catch(b, func() {
		for from := 0; from < vocab; from += tableRows {
			tokens := make([]int32, min(tableRows, vocab-from))
			for i := range tokens {
				tokens[i] = int32(from + i)
			}
			t := x.Ints(tokens, len(tokens))
			h := RouterInput(x, values, t)
			i, w := router.Table(x, h, r)
			x.Done(t, h)
			copy(kernels.Slice[int32](ids)[from*router.Top:], kernels.Slice[int32](i))
			get := getter(w)
			for k := range w.Len() {
				kernels.Slice[float32](weights)[from*router.Top+k] = float32(get(k))
			}
		}
	})
	return []checkpoints.Tensor{toFile(checkpoints.TableIDs, ids), toFile(checkpoints.TableWeights, weights)}, err
}

// verify reads an export back, whose tensors should be the given ones, and compares.
func (m Adapted) verify(dir string, c checkpoints.Config, tensors []checkpoints.Tensor, prompts [][]int32) (Agreement, error) {
	a := Agreement{Prompts: len(prompts)}
	e, err := checkpoints.OpenServing(dir)
	if err != nil {
		return a, err
	}
	defer e.Close()
	if err := e.CheckBase(c.Base.Name, c.Base.Digest, c.Base.Dims); err != nil {
		return a, err
	}
	if err := sameNumbers(e, tensors); err != nil {
		return a, fmt.Errorf("%w\nnothing was exported; check the disk", err)
	}
	s, err := Serve(m.Placed, e)
	if err != nil {
		return a, err
	}
	defer s.Close()
	a.Modes = m.verifiable()
	context := 1
	for _, p := range prompts {
		context = max(context, len(p))
	}
	logits := make([][][]float64, len(a.Modes)) // mode, prompt
	for i, mode := range a.Modes {
		if logits[i], err = decodeAll(m.Placed, s, mode, context, prompts); err != nil {
			return a, fmt.Errorf("mode %s: %w", mode, err)
		}
	}
	trained, err := m.logits(prompts)
	if err != nil {
		return a, err
	}
	for p := range prompts {
		largest := 1.0
		for _, l := range logits[0][p] {
			largest = max(largest, math.Abs(l))
		}
		for i := range a.Modes {
			diff := distance(logits[0][p], logits[i][p])
			a.Between = max(a.Between, diff)
			if !(diff <= tolerance*largest) {
				return a, fmt.Errorf("modes %s and %s differ by %.2g in the logits after prompt %d\nnothing was exported; please report this with the run's config.yaml",
					a.Modes[0], a.Modes[i], diff, p+1)
			}
		}
		a.Rounding = max(a.Rounding, distance(trained[p], logits[0][p]))
	}
	return a, nil
}

// verifiable is the modes that apply and whose memory there is.
func (m Adapted) verifiable() []Mode {
	return slices.DeleteFunc(Modes(m.Bank.Spec.Granularity), func(mode Mode) bool {
		limited, ok := m.Placed.Backend.(kernels.Limited)
		if !ok || mode != Merged {
			return false
		}
		free, ok := limited.FreeMemory()
		return ok && free < CopyBytes(m.Placed.Backend.Float(), m.Placed.Arch, m.Bank.Spec.Targets)
	})
}

// CopyBytes is what a copy of the weights of some linear layers takes that experts are merged into, in a type.
func CopyBytes(typ kernels.Type, a Arch, list []Target) int {
	n := 0
	for _, t := range list {
		in, out := a.Shape(t)
		n += a.Layers * in * out * typ.Size()
	}
	return n
}

// sameNumbers checks that an export holds the given tensors, rounded where it stores them as BF16.
func sameNumbers(e *checkpoints.Serving, tensors []checkpoints.Tensor) error {
	for _, t := range tensors {
		stored, _ := e.Tensor(t.Name)
		same := bytes.Equal(stored.Data, t.Data)
		if stored.Type != t.Type {
			got, err := fromFile(stored)
			if err != nil {
				return err
			}
			want, err := fromFile(t)
			if err != nil {
				return err
			}
			same = slices.EqualFunc(kernels.Slice[kernels.BFloat16](got), kernels.Slice[float32](want), func(g kernels.BFloat16, w float32) bool {
				return g == kernels.ToBFloat16(w)
			})
		}
		if !same {
			return fmt.Errorf("tensor %q is not what was written", t.Name)
		}
	}
	return nil
}

// decodeAll is the logits after each prompt, of which all but the last token are run at once and that one as decoding does.
func decodeAll(base *Placed, s *Served, mode Mode, context int, prompts [][]int32) ([][]float64, error) {
	d, err := NewDecoder(base, s, mode, context, 1)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var list [][]float64
	for i, p := range prompts {
		if len(p) == 0 {
			return nil, fmt.Errorf("prompt %d: %w", i+1, errNoTokens)
		}
		last := len(p) - 1
		err := d.Start(0, 0, p[:last]...)
		if err == nil {
			err = d.Put(0, p[last])
		}
		if err == nil {
			err = d.Step()
		}
		if err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i+1, err)
		}
		list = append(list, d.Logits(0))
	}
	return list, nil
}

// logits is those after each prompt as training computes them.
func (m Adapted) logits(prompts [][]int32) ([][]float64, error) {
	b := m.Placed.Backend
	x := graph.NewImmediate(b)
	defer x.Close()
	values := m.Placed.Bind(x)
	var list [][]float64
	for _, p := range prompts {
		err := graph.Catch(b, func() {
			ad, _ := m.Bank.Bind(x, m.Params, Dropout{})
			h := hiddenOf(x, values, ad, p)
			last := x.Bind("last", h.Tensor().View((len(p)-1)*values.arch.Width, 1, values.arch.Width))
			l := graph.Linear(x, last, values.Head, graph.V{}, graph.V{})
			host := kernels.NewHost(l.Type, l.Shape...)
			b.Read(host, l.Tensor())
			get, row := getter(host), make([]float64, host.Len())
			for i := range row {
				row[i] = get(i)
			}
			list = append(list, row)
			ad.Release(x)
			x.Done(h, l)
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// hiddenOf is a pass over one sequence.
func hiddenOf(x *graph.Immediate, values *Values, ad Adapter, ids []int32) graph.V {
	n := len(ids)
	pos, visible, seq := make([]int32, n), make([]Visible, n), make([]int32, n)
	for t := range pos {
		pos[t] = int32(t)
	}
	in := Inputs{IDs: x.Ints(ids, n), Pos: x.Ints(pos, n), Spans: x.Ints(values.arch.Spans(visible, pos, seq), n, 4)}
	h := Hidden(x, values, ad, in)
	x.Done(in.IDs, in.Pos, in.Spans)
	return h
}

func distance(a, b []float64) float64 {
	d := 0.0
	for i := range a {
		diff := math.Abs(a[i] - b[i])
		if math.IsNaN(diff) {
			return math.NaN()
		}
		d = max(d, diff)
	}
	return d
}
