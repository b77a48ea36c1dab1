package checkpoints

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	peftPrefix  = "base_model.model."
	switchFile  = "switch.json"
	routerFile  = "router.safetensors"
	sharedAlone = "shared"
)

// peftConfig is adapter_config.json as Python's peft writes it for LoRA
// (peft.LoraConfig; keys that are left out take its defaults).
type peftConfig struct {
	PEFTType      string   `json:"peft_type"`
	TaskType      string   `json:"task_type"`
	Base          string   `json:"base_model_name_or_path"`
	InferenceMode bool     `json:"inference_mode"`
	Rank          int      `json:"r"`
	Alpha         float64  `json:"lora_alpha"`
	Dropout       float64  `json:"lora_dropout"`
	Targets       []string `json:"target_modules"`
	Bias          string   `json:"bias"`
	FanInFanOut   bool     `json:"fan_in_fan_out"`
	UseRSLoRA     bool     `json:"use_rslora"`
	UseDoRA       bool     `json:"use_dora"`
}

// switchJSON tells whoever wants to mix the PEFT adapters how the pieces belong together.
type switchJSON struct {
	Format  string     `json:"format"`
	Version int        `json:"version"`
	Experts []string   `json:"experts"` // folders, in the order of the router's rows; "." is this folder
	Shared  string     `json:"shared"`  // folder, "" where there is none
	Router  string     `json:"router"`  // file, "" where there is none
	Mix     string     `json:"mix"`
	Adapter configJSON `json:"adapter"`
}

const (
	mixRouted = "y = W x + shared(x) + sum over the two largest router logits i of softmax(those two)_i expert_i(x); " +
		"each adapter's own lora_alpha / r holds the scale; model.table.* is the choice by token id"
	mixNone = "y = W x + adapter(x): one plain LoRA adapter; a shared expert is part of it"
)

// WritePEFT writes the folder dir, which must not exist, with every expert as
// an adapter that Python's peft loads: expert-0, expert-1, … and shared, beside
// router.safetensors and switch.json, which says how to mix them. For
// granularity none there is one adapter, in dir itself, and a shared expert is
// joined to it along the rank. Config and tensors are those of [WriteServing];
// they are stored as F32, without rounding.
func WritePEFT(dir string, c Config, tensors []Tensor) error {
	if _, err := servingTensors(c, tensors); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	f, err := NewFolder(dir)
	if err != nil {
		return err
	}
	p := peftExport{Folder: f, config: c, tensors: tensors, index: indexByName(tensors)}
	if err := p.write(); err != nil {
		return errors.Join(err, f.Abort())
	}
	if err := f.Commit(); err != nil {
		return errors.Join(err, f.Abort())
	}
	return nil
}

type peftExport struct {
	*Folder
	config  Config
	tensors []Tensor
	index   map[string]int
}

// part is rows of an expert tensor: all of a shared one, those of one expert of a routed one.
type part struct {
	suffix string // "lora" or "shared"
	expert int
	rank   int
}

func (p peftExport) write() error {
	c := p.config
	s := switchJSON{Format: "lora-switch-peft", Version: 1, Mix: mixRouted, Adapter: c.json()}
	s.Adapter.Type = F32
	shared := part{"shared", 0, c.SharedRank}
	if c.Granularity == Unrouted {
		s.Experts, s.Mix = []string{"."}, mixNone
		if err := p.adapter(".", part{"lora", 0, c.Rank}, shared); err != nil {
			return err
		}
		return p.describe(s)
	}
	for e := range c.Experts {
		name := fmt.Sprintf("expert-%d", e)
		s.Experts = append(s.Experts, name)
		if err := p.adapter(name, part{"lora", e, c.Rank}); err != nil {
			return err
		}
	}
	if c.SharedRank > 0 {
		s.Shared = sharedAlone
		if err := p.adapter(sharedAlone, shared); err != nil {
			return err
		}
	}
	s.Router = routerFile
	if _, err := p.writeTensors(routerFile, p.routing(), nil, true); err != nil {
		return err
	}
	return p.describe(s)
}

func (p peftExport) describe(s switchJSON) error {
	data, err := encodeJSON(s)
	if err != nil {
		return err
	}
	return p.WriteFile(switchFile, data)
}

// routing is the routers and the table.
func (p peftExport) routing() []Tensor {
	var routing []Tensor
	for _, t := range p.tensors {
		if strings.HasSuffix(t.Name, ".router") || strings.HasPrefix(t.Name, "model.table.") {
			routing = append(routing, t)
		}
	}
	return routing
}

// adapter writes one PEFT adapter made of parts, joined along the rank.
func (p peftExport) adapter(name string, parts ...part) error {
	c, rank := p.config, 0
	for _, part := range parts {
		rank += part.rank
	}
	var tensors []Tensor
	for layer := range c.Base.Layers {
		for _, target := range c.Targets {
			pair, err := p.linear(layer, target, rank, parts)
			if err != nil {
				return err
			}
			tensors = append(tensors, pair...)
		}
	}
	config, err := encodeJSON(peftConfig{
		PEFTType: "LORA", TaskType: "CAUSAL_LM", Base: c.Base.Name, InferenceMode: true,
		Rank: rank, Alpha: c.Alpha * float64(rank) / float64(c.Rank), Targets: c.Targets, Bias: "none",
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(p.path, name), 0o777); err != nil {
		return located(name, err)
	}
	// Unpadded: loaders other than peft refuse tensors whose names they do not know.
	if _, err := p.writeTensors(filepath.Join(name, tensorFile), tensors, map[string]string{"format": "pt"}, false); err != nil {
		return err
	}
	return p.WriteFile(filepath.Join(name, configFile), config)
}

// linear returns lora_A (rank, in) and lora_B (out, rank) of one linear layer.
func (p peftExport) linear(layer int, target string, rank int, parts []part) ([]Tensor, error) {
	in, out := p.config.Base.LinearShape(target)
	module := ModuleName(layer, target)
	var a []float32
	b := make([]float32, out*rank)
	row := 0
	for _, part := range parts {
		if part.rank == 0 {
			continue
		}
		partA, err := p.rows(module+"."+part.suffix+"_A", part, in)
		if err != nil {
			return nil, err
		}
		partB, err := p.rows(module+"."+part.suffix+"_B", part, out)
		if err != nil {
			return nil, err
		}
		a = append(a, partA...)
		for r := range part.rank {
			for o := range out {
				b[o*rank+row+r] = partB[r*out+o]
			}
		}
		row += part.rank
	}
	return []Tensor{
		Float32Tensor(peftPrefix+module+".lora_A.weight", []int{rank, in}, a),
		Float32Tensor(peftPrefix+module+".lora_B.weight", []int{out, rank}, b),
	}, nil
}

// rows decodes the (rank, width) matrix of a part.
func (p peftExport) rows(name string, part part, width int) ([]float32, error) {
	t := p.tensors[p.index[name]]
	bytes := part.rank * width * t.Type.Size()
	t.Data = t.Data[part.expert*bytes:][:bytes]
	t.Shape = []int{part.rank, width}
	return t.Float32s()
}
