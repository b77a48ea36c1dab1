package checkpoints

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/internal/testpython"
)

// effect multiplies out scale · B·A of one adapter's linear layer, (out, in), from PEFT's files.
func effect(t *testing.T, dir, module string) []float64 {
	t.Helper()
	f, err := Open(filepath.Join(dir, tensorFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var config struct {
		R     int     `json:"r"`
		Alpha float64 `json:"lora_alpha"`
	}
	if err := json.Unmarshal(read(t, dir, configFile), &config); err != nil {
		t.Fatal(err)
	}
	ta, okA := f.Tensor("base_model.model." + module + ".lora_A.weight")
	tb, okB := f.Tensor("base_model.model." + module + ".lora_B.weight")
	if !okA || !okB || ta.Shape[0] != config.R || tb.Shape[1] != config.R {
		t.Fatalf("%s: %s: lora_A %v, lora_B %v, r %d", dir, module, ta.Shape, tb.Shape, config.R)
	}
	a, errA := ta.Float32s()
	b, errB := tb.Float32s()
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	in, out := ta.Shape[1], tb.Shape[0]
	w := make([]float64, out*in)
	for o := range out {
		for i := range in {
			for r := range config.R {
				w[o*in+i] += config.Alpha / float64(config.R) * float64(b[o*config.R+r]) * float64(a[r*in+i])
			}
		}
	}
	return w
}

// ours multiplies out the same from the tensors given, rows first … of A and B.
func ours(c Config, tensors []Tensor, module, suffix string, expert, rank, in, out int) []float64 {
	index := indexByName(tensors)
	a, _ := tensors[index[module+"."+suffix+"_A"]].Float32s()
	b, _ := tensors[index[module+"."+suffix+"_B"]].Float32s()
	w := make([]float64, out*in)
	for r := range rank {
		for o := range out {
			for i := range in {
				w[o*in+i] += c.Alpha / float64(c.Rank) * float64(a[(expert*rank+r)*in+i]) * float64(b[(expert*rank+r)*out+o])
			}
		}
	}
	return w
}

func wantEffect(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-12 {
			t.Errorf("%s: element %d is %v, want %v", what, i, got[i], want[i])
			return
		}
	}
}

func TestPEFTAddsTheSameToEveryWeight(t *testing.T) {
	for name, c := range everyConfig() {
		dir, tensors := filepath.Join(t.TempDir(), "peft"), tensorsFor(c)
		if err := WritePEFT(dir, c, tensors); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for layer := range c.Base.Layers {
			for _, target := range c.Targets {
				module := ModuleName(layer, target)
				in, out := c.Base.LinearShape(target)
				shared := make([]float64, in*out)
				if c.SharedRank > 0 {
					shared = ours(c, tensors, module, "shared", 0, c.SharedRank, in, out)
				}
				if c.Granularity == Unrouted {
					want := ours(c, tensors, module, "lora", 0, c.Rank, in, out)
					for i := range want {
						want[i] += shared[i]
					}
					wantEffect(t, name+" "+module, effect(t, dir, module), want)
					continue
				}
				for e := range c.Experts {
					expert := fmt.Sprintf("expert-%d", e)
					wantEffect(t, fmt.Sprint(name, " ", expert, " ", module), effect(t, filepath.Join(dir, expert), module),
						ours(c, tensors, module, "lora", e, c.Rank, in, out))
				}
				if c.SharedRank > 0 {
					wantEffect(t, name+" shared "+module, effect(t, filepath.Join(dir, "shared"), module), shared)
				}
			}
		}
	}
}

func TestPEFTLosesNothing(t *testing.T) {
	for name, want := range map[string][]string{
		"token":         {"expert-0", "expert-1", "expert-2", "router.safetensors", "switch.json"},
		"layer":         {"expert-0", "expert-1", "expert-2", "router.safetensors", "switch.json"},
		"block, shared": {"expert-0", "expert-1", "expert-2", "router.safetensors", "shared", "switch.json"},
		"none":          {"adapter_config.json", "adapter_model.safetensors", "switch.json"},
		"none, shared":  {"adapter_config.json", "adapter_model.safetensors", "switch.json"},
	} {
		c := everyConfig()[name]
		dir, tensors := filepath.Join(t.TempDir(), "peft"), tensorsFor(c)
		if err := WritePEFT(dir, c, tensors); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantNames(t, name, dir, want...)
		var s switchJSON
		if err := strictJSON(read(t, dir, switchFile), &s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(s.Experts) != c.Experts || s.Adapter.Base != c.Base || s.Adapter.Granularity != c.Granularity || (s.Shared != "") != (c.SharedRank > 0 && name != "none, shared") {
			t.Errorf("%s: switch.json says %+v", name, s)
		}
		if c.Granularity == Unrouted {
			continue
		}
		f, err := Open(filepath.Join(dir, s.Router))
		if err != nil {
			t.Fatal(err)
		}
		var routing []Tensor
		for _, x := range tensors {
			if !strings.Contains(x.Name, "_A") && !strings.Contains(x.Name, "_B") {
				routing = append(routing, x)
			}
		}
		sameTensors(t, f.Tensors(), routing)
		f.Close()
	}
}

func TestPEFTConfig(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "peft")
	c := oddConfig(PerToken, 5)
	if err := WritePEFT(dir, c, tensorsFor(c)); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(read(t, filepath.Join(dir, "shared"), configFile), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base", "inference_mode": true,
		"r": 5.0, "lora_alpha": 7.0 * 5 / 3, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false, "use_rslora": false, "use_dora": false,
		"target_modules": []any{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("shared/adapter_config.json (-want +got):\n%s", diff)
	}
}

// Python's peft loads every adapter without a warning, and what it adds to the
// weights is what the serving folder says.
func TestPythonLoadsPEFT(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves it out: it starts Python with torch")
	}
	testpython.Need(t, "peft, transformers, torch, safetensors")
	args := []string{"testdata/peft_loads.py"}
	for name, c := range everyConfig() {
		c.Base.HeadDim, c.Base.Heads, c.Base.KVHeads = 6, 3, 1 // transformers' rotary embedding takes even sizes
		dir := t.TempDir()
		serving, peft := filepath.Join(dir, "serving"), filepath.Join(dir, "peft")
		if err := WriteServing(serving, c, tensorsFor(c)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s, err := OpenServing(serving)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := WritePEFT(peft, c, s.Tensors()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		args = append(args, serving, peft)
	}
	testpython.Run(t, args...)
}
