package model

import (
	"bytes"
	"slices"
	"testing"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/kernels/cuda"
	"loratrain/router"
)

// The weights are written when a token has other experts or other weights of them than the one before, and only then.
func TestMergesWhatChanges(t *testing.T) {
	m, _ := adapted(t, "llama", cpu.Options{}, specOf(router.Token, 0), false)
	s, _ := served(t, m)
	d := mustDecoder(t, m.Placed, s, Merged, positions)
	copied := d.merging.Layers()[0].Dst
	ids := randomIDs(7, m.Base.Arch.Vocab, 20)
	ids = append(ids, ids[len(ids)-1])
	must(t, d.Start(0, 0))
	var last int32 = -1
	kept := 0
	for _, id := range ids {
		mem := copied.Mem.(kernels.Host)
		for i := range mem {
			mem[i] = 0x5a
		}
		worn := bytes.Clone(mem)
		must(t, d.Put(0, id))
		must(t, d.Step())
		same := false
		if last >= 0 {
			a, x := s.Table(last)
			b, y := s.Table(id)
			same = a == b && x == y
		}
		if same {
			kept++
		}
		if bytes.Equal(worn, mem) != same {
			t.Errorf("token %d after %d: the merged weight is kept: %v, want %v", id, last, !same, same)
		}
		last = id
	}
	if kept == 0 {
		t.Fatal("no token has the experts of the one before")
	}
	// After an error nobody knows what the copy holds.
	d.forgetMerged()
	mem := copied.Mem.(kernels.Host)
	worn := bytes.Clone(mem)
	must(t, d.Put(0, last))
	must(t, d.Step())
	if bytes.Equal(worn, mem) {
		t.Error("what was forgotten is not merged again")
	}
}

// waits counts what waits for a backend.
type waits struct {
	*cuda.Backend
	n int
}

func (w *waits) Read(host, t kernels.Tensor) {
	w.n++
	w.Backend.Read(host, t)
}

func (w *waits) Fetch(host, t kernels.Tensor) func() {
	w.n++
	return w.Backend.Fetch(host, t)
}

func (w *waits) Sync() error {
	w.n++
	return w.Backend.Sync()
}

// Once it is recorded, a step of any mode waits for nothing, so that the next can be queued: its tokens are those of steps that waited.
func TestStepsWaitForNothing(t *testing.T) {
	for _, g := range testgpu.All() {
		t.Run(g.Name, func(t *testing.T) {
			b := &waits{Backend: g.Open(t, true).(*cuda.Backend)}
			m := adaptedOn(t, goldenModel("llama"), b, specOf(router.Token, 0), true)
			s, _ := served(t, m)
			const steps = 8
			for _, mode := range Modes(router.Token) {
				want := alone(t, mustDecoder(t, m.Placed, s, mode, 24), text{[]int32{3, 14}, 1, steps + 3})
				d := mustDecoder(t, m.Placed, s, mode, 24)
				must(t, d.Start(0, 1, 3, 14))
				for range 2 { // the first at once, then one is recorded
					must(t, d.Step())
				}
				b.n = 0
				for range steps {
					must(t, d.Step())
				}
				if b.n != 0 {
					t.Errorf("%s: %d steps wait %d times", mode, steps, b.n)
				}
				if got := d.Logits(0); !slices.Equal(got, want.logits[steps+2]) {
					t.Errorf("%s: the logits are others than those of steps that waited", mode)
				}
			}
		})
	}
}
