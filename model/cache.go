package model

import (
	"fmt"
	"math"

	"loratrain/internal/graph"
	"loratrain/kernels"
)

// Cache holds the keys and values of every layer for the positions that sequences have got to so far: those of sequence s in
// rows [s·P, (s+1)·P).
type Cache struct {
	k, v []graph.V // a layer: (S·P, K·d)
}

// maxCacheRows is the most rows, since they are counted in 31 bits.
const maxCacheRows = math.MaxInt32

// CacheBytes is what a Cache takes, in a type.
func CacheBytes(typ kernels.Type, a Arch, sequences, positions int) int {
	return 2 * a.Layers * a.KVHeads * a.HeadDim * typ.Size() * sequences * positions
}

// NewCache is room for a number of positions of each of some sequences. The error says what it would take.
func NewCache(x graph.Exec, a Arch, sequences, positions int) (*Cache, error) {
	b, width, rows := x.Backend(), a.KVHeads*a.HeadDim, sequences*positions
	what := fmt.Sprintf("a cache of %d positions", positions)
	if sequences > 1 {
		what += fmt.Sprintf(" for each of %d sequences", sequences)
	}
	if rows > maxCacheRows {
		return nil, fmt.Errorf("%s: %d rows, there can be %d\n%s", what, rows, maxCacheRows, smallerCache)
	}
	if err := Enough(b, what, CacheBytes(b.Float(), a, sequences, positions)); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, smallerCache)
	}
	c := &Cache{}
	for range a.Layers {
		for _, list := range []*[]graph.V{&c.k, &c.v} {
			t, err := b.Alloc(b.Float(), rows, width)
			if err != nil {
				c.Free(b)
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			*list = append(*list, x.Bind("cache", t))
		}
	}
	return c, nil
}

const smallerCache = "decode fewer sequences at once, or shorter ones: --batch-size, --context"

// Free gives the memory back.
func (c *Cache) Free(b kernels.Backend) {
	for _, v := range append(c.k, c.v...) {
		b.Free(v.Tensor())
	}
	c.k, c.v = nil, nil
}

// append puts a pass's keys and values into rows of layer l and returns all that is there.
func (c *Cache) append(x graph.Exec, l int, k, v, rows graph.V) (keys, vals graph.V) {
	b := x.Backend()
	b.Append(c.k[l].Tensor(), k.Tensor(), rows.Tensor())
	b.Append(c.v[l].Tensor(), v.Tensor(), rows.Tensor())
	return c.k[l], c.v[l]
}
