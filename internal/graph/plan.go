package graph

import (
	"fmt"
	"slices"

	"loratrain/kernels"
)

// alignment of every result in an arena: a cache line's and a vector load's on all backends.
const alignment = 256

// Arena is memory that the results of all Programs of a backend share, since only one runs at a time. It is allocated when
// a program runs first, or by Grow. Addresses stay as they are unless a program is run that needs more.
type Arena struct {
	b      kernels.Backend
	mem    kernels.Tensor
	size   int // of mem
	need   int // the most that a program asked for
	widest *Program
	placed int // counts how often the memory moved
}

// NewArena is an empty arena.
func NewArena(b kernels.Backend) *Arena { return &Arena{b: b} }

// Bytes is what the programs compiled so far need.
func (a *Arena) Bytes() int { return a.need }

// Grow allocates what the programs compiled so far need.
func (a *Arena) Grow() error { return a.grow(a.need) }

// admit notes what a program needs. One that only has smaller results than the widest so far lies as that does if its own
// plan would take more: first fit may waste where there is less to place.
func (a *Arena) admit(p *Program) {
	switch {
	case p.bytes <= a.need:
	case a.widest != nil && p.fits(a.widest):
		for j, other := range a.widest.pieces {
			p.pieces[j].from = other.from
		}
		p.bytes = a.widest.bytes
	default:
		a.need, a.widest = p.bytes, p
	}
}

// grow makes room for a program's plan.
func (a *Arena) grow(size int) error {
	if size <= a.size {
		return nil
	}
	mem, err := a.b.Alloc(kernels.F64, (size+7)/8)
	if err != nil {
		return fmt.Errorf("activations: %w", err)
	}
	a.free()
	a.mem, a.size = mem, size
	a.placed++
	return nil
}

func (a *Arena) free() {
	if !a.mem.None() {
		a.b.Free(a.mem)
	}
	a.mem, a.size = kernels.Tensor{}, 0
}

// Close gives the memory back; a program that is run takes it again.
func (a *Arena) Close() { a.free() }

// at is the tensor at an offset of the arena.
func (a *Arena) at(offset int, s Spec) kernels.Tensor {
	return kernels.Tensor{Shape: s.Shape, Type: s.Type, Mem: a.mem.Mem.Slice(offset, offset+s.bytes())}
}

// piece is where a result lies while it is needed.
type piece struct {
	result
	from, bytes int
	first, last int // the operations that make it and that use it last, by their places in the order
}

// fits reports whether the results of p can lie as those of another program do: they live as long and are no larger.
func (p *Program) fits(as *Program) bool {
	return slices.EqualFunc(p.pieces, as.pieces, func(a, b piece) bool {
		return a.i == b.i && a.first == b.first && a.last == b.last && a.bytes <= b.bytes
	})
}

// block is a piece of free memory.
type block struct{ from, to int }

// planner hands out offsets, always the lowest that fits, and takes them back.
type planner struct {
	free []block // sorted, apart from each other
	end  int     // the arena's size so far
}

func (p *planner) take(bytes int) int {
	bytes = max((bytes+alignment-1)/alignment*alignment, alignment)
	for i, b := range p.free {
		if b.to-b.from < bytes {
			continue
		}
		p.free[i].from += bytes
		if p.free[i].from == b.to {
			p.free = slices.Delete(p.free, i, i+1)
		}
		return b.from
	}
	from := p.end
	if n := len(p.free); n > 0 && p.free[n-1].to == p.end {
		from = p.free[n-1].from
		p.free = p.free[:n-1]
	}
	p.end = from + bytes
	return from
}

func (p *planner) give(from, bytes int) {
	bytes = max((bytes+alignment-1)/alignment*alignment, alignment)
	i, _ := slices.BinarySearchFunc(p.free, from, func(b block, at int) int { return b.from - at })
	p.free = slices.Insert(p.free, i, block{from, from + bytes})
	if i+1 < len(p.free) && p.free[i].to == p.free[i+1].from {
		p.free[i].to = p.free[i+1].to
		p.free = slices.Delete(p.free, i+1, i+2)
	}
	if i > 0 && p.free[i-1].to == p.free[i].from {
		p.free[i-1].to = p.free[i].to
		p.free = slices.Delete(p.free, i, i+1)
	}
}
