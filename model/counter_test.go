package model

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
)

// counter is a backend that knows what it lent. Memory that comes back is filled with ones, which are NaN as floats and
// no id or row as integers, so that a use after Free shows.
type counter struct {
	kernels.Backend
	held   map[*byte]kernels.Tensor
	left   int // allocations that succeed; negative: all
	places int // the same of Place
	faults []string
	// skew of Merge's scale, for a backend that is wrong; 0: none
	skew float64
}

var errNoMemory = errors.New("no memory")

// newCounter is a counter whose test fails if anything is still lent at its end.
func newCounter(t testing.TB, o cpu.Options) *counter {
	t.Helper()
	b, err := cpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{Backend: b, held: map[*byte]kernels.Tensor{}, left: -1, places: -1}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		c.settled(t)
	})
	return c
}

func address(t kernels.Tensor) *byte { return unsafe.SliceData(t.Mem.(kernels.Host)) }

func (c *counter) Alloc(typ kernels.Type, shape ...int) (kernels.Tensor, error) {
	if c.left == 0 {
		return kernels.Tensor{}, errNoMemory
	}
	c.left--
	t, err := c.Backend.Alloc(typ, shape...)
	if err == nil && t.Len() > 0 {
		c.held[address(t)] = t
	}
	return t, err
}

func (c *counter) Place(host kernels.Tensor) (kernels.Tensor, error) {
	if c.places == 0 {
		return kernels.Tensor{}, errNoMemory
	}
	c.places--
	return c.Backend.Place(host)
}

func (c *counter) Free(t kernels.Tensor) {
	if t.Len() == 0 {
		return
	}
	whole, ok := c.held[address(t)]
	if !ok || whole.Bytes() != t.Bytes() {
		c.faults = append(c.faults, fmt.Sprintf("%v is freed, which was not allocated or is free already", t))
		return
	}
	delete(c.held, address(t))
	mem := whole.Mem.(kernels.Host)
	for i := range mem {
		mem[i] = 0xff
	}
	c.Backend.Free(t)
}

func (c *counter) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	c.Backend.Merge(m, ids, weights, force, scale*(1+c.skew))
}

// settled reports memory that is still lent, and wrong frees.
func (c *counter) settled(t testing.TB) {
	t.Helper()
	var list []string
	for _, held := range c.held {
		list = append(list, held.String())
	}
	slices.Sort(list)
	if len(list) > 0 {
		t.Errorf("not freed: %v", list)
	}
	for _, f := range c.faults {
		t.Error(f)
	}
}
