package model

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// trial is a model with an exported adapter, and prompts to decode with it.
type trial struct {
	name    string
	base    *Base
	export  *checkpoints.Serving
	prompts [][]int32
	tokens  int // after each prompt
	places  int // prompts at once
	// apart is how far the logits of two modes in bf16 may be from each other on average, see the function, and most that of one token's.
	// In float32 and in bf16 those of SmolLM2 are 0.03 apart, but 0.3 where a token's rounding decides much.
	apart, most float64
	whole       bool // a Hopper card has steps as one operation for it
	emulated    bool // on the emulator too, which is slow
}

// context is the room that the longest text needs.
func (c *trial) context() int {
	n := 0
	for _, p := range c.prompts {
		n = max(n, len(p))
	}
	return n + c.tokens
}

// on places the model and its adapter.
func (c *trial) on(t *testing.T, b kernels.Backend) *Served {
	t.Helper()
	placed, err := Place(b, c.base.Arch, c.base.Weights, c.context())
	must(t, err)
	s, err := Serve(placed, c.export)
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

// decoder is one in a mode, of as many sequences as it can have.
func (c *trial) decoder(t *testing.T, s *Served, mode Mode) *Decoder {
	t.Helper()
	places := c.places
	if mode == Merged && s.Spec.Granularity == router.Token {
		places = 1
	}
	return mustDecoderOf(t, s.Base, s, mode, c.context(), places)
}

// tinyTrials are golden's tiny models with random adapters of which every number matters.
func tinyTrials(t *testing.T) []*trial {
	var list []*trial
	for i, name := range []string{"llama", "llama31", "mistral", "qwen2", "qwen3"} {
		spec := specOf([]router.Granularity{router.Token, router.None}[i%2], 5*(i/2%2))
		m, _ := adapted(t, name, cpu.Options{}, spec, true)
		_, export := served(t, m)
		c := &trial{
			name: fmt.Sprintf("%s/%s", name, spec.Granularity), base: m.Base, export: export, tokens: 8, places: 3, apart: 0.03, most: 0.12,
			emulated: i == 2 || i == 3,
		}
		for k := range promptCount(t, 5) {
			c.prompts = append(c.prompts, randomIDs(uint64(k), m.Base.Arch.Vocab, 1+k*5%23))
		}
		list = append(list, c)
	}
	return list
}

// promptCount is LORA_PROMPTS, the number of prompts, or few.
func promptCount(t *testing.T, few int) int {
	t.Helper()
	text := os.Getenv("LORA_PROMPTS")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("LORA_PROMPTS is %q, expected a number of prompts", text)
	}
	return n
}

// smolTrial is SmolLM2 with the adapter that LORA_ADAPTER exports, or one of random experts; nil where LORA_SMOLLM2 does not name it.
func smolTrial(t *testing.T) *trial {
	path := os.Getenv("LORA_SMOLLM2")
	if path == "" {
		return nil
	}
	c := &trial{name: "SmolLM2", base: mustOpen(t, path), tokens: 64, places: 32, apart: 0.08, most: 0.5, whole: true}
	tok, err := c.base.NeedTokenizer()
	must(t, err)
	r := rand.New(rand.NewPCG(11, 12))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for range promptCount(t, 8) {
		thing := pick("water", "a magnet", "the moon", "a green plant", "iron", "sound", "a volcano", "the heart", "a river", "salt", "wind", "a fossil")
		text := pick("Question: What does ", "Question: Why does ", "Question: Which of these tells how ", "Tell me how ") + thing +
			pick(" change when it gets warm", " help animals that live near it", " differ from a stone", " store energy", " become smaller") +
			pick("?", " in a cold winter?", ", and what would a student measure?")
		c.prompts = append(c.prompts, tok.Encode(text+pick("\nAnswer:", "\nA:", "\nThe answer is"), true))
	}
	dir := os.Getenv("LORA_ADAPTER")
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "export")
		placed, err := Place(newCounter(t, cpu.Options{}), c.base.Arch, c.base.Weights, 1)
		must(t, err)
		m := bankOf(t, c.base, placed, AdapterSpec{Granularity: router.Token, Experts: 8, Rank: 8, Alpha: 16, Targets: AllTargets()}, true, 0.1)
		tensors, err := m.tensors()
		must(t, err)
		must(t, checkpoints.WriteServing(dir, m.config(), tensors))
	}
	c.export, err = checkpoints.OpenServing(dir)
	must(t, err)
	t.Cleanup(func() { must(t, c.export.Close()) })
	must(t, c.export.CheckBase(path, c.base.Digest(), DimsOf(c.base.Arch)))
	return c
}
