package checkpoints

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

const (
	servingFormat  = "lora-switch"
	servingVersion = 1
	configFile     = "adapter_config.json"
	tensorFile     = "adapter_model.safetensors"
)

// Targets are the linear layers of a block that can carry experts, in the order
// in which a forward pass launches them.
var Targets = []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

// TableIDs and TableWeights are the tensors of the routing table.
const (
	TableIDs     = "model.table.ids"
	TableWeights = "model.table.weights"
)

// Granularity says how often a token is routed.
type Granularity string

const (
	PerToken Granularity = "token" // once for the whole model, from the first block's normed input
	PerBlock Granularity = "block" // once in each transformer block, from its normed attention input
	PerLayer Granularity = "layer" // in each adapted linear layer, from that layer's input
	Unrouted Granularity = "none"  // never: plain LoRA, one expert with gate 1
)

// Dims are the sizes of the base model that an adapter's shapes follow from.
type Dims struct {
	Layers     int `json:"layers"`
	Width      int `json:"hidden_width"`
	MLPWidth   int `json:"mlp_width"`
	Heads      int `json:"heads"`
	KVHeads    int `json:"kv_heads"`
	HeadDim    int `json:"head_dim"`
	Vocabulary int `json:"vocab"`
}

// Base identifies the model that an adapter was trained on. Digest is [Digest]
// of its tensors and decides; Name is for people and for PEFT.
type Base struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Dims
}

// Config describes an adapter: all that its tensors do not say themselves.
type Config struct {
	Base        Base
	Targets     []string // of [Targets], in that order
	Granularity Granularity
	Experts     int     // E; 1 for Unrouted, else at least 2
	Rank        int     // R of each routed expert
	SharedRank  int     // S of the expert that every token uses with gate 1; 0: there is none
	Alpha       float64 // the output of all experts is multiplied by Alpha / Rank
}

// Scale is s = alpha / rank, for the shared expert too.
func (c Config) Scale() float64 { return c.Alpha / float64(c.Rank) }

// configJSON is adapter_config.json: Config, and what version 1 fixes.
type configJSON struct {
	Format      string      `json:"format"`
	Version     int         `json:"version"`
	Base        Base        `json:"base"`
	Targets     []string    `json:"targets"`
	Granularity Granularity `json:"granularity"`
	Gate        string      `json:"gate"`
	Top         int         `json:"top"`
	Experts     int         `json:"experts"`
	Rank        int         `json:"rank"`
	SharedRank  int         `json:"shared_rank"`
	Alpha       float64     `json:"alpha"`
	Scale       float64     `json:"scale"`
	Type        Type        `json:"dtype"`
}

func (c Config) json() configJSON {
	j := configJSON{
		Format: servingFormat, Version: servingVersion, Base: c.Base, Targets: c.Targets,
		Granularity: c.Granularity, Gate: "softmax-top2", Top: 2, Experts: c.Experts,
		Rank: c.Rank, SharedRank: c.SharedRank, Alpha: c.Alpha, Scale: c.Scale(), Type: BF16,
	}
	if c.Granularity == Unrouted {
		j.Gate, j.Top = "one", 1
	}
	return j
}

func parseConfig(data []byte) (Config, error) {
	if err := checkFormat(data, servingFormat, servingVersion); err != nil {
		return Config{}, err
	}
	var j configJSON
	if err := strictJSON(data, &j); err != nil {
		return Config{}, err
	}
	c := Config{
		Base: j.Base, Targets: j.Targets, Granularity: j.Granularity,
		Experts: j.Experts, Rank: j.Rank, SharedRank: j.SharedRank, Alpha: j.Alpha,
	}
	if err := c.check(); err != nil {
		return Config{}, err
	}
	want := c.json()
	switch {
	case j.Gate != want.Gate:
		return Config{}, fmt.Errorf("gate is %q, want %q for granularity %q", j.Gate, want.Gate, c.Granularity)
	case j.Top != want.Top:
		return Config{}, fmt.Errorf("top is %d, want %d for granularity %q", j.Top, want.Top, c.Granularity)
	case j.Type != want.Type:
		return Config{}, fmt.Errorf("dtype is %q, want %q", j.Type, want.Type)
	case math.Abs(j.Scale-want.Scale) > 1e-9*math.Abs(want.Scale):
		return Config{}, fmt.Errorf("scale is %v, alpha / rank is %v", j.Scale, want.Scale)
	}
	return c, nil
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// maxDim keeps every product of two sizes within an int64.
const maxDim = 1 << 30

func (c Config) check() error {
	d := c.Base.Dims
	for _, size := range []struct {
		key   string
		value int
		least int
	}{
		{"base.layers", d.Layers, 1},
		{"base.hidden_width", d.Width, 1},
		{"base.mlp_width", d.MLPWidth, 1},
		{"base.heads", d.Heads, 1},
		{"base.kv_heads", d.KVHeads, 1},
		{"base.head_dim", d.HeadDim, 1},
		{"base.vocab", d.Vocabulary, 1},
		{"experts", c.Experts, 1},
		{"rank", c.Rank, 1},
		{"shared_rank", c.SharedRank, 0},
	} {
		if size.value < size.least || size.value > maxDim {
			return fmt.Errorf("%s is %d, want %d to %d", size.key, size.value, size.least, maxDim)
		}
	}
	if strings.ContainsFunc(c.Base.Name, unicode.IsControl) {
		return fmt.Errorf("base.name is %q, want text without control characters", c.Base.Name)
	}
	if !digestForm.MatchString(c.Base.Digest) {
		return fmt.Errorf("base.digest is %q, want sha256: and 64 hexadecimal digits in lower case", c.Base.Digest)
	}
	if !(c.Alpha > 0) || math.IsInf(c.Alpha, 0) {
		return fmt.Errorf("alpha is %v, want a positive number", c.Alpha)
	}
	if s := float32(c.Scale()); s == 0 || math.IsInf(float64(s), 0) {
		return fmt.Errorf("alpha / rank is %v, which is beyond the range of float32", c.Scale())
	}
	return errors.Join(c.checkTargets(), c.checkGranularity())
}

func (c Config) checkTargets() error {
	next := 0
	for _, target := range c.Targets {
		at := slices.Index(Targets[next:], target)
		if at < 0 {
			return fmt.Errorf("targets are %q, want some of %q in this order", c.Targets, Targets)
		}
		next += at + 1
	}
	if len(c.Targets) == 0 {
		return fmt.Errorf("targets are empty, want some of %q", Targets)
	}
	return nil
}

func (c Config) checkGranularity() error {
	switch c.Granularity {
	case PerToken, PerBlock, PerLayer:
		if c.Experts < 2 {
			return fmt.Errorf("experts is %d, want 2 or more for granularity %q", c.Experts, c.Granularity)
		}
	case Unrouted:
		if c.Experts != 1 {
			return fmt.Errorf("experts is %d, want 1 for granularity %q", c.Experts, c.Granularity)
		}
	default:
		return fmt.Errorf("granularity is %q, want token, block, layer or none", c.Granularity)
	}
	return nil
}

// LinearShape returns the input and output width of a target.
func (d Dims) LinearShape(target string) (in, out int) {
	q, kv := d.Heads*d.HeadDim, d.KVHeads*d.HeadDim
	switch target {
	case "q_proj":
		return d.Width, q
	case "k_proj", "v_proj":
		return d.Width, kv
	case "o_proj":
		return q, d.Width
	case "gate_proj", "up_proj":
		return d.Width, d.MLPWidth
	case "down_proj":
		return d.MLPWidth, d.Width
	}
	panic("checkpoints: no linear layer is called " + target)
}

// ModuleName is the name of a target in block layer, as transformers has it.
func ModuleName(layer int, target string) string {
	part := "self_attn"
	if target == "gate_proj" || target == "up_proj" || target == "down_proj" {
		part = "mlp"
	}
	return fmt.Sprintf("model.layers.%d.%s.%s", layer, part, target)
}

// spec is what a config says of one tensor.
type spec struct {
	name  string
	kind  Type
	shape []int
}

// specs yields every tensor of the serving format, none of them stored
// anywhere, so that a config that claims 2^30 layers costs nothing.
func (c Config) specs() iter.Seq[spec] {
	return func(yield func(spec) bool) {
		if c.Granularity == PerToken {
			v := c.Base.Vocabulary
			if !yield(spec{"model.router", F32, []int{c.Experts, c.Base.Width}}) ||
				!yield(spec{TableIDs, I32, []int{v, 2}}) ||
				!yield(spec{TableWeights, F32, []int{v, 2}}) {
				return
			}
		}
		for layer := range c.Base.Layers {
			if c.Granularity == PerBlock &&
				!yield(spec{fmt.Sprintf("model.layers.%d.router", layer), F32, []int{c.Experts, c.Base.Width}}) {
				return
			}
			for _, target := range c.Targets {
				for _, s := range c.linearSpecs(layer, target) {
					if !yield(s) {
						return
					}
				}
			}
		}
	}
}

func (c Config) linearSpecs(layer int, target string) []spec {
	in, out := c.Base.LinearShape(target)
	module := ModuleName(layer, target)
	specs := []spec{
		{module + ".lora_A", BF16, []int{c.Experts, c.Rank, in}},
		{module + ".lora_B", BF16, []int{c.Experts, c.Rank, out}},
	}
	if c.SharedRank > 0 {
		specs = append(specs,
			spec{module + ".shared_A", BF16, []int{c.SharedRank, in}},
			spec{module + ".shared_B", BF16, []int{c.SharedRank, out}})
	}
	if c.Granularity == PerLayer {
		specs = append(specs, spec{module + ".router", F32, []int{c.Experts, in}})
	}
	return specs
}
