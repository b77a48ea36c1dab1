package model

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/checkpoints"
	"loratrain/kernels"
	"loratrain/router"
)

// odd is a base whose sizes all differ.
func odd() Arch {
	return Arch{Width: 12, MLP: 19, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 6, Vocab: 23}
}

// oddSpecs is adapters of every granularity, with and without a shared expert, of some and of all linear layers.
func oddSpecs() []AdapterSpec {
	var list []AdapterSpec
	for _, g := range router.Granularities() {
		for _, shared := range []int{0, 1, 7} {
			for _, on := range [][]Target{{KProj}, {QProj, OProj, DownProj}, AllTargets()} {
				s := AdapterSpec{Granularity: g, Experts: 5, Rank: 3, Shared: shared, Alpha: 4.5, Targets: on}
				if g == router.None {
					s.Experts = 1
				}
				list = append(list, s)
			}
		}
	}
	return list
}

// filled is a buffer whose every element, gaps too, is another number.
func filled(typ kernels.Type, n int) kernels.Tensor {
	t := kernels.NewHost(typ, n)
	set := setter(t)
	for i := range n {
		set(i, float64(i)+0.5)
	}
	return t
}

// Load undoes Tensors exactly, whatever the order of the tensors, and leaves the gaps alone.
func TestBankRoundTrip(t *testing.T) {
	for _, typ := range []kernels.Type{kernels.F32, kernels.F64} {
		for _, spec := range oddSpecs() {
			k := NewBank(odd(), spec)
			want := kernels.NewHost(typ, k.Size())
			r := rand.New(rand.NewPCG(1, 2))
			for _, p := range k.Params {
				set := setter(k.View(want, p))
				for i := range p.Len() {
					set(i, r.NormFloat64())
				}
			}
			tensors := k.Tensors(want)
			slices.Reverse(tensors)
			got := kernels.NewHost(typ, k.Size())
			if err := k.Load(got, tensors); err != nil {
				t.Fatalf("%+v: %v", spec, err)
			}
			if !bytes.Equal(got.Mem.(kernels.Host), want.Mem.(kernels.Host)) {
				t.Errorf("%+v in %v does not come back from the file layout", spec, typ)
			}
		}
	}
}

// The tensors of a file are those that the serving format names, in its shapes.
func TestBankFileTensors(t *testing.T) {
	shapes := func(k *Bank) map[string][]int {
		got := map[string][]int{}
		for _, tensor := range k.Tensors(kernels.NewHost(kernels.F32, k.Size())) {
			got[tensor.Name] = tensor.Shape
		}
		return got
	}
	a := odd()
	a.Layers = 1
	for _, c := range []struct {
		spec AdapterSpec
		want map[string][]int
	}{
		{AdapterSpec{Granularity: router.Token, Experts: 5, Rank: 3, Shared: 2, Targets: []Target{OProj, GateProj}}, map[string][]int{
			"model.layers.0.self_attn.o_proj.lora_A":   {5, 3, 24},
			"model.layers.0.self_attn.o_proj.lora_B":   {5, 3, 12},
			"model.layers.0.self_attn.o_proj.shared_A": {2, 24},
			"model.layers.0.self_attn.o_proj.shared_B": {2, 12},
			"model.layers.0.mlp.gate_proj.lora_A":      {5, 3, 12},
			"model.layers.0.mlp.gate_proj.lora_B":      {5, 3, 19},
			"model.layers.0.mlp.gate_proj.shared_A":    {2, 12},
			"model.layers.0.mlp.gate_proj.shared_B":    {2, 19},
			"model.router":                             {5, 12},
		}},
		{AdapterSpec{Granularity: router.Block, Experts: 5, Rank: 3, Targets: []Target{VProj}}, map[string][]int{
			"model.layers.0.self_attn.v_proj.lora_A": {5, 3, 12},
			"model.layers.0.self_attn.v_proj.lora_B": {5, 3, 12},
			"model.layers.0.router":                  {5, 12},
		}},
		{AdapterSpec{Granularity: router.Layer, Experts: 5, Rank: 3, Targets: []Target{OProj, DownProj}}, map[string][]int{
			"model.layers.0.self_attn.o_proj.lora_A": {5, 3, 24},
			"model.layers.0.self_attn.o_proj.lora_B": {5, 3, 12},
			"model.layers.0.self_attn.o_proj.router": {5, 24},
			"model.layers.0.mlp.down_proj.lora_A":    {5, 3, 19},
			"model.layers.0.mlp.down_proj.lora_B":    {5, 3, 12},
			"model.layers.0.mlp.down_proj.router":    {5, 19},
		}},
		{AdapterSpec{Granularity: router.None, Experts: 1, Rank: 9, Targets: []Target{QProj}}, map[string][]int{
			"model.layers.0.self_attn.q_proj.lora_A": {1, 9, 12},
			"model.layers.0.self_attn.q_proj.lora_B": {1, 9, 24},
		}},
	} {
		if diff := cmp.Diff(c.want, shapes(NewBank(a, c.spec))); diff != "" {
			t.Errorf("granularity %s (-want +got):\n%s", c.spec.Granularity, diff)
		}
	}
}

// A[d, e·R+r] is lora_A[e, r, d], B[e·R+r, o] is lora_B[e, r, o], and the columns from E·R on are the shared expert's.
func TestBankDenseLayout(t *testing.T) {
	spec := AdapterSpec{Granularity: router.Layer, Experts: 5, Rank: 3, Shared: 2, Targets: []Target{OProj}}
	k := NewBank(odd(), spec)
	buffer := filled(kernels.F32, k.Size())
	const in, out, columns = 24, 12, 5*3 + 2
	files := map[string]func(i int) float64{}
	for _, tensor := range k.Tensors(buffer) {
		host, err := fromFile(tensor)
		if err != nil {
			t.Fatal(err)
		}
		files[tensor.Name] = getter(host)
	}
	m := Module(1, OProj)
	var a, b, gate func(i int) float64
	for _, p := range k.Params {
		switch get := getter(k.View(buffer, p)); p.Name {
		case m + ".A":
			a = get
		case m + ".B":
			b = get
		case m + ".router":
			gate = get
		}
	}
	for c := range columns {
		row, kind := c, "lora" // the row of the file's tensor, e·R + r
		if c >= 15 {
			row, kind = c-15, "shared"
		}
		for d := range in {
			if got, want := files[m+"."+kind+"_A"](row*in+d), a(d*columns+c); got != want {
				t.Fatalf("%s_A row %d, input %d is %g, A[%d, %d] is %g", kind, row, d, got, d, c, want)
			}
		}
		for o := range out {
			if got, want := files[m+"."+kind+"_B"](row*out+o), b(c*out+o); got != want {
				t.Fatalf("%s_B row %d, output %d is %g, B[%d, %d] is %g", kind, row, o, got, c, o, want)
			}
		}
	}
	for i := range 5 * in {
		if got, want := files[m+".router"](i), gate(i); got != want {
			t.Fatalf("router element %d is %g in the file, %g in the buffer", i, got, want)
		}
	}
}

// Tensors of the buffer do not overlap, start on cache lines, and are as many numbers as an adapter has.
func TestBankBuffer(t *testing.T) {
	for _, spec := range oddSpecs() {
		k, end, count := NewBank(odd(), spec), 0, 0
		for _, p := range k.Params {
			if p.Offset < end || p.Offset%16 != 0 {
				t.Errorf("%+v: %s starts at %d, after %d", spec, p.Name, p.Offset, end)
			}
			end = p.Offset + p.Len()
			count += kernels.Len(p.Shape...)
		}
		if end > k.Size() || k.Trainable() != count {
			t.Errorf("%+v: size %d and %d trained, want at least %d and %d", spec, k.Size(), k.Trainable(), end, count)
		}
	}
	spec := AdapterSpec{Granularity: router.Token, Experts: 8, Rank: 4, Shared: 6, Targets: []Target{GateProj}}
	// Two layers of A (12, 38) and B (38, 19), and the router (8, 12).
	if got, want := NewBank(odd(), spec).Trainable(), 2*38*(12+19)+8*12; got != want {
		t.Errorf("%d trained parameters, want %d", got, want)
	}
}

func TestBankLoadRefuses(t *testing.T) {
	k := NewBank(odd(), AdapterSpec{Granularity: router.Token, Experts: 2, Rank: 3, Shared: 1, Targets: []Target{KProj}})
	const name = "model.layers.1.self_attn.k_proj.lora_B"
	for _, c := range []struct {
		what string
		edit func(list []checkpoints.Tensor, at int) []checkpoints.Tensor
		want string
	}{
		{
			"missing", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor { return slices.Delete(l, at, at+1) },
			`no tensor "` + name + `", which an adapter of these settings has`,
		},
		{
			"other shape, same size", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor { l[at].Shape = []int{3, 2, 12}; return l },
			`tensor "` + name + `" has shape [3 2 12], expected [2 3 12]`,
		},
		{
			"flat", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor { l[at].Shape = []int{72}; return l },
			`tensor "` + name + `" has shape [72], expected [2 3 12]`,
		},
		{
			"too short", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor { l[at].Data = l[at].Data[:280]; return l },
			`tensor "` + name + `" of type F32 and shape [2 3 12] has 280 bytes`,
		},
		{
			"whole numbers", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor { l[at].Type = "I32"; return l },
			`tensor "` + name + `" has type I32, expected F32, F64 or BF16`,
		},
		{
			"half precision", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor { l[at].Type = "F16"; return l },
			`tensor "` + name + `" has type F16, which is not supported`,
		},
		{"more", func(l []checkpoints.Tensor, at int) []checkpoints.Tensor {
			for _, extra := range []string{"z", "model.layers.2.self_attn.k_proj.lora_A", "y"} {
				l = append(l, checkpoints.Tensor{Name: extra, Type: "F32", Shape: []int{0}})
			}
			return l
		}, `tensor "model.layers.2.self_attn.k_proj.lora_A" does not belong to an adapter of these settings`},
	} {
		list := k.Tensors(filled(kernels.F32, k.Size()))
		at := slices.IndexFunc(list, func(t checkpoints.Tensor) bool { return t.Name == name })
		err := k.Load(kernels.NewHost(kernels.F32, k.Size()), c.edit(list, at))
		if fmt.Sprint(err) != c.want {
			t.Errorf("%s: error %v, want %s", c.what, err, c.want)
		}
	}
}

// Tensors of every type that files hold are read, where they lie or at an odd address.
func TestBankLoadTypes(t *testing.T) {
	k := NewBank(odd(), AdapterSpec{Granularity: router.None, Experts: 1, Rank: 2, Alpha: 1, Targets: []Target{QProj}})
	value := func(i int) float64 { return float64(i%251) - 125.5 } // eight bits: exact in bf16
	for _, typ := range []kernels.Type{kernels.F32, kernels.F64, kernels.BF16} {
		for _, shift := range []int{0, 1} {
			list := k.Tensors(kernels.NewHost(kernels.F32, k.Size()))
			for at := range list {
				list[at].Shape = slices.Clone(list[at].Shape)
				host := kernels.NewHost(typ, list[at].Shape...)
				for i := range host.Len() {
					switch typ {
					case kernels.BF16:
						kernels.Slice[kernels.BFloat16](host)[i] = kernels.ToBFloat16(float32(value(i)))
					default:
						setter(host)(i, value(i))
					}
				}
				list[at].Type = fileTypes[typ]
				list[at].Data = append(make([]byte, shift), host.Mem.(kernels.Host)...)[shift:]
			}
			buffer := kernels.NewHost(kernels.F32, k.Size())
			if err := k.Load(buffer, list); err != nil {
				t.Fatal(err)
			}
			for _, tensor := range k.Tensors(buffer) {
				host, err := fromFile(tensor)
				if err != nil {
					t.Fatal(err)
				}
				get := getter(host)
				for i := range host.Len() {
					if get(i) != value(i) {
						t.Fatalf("%s from %v at address %d: element %d is %g, want %g", tensor.Name, typ, shift, i, get(i), value(i))
					}
				}
			}
		}
	}
}

// The start of training depends on the seed and a tensor's name alone: not on what was in the buffer, nor on what else is adapted.
func TestInitIsDetermined(t *testing.T) {
	spec := AdapterSpec{Granularity: router.Layer, Experts: 3, Rank: 2, Shared: 1, Targets: AllTargets()}
	all := NewBank(odd(), spec)
	spec.Targets = []Target{VProj, DownProj}
	some := NewBank(odd(), spec)
	x, y := filled(kernels.F64, all.Size()), kernels.NewHost(kernels.F64, some.Size())
	all.Init(x, 41)
	some.Init(y, 41)
	for _, p := range some.Params {
		var twin Param
		for _, q := range all.Params {
			if q.Name == p.Name {
				twin = q
			}
		}
		if !bytes.Equal(some.View(y, p).Mem.(kernels.Host), all.View(x, twin).Mem.(kernels.Host)) {
			t.Errorf("%s starts otherwise where fewer layers are adapted", p.Name)
		}
	}
	inside := make([]bool, all.Size())
	for _, p := range all.Params {
		for i := range p.Len() {
			inside[p.Offset+i] = true
		}
	}
	for i, get := 0, getter(x); i < all.Size(); i++ {
		if !inside[i] && get(i) != 0 {
			t.Fatalf("element %d, in no tensor, is %g after Init", i, get(i))
		}
	}
	z := kernels.NewHost(kernels.F64, all.Size())
	all.Init(z, 42)
	seen := map[string]string{}
	for _, buffer := range []kernels.Tensor{x, z} {
		for _, p := range all.Params {
			if strings.HasSuffix(p.Name, ".B") {
				continue
			}
			start := string(all.View(buffer, p).Mem.(kernels.Host)[:16])
			if other, ok := seen[start]; ok {
				t.Errorf("%s starts with the same numbers as %s", p.Name, other)
			}
			seen[start] = p.Name
		}
	}
}

// A is uniform within ±1/√D_in, B zero, and routers have deviation 0.02.
func TestInitDistribution(t *testing.T) {
	a := Arch{Width: 400, MLP: 700, Layers: 1, Heads: 4, KVHeads: 2, HeadDim: 50, Vocab: 5}
	k := NewBank(a, AdapterSpec{Granularity: router.Layer, Experts: 8, Rank: 8, Shared: 3, Targets: []Target{OProj, DownProj}})
	buffer := kernels.NewHost(kernels.F32, k.Size())
	k.Init(buffer, 1)
	for _, p := range k.Params {
		get, n := getter(k.View(buffer, p)), float64(p.Len())
		largest, mean, square := 0.0, 0.0, 0.0
		for i := range p.Len() {
			largest = max(largest, math.Abs(get(i)))
			mean += get(i) / n
			square += get(i) * get(i) / n
		}
		deviation := math.Sqrt(square - mean*mean)
		var want float64
		switch {
		case strings.HasSuffix(p.Name, ".A"):
			bound := 1 / math.Sqrt(float64(p.Shape[0]))
			if want = bound / math.Sqrt(3); largest > bound || largest < 0.99*bound {
				t.Errorf("%s: the largest number is %g, want nearly %g", p.Name, largest, bound)
			}
		case strings.HasSuffix(p.Name, ".router"):
			want = 0.02
		}
		if math.Abs(deviation-want) > 0.05*want || math.Abs(mean) > 5*want/math.Sqrt(n) {
			t.Errorf("%s: mean %g and deviation %g, want 0 and %g", p.Name, mean, deviation, want)
		}
	}
}
