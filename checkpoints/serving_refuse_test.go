package checkpoints

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWriteServingRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		config  func(*Config)
		tensors func([]Tensor) []Tensor
		want    string
	}{
		"one expert routed": {config: func(c *Config) { c.Experts = 1 }, want: "experts is 1, want 2 or more"},
		"two experts, none": {config: func(c *Config) { c.Granularity = Unrouted }, want: "experts is 3, want 1"},
		"granularity":       {config: func(c *Config) { c.Granularity = "word" }, want: `granularity is "word"`},
		"no targets":        {config: func(c *Config) { c.Targets = nil }, want: "targets are empty"},
		"unknown target":    {config: func(c *Config) { c.Targets = []string{"lm_head"} }, want: `targets are ["lm_head"]`},
		"targets out of order": {
			config: func(c *Config) { c.Targets = []string{"k_proj", "q_proj"} }, want: "in this order",
		},
		"target twice":   {config: func(c *Config) { c.Targets = []string{"q_proj", "q_proj"} }, want: "in this order"},
		"rank 0":         {config: func(c *Config) { c.Rank = 0 }, want: "rank is 0"},
		"alpha NaN":      {config: func(c *Config) { c.Alpha = math.NaN() }, want: "alpha is NaN"},
		"alpha 0":        {config: func(c *Config) { c.Alpha = 0 }, want: "alpha is 0"},
		"alpha infinite": {config: func(c *Config) { c.Alpha = math.Inf(1) }, want: "alpha is +Inf"},
		"alpha beyond float32": {
			config: func(c *Config) { c.Alpha = 1.1e39 }, want: "alpha / rank is 3.666666666666667e+38, which is beyond the range of float32",
		},
		"alpha that float32 makes 0": {
			config: func(c *Config) { c.Alpha = 1e-45 }, want: "alpha / rank is 3.3333333333333333e-46, which is beyond",
		},
		"no digest":    {config: func(c *Config) { c.Base.Digest = "" }, want: `base.digest is "", want sha256: and 64 hexadecimal digits`},
		"short digest": {config: func(c *Config) { c.Base.Digest = someDigest[:70] }, want: someDigest[:70] + `", want sha256: and 64`},
		"upper-case digest": {
			config: func(c *Config) { c.Base.Digest = "sha256:" + strings.Repeat("A", 64) }, want: `AAA", want sha256: and 64`,
		},
		"name of two lines": {config: func(c *Config) { c.Base.Name = "a\nb" }, want: `base.name is "a\nb", want text without`},
		"2^30 layers":       {config: func(c *Config) { c.Base.Layers = 1 << 30 }, want: `no tensor "model.layers.2.self_attn.q_proj.lora_A"`},
		"2^40 layers":       {config: func(c *Config) { c.Base.Layers = 1 << 40 }, want: "base.layers is 1099511627776"},
		"other width":       {config: func(c *Config) { c.Base.Width = 10 }, want: `tensor "model.router" is F32 [3 9], config says F32 [3 10]`},
		"no tensors":        {tensors: func([]Tensor) []Tensor { return nil }, want: `no tensor "model.router"`},
		"tensor twice":      {tensors: func(x []Tensor) []Tensor { return append(x, x[0]) }, want: `two tensors are called "model.router"`},
		"one too many": {
			tensors: func(x []Tensor) []Tensor { return append(x, one("extra", 0)) }, want: `unexpected tensor "extra"`,
		},
		"beyond bf16": {
			tensors: plant("model.layers.0.self_attn.q_proj.lora_A", 30, math.MaxFloat32),
			want:    `"model.layers.0.self_attn.q_proj.lora_A" is +Inf at element 30 [1 0 3]`,
		},
		"NaN that rounding would hide": {
			tensors: plant("model.layers.1.mlp.down_proj.lora_B", 0, math.Float32frombits(0x7fffffff)),
			want:    `"model.layers.1.mlp.down_proj.lora_B" is NaN at element 0 [0 0 0]`,
		},
		"integers for floats": {
			tensors: func(x []Tensor) []Tensor { x[3].Type = I32; return x }, want: "is I32 [3 3 9], config says BF16 [3 3 9]",
		},
	} {
		config, dir := oddConfig(PerToken, 0), filepath.Join(t.TempDir(), "export")
		tensors := tensorsFor(config)
		if c.config != nil {
			c.config(&config)
		}
		if c.tensors != nil {
			tensors = c.tensors(tensors)
		}
		for kind, write := range writers {
			err := write(dir, config, tensors)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s, %s: got %v, want the folder and %q", name, kind, err, c.want)
			}
		}
		wantNames(t, name, filepath.Dir(dir))
	}
}

func plant(name string, at int, v float32) func([]Tensor) []Tensor {
	return func(tensors []Tensor) []Tensor {
		t := tensors[indexByName(tensors)[name]]
		if t.Type == BF16 {
			binary.LittleEndian.PutUint16(t.Data[2*at:], bf16(v))
		} else {
			binary.LittleEndian.PutUint32(t.Data[4*at:], math.Float32bits(v))
		}
		return tensors
	}
}

// written is a folder whose files are changed as no writer of ours would.
func written(t *testing.T, c Config, change func([]Tensor) []Tensor) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	if err := WriteServing(dir, c, tensorsFor(c)); err != nil {
		t.Fatal(err)
	}
	tensors, _, err := parse("x", read(t, dir, tensorFile))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		data := encoded(t, change(tensors), nil)
		if err := os.WriteFile(filepath.Join(dir, tensorFile), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpenServingRefusesTensors(t *testing.T) {
	without := func(name string) func([]Tensor) []Tensor {
		return func(x []Tensor) []Tensor {
			return slices.DeleteFunc(x, func(t Tensor) bool { return t.Name == name })
		}
	}
	set := func(name string, change func(*Tensor)) func([]Tensor) []Tensor {
		return func(x []Tensor) []Tensor { change(&x[indexByName(x)[name]]); return x }
	}
	id := func(at int, v int32) func([]Tensor) []Tensor {
		return set("model.table.ids", func(x *Tensor) { binary.LittleEndian.PutUint32(x.Data[4*at:], uint32(v)) })
	}
	const lora = "model.layers.1.mlp.gate_proj.lora_A"
	for name, c := range map[string]struct {
		change func([]Tensor) []Tensor
		want   string
	}{
		"table a row short": {
			set("model.table.ids", func(x *Tensor) { x.Shape, x.Data = []int{10, 2}, x.Data[:80] }),
			`"model.table.ids" is I32 [10 2], config says I32 [11 2]`,
		},
		"weights a row long": {
			set("model.table.weights", func(x *Tensor) { x.Shape, x.Data = []int{12, 2}, append(x.Data, make([]byte, 8)...) }),
			`"model.table.weights" is F32 [12 2], config says F32 [11 2]`,
		},
		"router missing":      {without("model.router"), `no tensor "model.router" (want F32 [3 9])`},
		"table missing":       {without("model.table.ids"), `no tensor "model.table.ids"`},
		"last one missing":    {without("model.layers.1.mlp.down_proj.shared_B"), `no tensor "model.layers.1.mlp.down_proj.shared_B"`},
		"one too many":        {func(x []Tensor) []Tensor { return append(x, one("model.layers.0.router", 0)) }, `unexpected tensor "model.layers.0.router"`},
		"a third layer":       {func(x []Tensor) []Tensor { return append(x, one("model.layers.2.mlp.gate_proj.lora_A", 0)) }, "unexpected tensor"},
		"shape swapped":       {set(lora, func(x *Tensor) { x.Shape = []int{3, 9, 3} }), `"` + lora + `" is BF16 [3 9 3], config says BF16 [3 3 9]`},
		"a dimension less":    {set(lora, func(x *Tensor) { x.Shape = []int{9, 9} }), "is BF16 [9 9]"},
		"float16":             {set(lora, func(x *Tensor) { x.Type = F16 }), "is F16 [3 3 9], config says BF16"},
		"NaN":                 {plant(lora, 80, float32(math.NaN())), `"` + lora + `" is NaN at element 80 [2 2 8]`},
		"infinity":            {plant(lora, 0, float32(math.Inf(-1))), `"` + lora + `" is -Inf at element 0 [0 0 0]`},
		"NaN in the router":   {plant("model.router", 26, float32(math.NaN())), `"model.router" is NaN at element 26 [2 8]`},
		"NaN in the weights":  {plant("model.table.weights", 21, float32(math.NaN())), `"model.table.weights" is NaN at element 21 [10 1]`},
		"expert E":            {id(21, 3), `"model.table.ids" sends token 10 to expert 3 of 3`},
		"expert -1":           {id(0, -1), "sends token 0 to expert -1 of 3"},
		"largest id":          {id(1, math.MaxInt32), "expert 2147483647 of 3"},
		"one expert twice":    {id(5, 2), "sends token 2 to expert 2 twice"},
		"negative weight":     {plant("model.table.weights", 4, -0.25), "has -0.25 for token 2"},
		"weights beyond 1":    {plant("model.table.weights", 4, 0.76), "gives token 2 weights that sum to 1.0"},
		"all weights nothing": {set("model.table.weights", func(x *Tensor) { x.Data = make([]byte, len(x.Data)) }), "weights that sum to 0"},
	} {
		dir := written(t, oddConfig(PerToken, 2), c.change)
		s, err := OpenServing(dir)
		if err == nil {
			t.Errorf("%s: opened %s", name, s.Dir)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), tensorFile) || !strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %q, want %s, %q and advice", name, err, tensorFile, c.want)
		}
	}
}

func TestOpenServingRefusesConfigs(t *testing.T) {
	for name, c := range map[string]struct{ from, to, want string }{
		"next version":         {`"version": 1`, `"version": 2`, `format "lora-switch" version 2, this program reads format "lora-switch" version 1`},
		"next with more":       {`"version": 1`, `"version": 2, "hologram": true`, "version 2, this program reads"},
		"version a string":     {`"version": 1`, `"version": "1"`, `version "1", this`},
		"no version":           {`"version": 1,`, ``, "version (none), this"},
		"PEFT's own":           {`"format": "lora-switch"`, `"peft_type": "LORA"`, `format (none) version 1, this`},
		"unknown key":          {`"rank": 3,`, `"rank": 3, "dropout": 0,`, `unknown key "dropout"`},
		"unknown in base":      {`"heads": 3,`, `"heads": 3, "tails": 2,`, `unknown key "base.tails"`},
		"other case":           {`"rank": 3`, `"Rank": 3`, `unknown key "Rank"`},
		"key twice":            {`"rank": 3`, `"rank": 4, "rank": 3`, `key "rank" is there twice`},
		"twice in base":        {`"heads": 3`, `"heads": 4, "heads": 3`, `key "heads" is there twice`},
		"key missing":          {`"shared_rank": 2,`, ``, `no key "shared_rank"`},
		"rank a string":        {`"rank": 3`, `"rank": "3"`, configFile + `:28:13: "rank" is a string, want a whole number`},
		"rank a fraction":      {`"rank": 3`, `"rank": 3.5`, configFile + `:28:13: "rank" is 3.5, want a whole number`},
		"rank huge":            {`"rank": 3`, `"rank": 1e99`, `"rank" is 1e99, want a whole number`},
		"alpha a list":         {`"alpha": 7`, `"alpha": [7]`, `"alpha" is a list, want a number`},
		"layers a word":        {`"layers": 2`, `"layers": "two"`, `"base.layers" is a string, want a whole number`},
		"a target a number":    {`"q_proj"`, `7`, `"targets" is a number, want a string`},
		"base a list":          {`"base": {`, `"base": [], "x": {`, `"base" is a list, want an object`},
		"name of two lines":    {`"some/base"`, `"some\u000abase"`, `base.name is "some\nbase", want text without control characters`},
		"alpha beyond float32": {`"alpha": 7`, `"alpha": 1e300`, "alpha / rank is 3.33"},
		"base null":            {`"base": {`, `"base": null, "x": {`, `unknown key "x"`},
		"other gate":           {`"softmax-top2"`, `"sigmoid"`, `gate is "sigmoid", want "softmax-top2"`},
		"other top":            {`"top": 2`, `"top": 4`, "top is 4, want 2"},
		"other dtype":          {`"dtype": "BF16"`, `"dtype": "F32"`, `dtype is "F32", want "BF16"`},
		"other scale":          {`"alpha": 7`, `"alpha": 14`, "alpha / rank is 4.6666"},
		"more experts":         {`"experts": 3`, `"experts": 4`, `tensor "model.router" is F32 [3 9], config says F32 [4 9]`},
		"negative heads":       {`"heads": 3`, `"heads": -3`, "base.heads is -3"},
		"comma missing":        {`"version": 1,`, `"version": 1`, configFile + ":4:3: invalid character"},
		"two objects":          {"}\n", "}\n{}", "invalid character"},
		"cut short":            {"\n}", "\n", "unexpected end"},
	} {
		dir := written(t, oddConfig(PerToken, 2), nil)
		path := filepath.Join(dir, configFile)
		data := read(t, dir, configFile)
		at := bytes.LastIndex(data, []byte(c.from))
		if at < 0 {
			t.Fatalf("%s: no %s in\n%s", name, c.from, data)
		}
		data = slices.Concat(data[:at], []byte(c.to), data[at+len(c.from):])
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		s, err := OpenServing(dir)
		if err == nil {
			t.Errorf("%s: opened %s", name, s.Dir)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), dir) || !strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %q, want the file, %q and advice", name, err, c.want)
		}
	}
}

// Whatever else lies where an export's files should be is named, with what to do.
func TestOpenServingOfOtherThings(t *testing.T) {
	const folder, nothing = "\x00folder", "\x00nothing"
	for _, c := range []struct{ file, holds, want string }{
		{configFile, folder, ": is a directory\ncheck the path"},
		{configFile, nothing, ": no such file or directory\nfetch both files of the export"},
		{configFile, "", ":1:1: unexpected end of JSON input\nread it with"},
		{configFile, "[]", ":1:1: a list, want an object\nread it with"},
		{configFile, "7", ":1:1: a number, want an object\nread it with"},
		{configFile, "null", ": format (none) version (none), this program reads"},
		{configFile, "{}", ": format (none) version (none), this program reads"},
		{configFile, "<html>", ":1:1: invalid character '<'"},
		{tensorFile, folder, ": not a file\nput the .safetensors file there"},
		{tensorFile, nothing, ": no such file or directory\nfetch both files of the export"},
		{tensorFile, "", ": empty file\nfetch the file again"},
		{tensorFile, "1234567", ": truncated: 7 bytes"},
		{tensorFile, "<html>not found</html>", ": not safetensors: "},
		{tensorFile, "\x02\x00\x00\x00\x00\x00\x00\x00{}", ": holds no tensors\n"},
	} {
		dir := written(t, oddConfig(PerToken, 0), nil)
		path := filepath.Join(dir, c.file)
		err := os.Remove(path)
		switch {
		case err != nil:
		case c.holds == folder:
			err = os.Mkdir(path, 0o777)
		case c.holds != nothing:
			err = os.WriteFile(path, []byte(c.holds), 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = OpenServing(dir)
		if err == nil || !strings.HasPrefix(err.Error(), path+c.want) || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%s of %q: got %q, want %q and one line of advice", c.file, c.holds, fmt.Sprint(err), path+c.want)
		}
	}
}

func TestOpenServingRefusesMoreBytes(t *testing.T) {
	for _, n := range []int{1, 16, 4096} {
		dir := written(t, oddConfig(PerToken, 2), nil)
		path := filepath.Join(dir, tensorFile)
		if err := os.WriteFile(path, append(read(t, dir, tensorFile), make([]byte, n)...), 0o666); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%s: %d bytes after the last tensor \"model.layers.1.self_attn.v_proj.shared_B\" belong to no tensor\n", path, n)
		if _, err := OpenServing(dir); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %q, want %q and advice", fmt.Sprint(err), want)
		}
	}
}

func TestOpenServingCutAtEveryByte(t *testing.T) {
	c := oddConfig(PerBlock, 1)
	c.Base.Layers, c.Targets = 1, []string{"v_proj"}
	dir := written(t, c, nil)
	for _, file := range []string{configFile, tensorFile} {
		whole := read(t, dir, file)
		for n := range whole {
			if err := os.WriteFile(filepath.Join(dir, file), whole[:n], 0o666); err != nil {
				t.Fatal(err)
			}
			if s, err := OpenServing(dir); err == nil {
				if file == configFile && json.Valid(whole[:n]) {
					s.Close()
					continue // only the last newline is gone
				}
				t.Errorf("%s cut to %d of %d bytes: opened", file, n, len(whole))
			}
		}
		if err := os.WriteFile(filepath.Join(dir, file), whole, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}
