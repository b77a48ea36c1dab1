package model

import (
	"errors"
	"fmt"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// wholes is a backend that records steps and runs them as one operation.
type wholes struct {
	kernels.Backend
	stepper             kernels.Stepper
	refusal             error
	runs, open, records int
}

// repeat is a recording on a backend that cannot record: it asks for everything again.
type repeat func()

func (r repeat) Run() { r() }
func (repeat) Close() {}

func (w *wholes) Capture(f func()) (kernels.Recording, error) {
	w.records++
	return repeat(f), nil
}

func (w *wholes) NewStep(m kernels.StepModel) (kernels.Step, error) {
	if w.refusal != nil {
		return nil, w.refusal
	}
	s, err := w.stepper.NewStep(m)
	if err == nil {
		w.open++
	}
	return wholeStep{s, w}, err
}

type wholeStep struct {
	kernels.Step
	of *wholes
}

func (s wholeStep) Run(logits, tokens, pos, ids, weights kernels.Tensor) {
	s.of.runs++
	s.Step.Run(logits, tokens, pos, ids, weights)
}

func (s wholeStep) Close() {
	s.of.open--
	s.Step.Close()
}

// onWholes is a served adapter on a backend whose steps are one operation.
func onWholes(t *testing.T, b *counter, s *Served) (*wholes, *Served) {
	t.Helper()
	stepper, ok := b.Backend.(kernels.Stepper)
	if !ok {
		t.Fatal("the CPU has no step as one operation")
	}
	w := &wholes{Backend: b, stepper: stepper}
	at := *s
	at.Base = s.Base.On(w)
	return w, &at
}

// A step as one operation gives the tokens, the logits and the experts that a step of many gives, in every mode that has one.
func TestWholeSteps(t *testing.T) {
	rule := kernels.Sampling{Temperature: 0.9, TopK: 20}
	for _, model := range []string{"llama", "mistral", "qwen2", "qwen3"} {
		eachKind(t, func(t *testing.T, spec AdapterSpec) {
			t.Run(model, func(t *testing.T) {
				for _, o := range []cpu.Options{exact, {}} {
					tol := 2e-4
					if o.Float64 {
						tol = 1e-10
					}
					m, b := adapted(t, model, o, spec, true)
					s, _ := served(t, m)
					w, at := onWholes(t, b, s)
					list := texts(m.Base.Arch.Vocab)
					for _, mode := range Modes(spec.Granularity) {
						n := 3
						if mode == Merged && spec.Granularity == router.Token {
							n = 1
						}
						parts := mustDecoderOf(t, m.Placed, s, mode, 24, n)
						parts.SetRule(rule)
						if parts.InParts() == nil {
							t.Errorf("%s: the CPU runs its steps as one operation, which is no faster there", mode)
						}
						whole, err := NewDecoder(at.Base, at, mode, 24, n)
						must(t, err)
						whole.SetRule(rule)
						if mode == Layerwise {
							if fmt.Sprint(whole.InParts()) != "mode layerwise has operations of their own for each layer's experts" || w.open != 0 {
								t.Errorf("mode layerwise: in parts because %v, %d steps prepared", whole.InParts(), w.open)
							}
							whole.Close()
							continue
						}
						if err := whole.InParts(); err != nil || w.open != 1 {
							t.Fatalf("%s: in parts because %v, %d steps prepared", mode, err, w.open)
						}
						w.runs, w.records = 0, 0
						want := together(t, parts, list)
						sameTold(t, string(mode), together(t, whole, list), want, tol)
						if w.runs == 0 || w.records != 1 {
							t.Errorf("%s: %d whole steps, of %d recordings", mode, w.runs, w.records)
						}
						must(t, whole.Start(0, 0, 3, 14))
						must(t, parts.Start(0, 0, 3, 14))
						must(t, whole.Step())
						must(t, parts.Step())
						sameExperts(t, string(mode), whole.Experts(0), parts.Experts(0))
						if whole.Close(); w.open != 0 {
							t.Errorf("%s: the step is open after Close", mode)
						}
					}
				}
			})
		})
	}
}

// The base alone has steps as one operation in any mode, and where a backend has none for a model, it says why and decodes all the same.
func TestWholeStepsOfTheBase(t *testing.T) {
	m, b := adapted(t, "qwen3", exact, specOf(router.Token, 0), true)
	s, _ := served(t, m)
	w, at := onWholes(t, b, s)
	refusal := errors.New("heads of 8 elements")
	list := texts(m.Base.Arch.Vocab)
	want := together(t, mustDecoderOf(t, m.Placed, nil, Fused, 24, 4), list)
	for _, mode := range Modes(router.Token) {
		for _, w.refusal = range []error{nil, refusal} {
			w.runs = 0
			d := mustDecoderOf(t, at.Base, nil, mode, 24, 4)
			if d.InParts() != w.refusal {
				t.Errorf("%s: in parts because %v, want %v", mode, d.InParts(), w.refusal)
			}
			sameTold(t, string(mode), together(t, d, list), want, 1e-10)
			if (w.runs > 0) != (w.refusal == nil) {
				t.Errorf("%s, refused with %v: %d whole steps", mode, w.refusal, w.runs)
			}
		}
	}
}
