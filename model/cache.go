package model

import (
	"fmt"

	"loratrain/internal/graph"
	"loratrain/kernels"
)

// Cache holds the keys and values of every layer for the positions decoded so far.
type Cache struct {
	k, v []graph.V // a layer: (positions, K·d)
	at   graph.V   // (T) i32: the row that each token of the pass is put into
}

// NewCache is room for a number of positions. The error says what it would take.
func NewCache(x graph.Exec, a Arch, positions int) (*Cache, error) {
	b, width := x.Backend(), a.KVHeads*a.HeadDim
	c := &Cache{}
	for range a.Layers {
		for _, list := range []*[]graph.V{&c.k, &c.v} {
			t, err := b.Alloc(b.Float(), positions, width)
			if err != nil {
				c.Free(b)
				return nil, fmt.Errorf("cache of %d positions: %w", positions, err)
			}
			*list = append(*list, x.Bind("cache", t))
		}
	}
	return c, nil
}

// Positions is how many there is room for.
func (c *Cache) Positions() int { return c.k[0].Shape[0] }

// Free gives the memory back.
func (c *Cache) Free(b kernels.Backend) {
	for _, v := range append(c.k, c.v...) {
		b.Free(v.Tensor())
	}
	c.k, c.v = nil, nil
}

// append puts a pass's keys and values into layer l and returns all that is there.
func (c *Cache) append(x graph.Exec, l int, k, v graph.V) (keys, vals graph.V) {
	b := x.Backend()
	b.Append(c.k[l].Tensor(), k.Tensor(), c.at.Tensor())
	b.Append(c.v[l].Tensor(), v.Tensor(), c.at.Tensor())
	return c.k[l], c.v[l]
}
