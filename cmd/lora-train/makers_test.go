package main

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/model/tiny"
	"loratrain/router"
	"loratrain/train"
)

// makeModel writes the embedded model as a Hugging Face folder, with an alteration: "other" changes one weight, "nan" spoils
// one, "mute" leaves the tokenizer out, "bos" makes the tokenizer begin texts with <|endoftext|>.
func makeModel(dir string, args []string) error {
	change := strings.Join(args, " ")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json"} {
		data, err := fs.ReadFile(tiny.FS(), name)
		if err != nil {
			return err
		}
		last := len(data) - 1 // of the weights: the upper byte of a bfloat16 of the last tensor
		switch {
		case change == "mute" && name == "tokenizer.json":
			continue
		case change == "other" && name == "model.safetensors":
			data[last-1] ^= 1
		case change == "nan" && name == "model.safetensors":
			data[last-1], data[last] = 0xff, 0x7f
		case change == "bos" && name == "tokenizer.json":
			const before, after = `"post_processor":null`, `"post_processor": {"type": "TemplateProcessing",
				"single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
				"pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
				"special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}`
			if !strings.Contains(string(data), before) {
				return fmt.Errorf("tokenizer.json: no %s", before)
			}
			data = []byte(strings.Replace(string(data), before, after, 1))
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
			return err
		}
	}
	return nil
}

// makeAdapted is an adapter of a granularity, for a base: random experts that change what the base says.
func makeAdapted(base *model.Base, g router.Granularity, shared int) (model.Adapted, error) {
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		return model.Adapted{}, err
	}
	placed, err := model.Place(b, base.Arch, base.Weights, 64)
	if err != nil {
		return model.Adapted{}, err
	}
	spec := model.AdapterSpec{Granularity: g, Experts: 4, Rank: 2, Shared: shared, Alpha: 4, Targets: model.AllTargets()}
	if g == router.None {
		spec.Experts = 1
	}
	bank := model.NewBank(base.Arch, spec)
	params := kernels.NewHost(kernels.F32, bank.Size())
	bank.Init(params, 1)
	random := rand.New(rand.NewPCG(2, 3))
	for _, p := range bank.Params {
		values := kernels.Slice[float32](bank.View(params, p))
		for i := range values {
			switch {
			case strings.HasSuffix(p.Name, ".B"):
				values[i] = float32(random.NormFloat64())
			case strings.HasSuffix(p.Name, "router"):
				values[i] *= 5 // so that tokens differ in their experts
			}
		}
	}
	return model.Adapted{Base: base, Placed: placed, Bank: bank, Params: params}, nil
}

// makeExport exports a random adapter. Arguments are the granularity, the shared rank (0) and the base (embedded).
func makeExport(dir string, args []string) error {
	return withAdapted(args, func(m model.Adapted) error {
		_, err := m.Export(dir, [][]int32{{2414, 2366, 632}})
		return err
	})
}

func makePEFT(dir string, args []string) error {
	return withAdapted(args, func(m model.Adapted) error { return m.ExportPEFT(dir) })
}

func withAdapted(args []string, f func(model.Adapted) error) error {
	given := []string{"token", "0", ""}
	copy(given, args)
	shared, err := strconv.Atoi(given[1])
	if err != nil {
		return err
	}
	base, err := openModel(given[2])
	if err != nil {
		return err
	}
	defer base.Close()
	m, err := makeAdapted(base, router.Granularity(given[0]), shared)
	if err != nil {
		return err
	}
	return f(m)
}

// makeRun writes the folder of a run that took two steps, saved and did not export. Arguments are its state and the path of its
// model.
func makeRun(dir string, args []string) error {
	args = append(args, "")
	cfg := train.DefaultToy()
	cfg.Model.Path = args[1]
	cfg.Data.Tasks = []string{train.ToyTask}
	cfg.Resolve()
	info := train.NewRunInfo()
	info.Model, info.ModelDigest, info.Backend = "tiny", "sha256:0123", "CPU"
	info.DataDigests = map[string]string{"train toy": "4567"}
	r, err := train.CreateRun(dir, cfg, info)
	if err != nil {
		return err
	}
	defer r.Close()
	metrics, err := train.OpenMetrics(r.MetricsPath(), 0, false)
	if err != nil {
		return err
	}
	defer metrics.Close()
	for step := 1; step <= 2; step++ {
		if err := metrics.WriteStep(train.StepMetrics{Step: step, Loss: 3.5, Loads: []float64{0.75, 0.25}}); err != nil {
			return err
		}
	}
	if err := metrics.WriteEval(2, []train.Score{{Task: "toy", Items: 10, Acc: 0.5, Chance: 0.25}}); err != nil {
		return err
	}
	values := []float32{1, 2, 3, 4}
	err = checkpoints.SaveState(r.CheckpointsDir(), checkpoints.State{
		Step: 2, Meta: []byte(`{"best_step": 1}`), Tensors: []checkpoints.Tensor{
			checkpoints.Float32Tensor("model.router", []int{2, 2}, values), checkpoints.Float32Tensor("adamw.m.model.router", []int{2, 2}, values),
		},
	})
	if err != nil || args[0] == string(train.RunRunning) {
		return err
	}
	return r.Finish(train.RunState(args[0]), nil)
}

// cut shortens a file by a number of bytes.
func cut(path string, args []string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(strings.Join(args, " "), 10, 64)
	if err != nil {
		return err
	}
	return os.Truncate(path, info.Size()-n)
}
