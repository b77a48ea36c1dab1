package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/train"
)

// card is a backend that a machine with a GPU has.
type card struct {
	kernels.Backend
	device  int
	float32 bool
}

func (card) Name() string { return backendCUDA }

// TestChoiceOfBackend holds who computes and what is said about it, in programs with GPU support and without, on machines
// with a card 0 and without.
func TestChoiceOfBackend(t *testing.T) {
	noDriver := errors.New("no NVIDIA driver\ninstall it")
	open := func(device int, float32 bool) (kernels.Backend, error) {
		if device > 0 {
			return nil, errors.New("no GPU 1\nthere is one")
		}
		b, err := cpu.New(cpu.Options{})
		return card{b, device, float32}, err
	}
	missing := func(int, bool) (kernels.Backend, error) { return nil, noDriver }
	for _, c := range []struct {
		name        string
		open        func(int, bool) (kernels.Backend, error)
		compute     compute
		want        string // the backend's name
		note, error string
		usage       bool
	}{
		{"without support", nil, compute{backend: "auto"}, "cpu", "", "", false},
		{"without support, asked for", nil, compute{backend: "cuda"}, "", "", "this program was built without GPU support\nbuild it with make gpu, or use --backend cpu", true},
		{"without support, a device", nil, compute{backend: "auto", device: 1}, "", "", "this program was built without GPU support\nbuild it with make gpu, or use --backend cpu", true},
		{"a card", open, compute{backend: "auto"}, "cuda", "", "", false},
		{"a card, float32", open, compute{backend: "auto", float32: true}, "cuda", "", "", false},
		{"a card, unwanted", open, compute{backend: "cpu"}, "cpu", "", "", false},
		{"no card", missing, compute{backend: "auto"}, "cpu", "computing on the CPU: no NVIDIA driver\n", "", false},
		{"no card, asked for", missing, compute{backend: "cuda"}, "", "", noDriver.Error(), false},
		{"another card", open, compute{backend: "auto", device: 1}, "", "", "no GPU 1\nthere is one", false},
		{"a device of the CPU", open, compute{backend: "cpu", device: 1}, "", "", "--device 1: the CPU computes, there is no choice of devices\nleave --device out, or use --backend cuda", true},
		{"a device below 0", open, compute{backend: "cuda", device: -1}, "", "", "--device -1: expected the index of a GPU\nnvidia-smi -L lists them, from 0 on", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			was := openCUDA
			defer func() { openCUDA = was }()
			openCUDA = c.open
			var note bytes.Buffer
			cmd := &cobra.Command{}
			cmd.SetErr(&note)
			b, err := c.compute.open(cmd)
			if note.String() != c.note {
				t.Errorf("said %q, want %q", note.String(), c.note)
			}
			if c.error != "" {
				_, usage := errors.AsType[train.UsageError](err)
				if err == nil || err.Error() != c.error || usage != c.usage {
					t.Errorf("error is %v, want %s (usage %v)", err, c.error, c.usage)
				}
				return
			}
			if err != nil || b.Name() != c.want {
				t.Fatalf("got %v, %v, want %s", b, err, c.want)
			}
			if gpu, ok := b.(card); ok && gpu.float32 != c.compute.float32 {
				t.Errorf("float32 is %v, want %v", gpu.float32, c.compute.float32)
			}
		})
	}
}
