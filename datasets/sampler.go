package datasets

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// Sampler says which items a step uses. Each epoch goes through all of them once in an order of its own, its last step
// through those that are left. All that a sampler knows follows from its arguments and the step's number, so a resumed
// run needs nothing else. One goroutine at a time may use it.
type Sampler struct {
	items, batch int
	seed         uint64
	epoch        int // whose order is held; -1: none
	order        []int
}

// NewSampler samples from that many items, batch of them a step.
func NewSampler(items, batch int, seed uint64) (*Sampler, error) {
	if items < 1 {
		return nil, fmt.Errorf("%d items to train on, expected at least 1\nadd items to the task or choose another", items)
	}
	if batch < 1 {
		return nil, fmt.Errorf("batch size %d, expected at least 1\nset how many items a step uses", batch)
	}
	return &Sampler{items: items, batch: batch, seed: seed, epoch: -1}, nil
}

// StepsPerEpoch is how many steps go through all items, the last of them perhaps smaller.
func (s *Sampler) StepsPerEpoch() int { return (s.items-1)/s.batch + 1 }

// Step is the items of step k, counted from 0, as indices.
func (s *Sampler) Step(k int) []int {
	epoch, step := k/s.StepsPerEpoch(), k%s.StepsPerEpoch()
	if epoch != s.epoch {
		s.epoch, s.order = epoch, shuffled(s.items, s.seed, uint64(epoch))
	}
	from := step * s.batch
	return slices.Clone(s.order[from : from+min(s.batch, s.items-from)])
}

// shuffled is 0 to n-1 in random order: Fisher and Yates from the end, with PCG-DXSM (math/rand/v2) seeded by seed and
// epoch and an index below m as the high word of a draw times m. Go's own Shuffle would do, but Go does not promise
// that it stays the same, and a resumed run needs the same.
func shuffled(n int, seed, epoch uint64) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	random := rand.NewPCG(seed, epoch)
	for i := n - 1; i > 0; i-- {
		high, _ := bits.Mul64(random.Uint64(), uint64(i+1))
		order[i], order[high] = order[high], order[i]
	}
	return order
}
