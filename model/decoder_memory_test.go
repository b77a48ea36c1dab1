package model

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// Memory that cannot be had is an error wherever it happens, gives back what was taken, and decoding goes on when there is some.
func TestDecoderOutOfMemory(t *testing.T) {
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		m, b := adapted(t, "llama", cpu.Options{}, spec, false)
		s, _ := served(t, m)
		ids := randomIDs(9, m.Base.Arch.Vocab, 5)
		for _, mode := range Modes(spec.Granularity) {
			held := len(b.held)
			var d *Decoder
			for n := 0; ; n++ {
				b.left = n
				var err error
				if d, err = NewDecoder(m.Placed, s, mode, 8, 1); err == nil {
					break
				}
				if !errors.Is(err, errNoMemory) {
					t.Fatalf("%s: with %d allocations: %v", mode, n, err)
				}
				if len(b.held) != held {
					t.Fatalf("%s: with %d allocations, %d tensors are not given back", mode, n, len(b.held)-held)
				}
			}
			failures := 0
			for b.left = 0; ; failures++ {
				err := feed(d, ids...)
				if err == nil {
					break
				}
				if !errors.Is(err, errNoMemory) || d.Room(0) != 8 {
					t.Fatalf("%s: out of memory: room for %d, error %v", mode, d.Room(0), err)
				}
				b.left = failures + 1
			}
			b.left = -1
			if failures == 0 {
				t.Errorf("%s: a pass needs no memory", mode)
			}
			fresh := mustDecoder(t, m.Placed, s, mode, 8)
			if got, want := d.Logits(0), mustFeed(t, fresh, ids...); !slices.Equal(got, want) {
				t.Errorf("%s: the logits after memory ran out %d times differ from a new decoder's", mode, failures)
			}
			if got, want := mustFeed(t, d, 3), mustFeed(t, fresh, 3); !slices.Equal(got, want) {
				t.Errorf("%s: and so do those of the next token", mode)
			}
			d.Close()
			// The first step takes memory of its own, wherever it runs out.
			starved := mustDecoder(t, m.Placed, s, mode, 8)
			must(t, starved.Start(0, 0))
			must(t, starved.Put(0, ids[0]))
			failures = 0
			for b.left = 0; ; failures++ {
				err := starved.Step()
				if err == nil {
					break
				}
				if !errors.Is(err, errNoMemory) || starved.Room(0) != 8 {
					t.Fatalf("%s: out of memory in a step: room for %d, error %v", mode, starved.Room(0), err)
				}
				b.left = failures + 1
			}
			b.left = -1
			if failures == 0 {
				t.Errorf("%s: a step needs no memory", mode)
			}
			fresh.Stop(0)
			mustFeed(t, fresh, ids[0])
			if !slices.Equal(starved.Logits(0), fresh.Logits(0)) || starved.Room(0) != 7 {
				t.Errorf("%s: the logits after memory ran out %d times in a step differ from another decoder's", mode, failures)
			}
			starved.Close()
			fresh.Close()
			if len(b.held) != held {
				t.Errorf("%s: %d tensors are not given back", mode, len(b.held)-held)
			}
		}
	})
}

// Decoding takes no more memory with every token.
func TestDecodingHoldsItsMemory(t *testing.T) {
	eachKind(t, func(t *testing.T, spec AdapterSpec) {
		m, b := adapted(t, "llama", cpu.Options{}, spec, false)
		s, _ := served(t, m)
		for _, mode := range Modes(spec.Granularity) {
			d := mustDecoder(t, m.Placed, s, mode, 40)
			ids := randomIDs(10, m.Base.Arch.Vocab, 40)
			for range 2 {
				mustFeed(t, d, ids[0])
				d.Experts(0)
			}
			b.left = 0
			for _, id := range ids[2:] {
				mustFeed(t, d, id)
				if _, err := d.Tokens()(); err != nil {
					t.Fatal(err)
				}
			}
			b.left = -1
			d.Close()
		}
	})
}

// scarce says that it has little memory.
type scarce struct {
	kernels.Backend
	free int
}

func (l scarce) FreeMemory() (int, bool) { return l.free, true }

func TestDecoderSaysWhatMemoryItNeeds(t *testing.T) {
	m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 0), false)
	s, _ := served(t, m)
	need := CopyBytes(kernels.F32, m.Base.Arch, AllTargets())
	cache := CacheBytes(kernels.F32, m.Base.Arch, 64, 10)
	for _, c := range []struct {
		mode      Mode
		sequences int
		free      int
		want      string
	}{
		{Merged, 1, need - 1, fmt.Sprintf("mode merged: a copy of the weights to merge experts into needs %s of memory, and %s are free\nuse --mode fused, which needs no copy",
			inBytes(need), inBytes(need-1))},
		{Merged, 1, need, ""},
		{Fused, 64, cache - 1, fmt.Sprintf("a cache of 10 positions for each of 64 sequences needs %s of memory, and %s are free\n%s",
			inBytes(cache), inBytes(cache-1), smallerCache)},
		{Fused, 64, cache, ""},
		{Fused, 65, cache, "65 sequences at once, expected 1 to 64"},
		{Fused, 0, cache, "0 sequences at once, expected 1 to 64"},
		{Merged, 2, need, "mode merged has one token's experts in the weights, it cannot decode 2 sequences at once\nuse --mode fused, or one sequence at a time"},
	} {
		at := *s
		at.Base = s.Base.On(scarce{b, c.free})
		d, err := NewDecoder(m.Placed, &at, c.mode, 10, c.sequences)
		if err == nil {
			d.Close()
		}
		if err == nil && c.want != "" || err != nil && err.Error() != c.want {
			t.Errorf("mode %s, %d sequences, %d bytes: error %v, want %s", c.mode, c.sequences, c.free, err, c.want)
		}
	}
}
