package train

import (
	"errors"
	"fmt"

	"loratrain/internal/graph"
	"loratrain/kernels"
	"loratrain/model"
)

// Objective is what a step minimises besides the cross-entropy, and how it moves.
type Objective struct {
	Balance float64 // coefficient of the balance loss
	Dropout float64 // of the adapters' inputs
	Seed    int32   // of dropout
	AdamW   kernels.AdamW
	// Recompute computes each block again in the backward pass instead of keeping its activations: no bit of the result
	// changes, memory and time do.
	Recompute bool
}

// Stepper computes optimizer steps: it holds the trainable tensors, their gradients and moments, each in one buffer, and one
// program for every token count that batches come in.
type Stepper struct {
	Bank *model.Bank
	// Params, M and V are the trainable tensors and AdamW's moments, laid out as Bank says, in the backend's memory.
	Params, M, V kernels.Tensor

	base      *model.Placed
	b         kernels.Backend
	objective Objective
	rounded   kernels.Tensor // Params in the type of activations, as the step that runs uses them; none if that is theirs
	grads     kernels.Tensor
	norm      kernels.Tensor // (1)
	arena     *graph.Arena
	programs  map[int]*stepProgram
}

// NewStepper prepares training of a bank's tensors, which start as params, in host memory, says.
func NewStepper(base *model.Placed, bank *model.Bank, params kernels.Tensor, o Objective) (*Stepper, error) {
	b := base.Backend
	s := &Stepper{Bank: bank, base: base, b: b, objective: o, arena: graph.NewArena(b), programs: map[int]*stepProgram{}}
	for _, k := range s.buffers() {
		var err error
		if *k.t, err = b.Alloc(k.typ, k.n); err != nil {
			return nil, errors.Join(fmt.Errorf("adapter and optimizer: %w", err), s.Close())
		}
	}
	b.Write(s.Params, params)
	return s, nil
}

// stepBuffer is one of those that a stepper holds all the time.
type stepBuffer struct {
	t   *kernels.Tensor
	typ kernels.Type
	n   int
}

func (s *Stepper) buffers() []stepBuffer {
	param, n := s.b.Param(), s.Bank.Size()
	list := []stepBuffer{{&s.Params, param, n}, {&s.M, param, n}, {&s.V, param, n}, {&s.grads, param, n}, {&s.norm, param, 1}}
	if s.b.Float() != param {
		list = append(list, stepBuffer{&s.rounded, s.b.Float(), n})
	}
	return list
}

// trainableBytes is what a stepper holds all the time.
func trainableBytes(b kernels.Backend, bank *model.Bank) int {
	bytes := 0
	for _, k := range (&Stepper{b: b, Bank: bank}).buffers() {
		bytes += k.n * k.typ.Size()
	}
	return bytes
}

// Close gives all memory back.
func (s *Stepper) Close() error {
	err := s.Rest()
	for _, k := range s.buffers() {
		if !k.t.None() {
			s.b.Free(*k.t)
		}
		*k.t = kernels.Tensor{}
	}
	return err
}

// Rest gives back the memory of activations; the next step takes it again.
func (s *Stepper) Rest() error {
	var err error
	for _, p := range s.programs {
		err = errors.Join(err, p.close(s.b))
	}
	clear(s.programs)
	s.arena.Close()
	s.arena = graph.NewArena(s.b)
	return err
}

// Adapter is the trained tensors as they are, for a pass: the numbers that a step's forward pass would use.
func (s *Stepper) Adapter(x graph.Exec) *model.Trained {
	s.round()
	ad, _ := s.Bank.BindRounded(x, s.Params, s.rounded, model.Dropout{})
	return ad
}

// round brings rounded up to date.
func (s *Stepper) round() {
	if !s.rounded.None() {
		s.b.Round(s.rounded, s.Params)
	}
}

// Plan compiles the program for the largest of the given token counts and says what steps of these counts, and what the
// adapter and the optimizer take, in bytes. Nothing large is allocated for it. The programs of the other counts, which are
// compiled when they are asked for first, fit in the same memory.
func (s *Stepper) Plan(sizes []int) (activations, trainable int, err error) {
	largest := 0
	for _, n := range sizes {
		largest = max(largest, n)
	}
	if _, err := s.program(largest); err != nil {
		return 0, 0, err
	}
	activations = s.arena.Bytes()
	for _, n := range sizes {
		activations += s.programs[largest].smallBytes(n)
	}
	return activations, trainableBytes(s.b, s.Bank), nil
}

// allocated is the memory that s holds now but for activations.
func (s *Stepper) allocated() int {
	n := trainableBytes(s.b, s.Bank)
	for _, p := range s.programs {
		n += p.smallBytes(p.tokens)
	}
	return n
}

// Reserve allocates what Plan said, so that a lack of memory shows before the first step.
func (s *Stepper) Reserve() error { return s.arena.Grow() }
