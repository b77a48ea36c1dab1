package model

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// full is a backend without room, which says so in two lines as real ones do.
type full struct {
	*counter
	free int // what it says is free; negative: it cannot say
}

var errFull = errors.New("tensor F32[1] needs more\nuse shorter batches")

func (f full) FreeMemory() (int, bool) { return f.free, f.free >= 0 }

func (f full) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	if len(shape) == 2 && f.free < 0 && shape[0] == 56 { // up_proj or gate_proj of the first layer, after others
		return kernels.Tensor{}, errFull
	}
	return f.counter.Alloc(t, shape...)
}

// A copy of the weights that memory is too small for is refused before any of it is taken, or given back if an allocation fails on the
// way: in one line that says how much it is, and one that says how to do without.
func TestCopyThatDoesNotFit(t *testing.T) {
	size := func(g router.Granularity) int {
		m, _ := adapted(t, "llama", cpu.Options{}, specOf(g, 0), false)
		return CopyBytes(m.Placed.Backend.Float(), m.Placed.Arch, m.Bank.Spec.Targets)
	}(router.Token)
	all, less := inBytes(size), inBytes(size-1000)
	if all == less {
		t.Fatalf("%s is written as %s", all, less)
	}
	for _, c := range []struct {
		what   string
		free   int
		shared int
		want   string
	}{
		{"merged, too little", size - 1000, 0, "mode merged: a copy of the weights to merge experts into needs " + all + " of memory, and " + less + " are free\nuse --mode fused, which needs no copy"},
		{"merged, full on the way", -1, 0, "mode merged: a copy of the weights to merge experts into, " + all + " in all: tensor F32[1] needs more\nuse --mode fused, which needs no copy"},
		{"shared, too little", size - 1000, 4, "adapter: the shared expert: a copy of the weights to merge experts into needs " + all + " of memory, and " + less + " are free\n" +
			"free memory or use a machine with more, or train an adapter with a shared rank of 0"},
		{"shared, full on the way", -1, 4, "adapter: the shared expert: a copy of the weights to merge experts into, " + all + " in all: tensor F32[1] needs more\n" +
			"free memory or use a machine with more, or train an adapter with a shared rank of 0"},
		{"merged, just enough", size, 0, ""},
		{"shared, just enough", size, 4, ""},
	} {
		m, b := adapted(t, "llama", cpu.Options{}, specOf(router.Token, c.shared), false)
		tensors, err := m.tensors()
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "export")
		if err := checkpoints.WriteServing(dir, m.config(), tensors); err != nil {
			t.Fatal(err)
		}
		e, err := checkpoints.OpenServing(dir)
		if err != nil {
			t.Fatal(err)
		}
		placed, held := m.Placed.On(full{b, c.free}), len(b.held)
		mode := Fused
		if c.shared == 0 {
			mode = Merged
		}
		s, err := Serve(placed, e)
		if err == nil {
			var d *Decoder
			if d, err = NewDecoder(placed, s, mode, 8, 1); err == nil {
				err = feed(d, 1, 2)
				d.Close()
			}
			s.Close()
		}
		if got := strings.TrimPrefix(fmt.Sprint(err), "<nil>"); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.what, got, c.want)
		}
		if c.free < 0 && !errors.Is(err, errFull) {
			t.Errorf("%s: the backend's error is not in %v", c.what, err)
		}
		if len(b.held) != held {
			t.Errorf("%s: %d tensors are not given back", c.what, len(b.held)-held)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}
