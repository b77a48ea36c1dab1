package datasets

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func newSampler(t rapid.TB, items, batch int, seed uint64) *Sampler {
	s, err := NewSampler(items, batch, seed)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSamplerOrder pins the order: a checkpoint written by an older build must resume to the same items.
func TestSamplerOrder(t *testing.T) {
	s := newSampler(t, 10, 4, 42)
	var got [][]int
	for k := range 6 {
		got = append(got, s.Step(k))
	}
	want := [][]int{{6, 2, 5, 3}, {4, 7, 0, 1}, {9, 8}, {2, 3, 9, 6}, {0, 8, 7, 4}, {5, 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
}

func TestSampler(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.IntRange(1, 40).Draw(t, "items")
		batch := rapid.IntRange(1, 50).Draw(t, "batch")
		seed := rapid.Uint64().Draw(t, "seed")
		s := newSampler(t, items, batch, seed)
		epoch := rapid.IntRange(0, 3).Draw(t, "epoch")
		var all []int
		for i := range s.StepsPerEpoch() {
			k := epoch*s.StepsPerEpoch() + i
			step := s.Step(k)
			if want := min(batch, items-len(all)); len(step) != want {
				t.Fatalf("step %d has %d items, want %d", k, len(step), want)
			}
			if resumed := newSampler(t, items, batch, seed).Step(k); !slices.Equal(step, resumed) {
				t.Fatalf("step %d is %v, resumed %v", k, step, resumed)
			}
			all = append(all, step...)
			clear(step) // the caller's own
		}
		slices.Sort(all)
		for i := range items {
			if i >= len(all) || all[i] != i {
				t.Fatalf("epoch %d of %d items holds %v", epoch, items, all)
			}
		}
	})
}

// TestShuffleIsUniform counts where each item goes; 5 standard deviations around the expected 1000.
func TestShuffleIsUniform(t *testing.T) {
	const n, rounds = 5, 5000
	var counts [n][n]int
	for epoch := range rounds {
		for place, item := range shuffled(n, 7, uint64(epoch)) {
			counts[item][place]++
		}
	}
	for item, places := range counts {
		for place, c := range places {
			if c < 860 || c > 1140 {
				t.Errorf("item %d was at place %d in %d of %d epochs, want about %d", item, place, c, rounds, rounds/n)
			}
		}
	}
}

func TestSamplerErrors(t *testing.T) {
	_, err := NewSampler(0, 1, 0)
	wantError(t, err, "0 items to train on, expected at least 1", "add items")
	_, err = NewSampler(1, 0, 0)
	wantError(t, err, "batch size 0, expected at least 1", "how many items")
}
