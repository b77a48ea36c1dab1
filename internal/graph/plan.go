package graph

import (
	"fmt"
	"slices"

	"loratrain/kernels"
)

// alignment of every result in an arena: a cache line's and a vector load's on all backends.
const alignment = 256

// Arena is memory that the results of all Programs of a backend share, since only one runs at a time. Addresses stay as they
// are unless a Program is compiled that needs more.
type Arena struct {
	b      kernels.Backend
	mem    kernels.Tensor
	size   int
	placed int // counts how often the memory moved
}

// NewArena is an empty arena.
func NewArena(b kernels.Backend) *Arena { return &Arena{b: b} }

// Bytes is the arena's size.
func (a *Arena) Bytes() int { return a.size }

// grow makes room for a program's plan.
func (a *Arena) grow(size int) error {
	if size <= a.size {
		return nil
	}
	mem, err := a.b.Alloc(kernels.F64, (size+7)/8)
	if err != nil {
		return fmt.Errorf("activations: %w", err)
	}
	if !a.mem.None() {
		a.b.Free(a.mem)
	}
	a.mem, a.size = mem, size
	a.placed++
	return nil
}

// at is the tensor at an offset of the arena.
func (a *Arena) at(offset int, s Spec) kernels.Tensor {
	return kernels.Tensor{Shape: s.Shape, Type: s.Type, Mem: a.mem.Mem.Slice(offset, offset+s.bytes())}
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
