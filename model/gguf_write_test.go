package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"loratrain/kernels"
)

// ggufModel is a GGUF file in the making.
type ggufModel struct {
	values  []ggufKV
	tensors []ggufTensor
	align   int
}

type ggufKV struct {
	key   string
	value any
}

type ggufTensor struct {
	name  string
	shape []int // outermost first
	kind  uint32
	data  []byte
}

// set gives a key another value, or a first one; nil removes it.
func (g *ggufModel) set(key string, value any) {
	g.values = slices.DeleteFunc(g.values, func(kv ggufKV) bool { return kv.key == key })
	if value != nil {
		g.values = append(g.values, ggufKV{key, value})
	}
}

func (g *ggufModel) tensor(name string) *ggufTensor {
	for i := range g.tensors {
		if g.tensors[i].name == name {
			return &g.tensors[i]
		}
	}
	panic("no tensor " + name)
}

var little = binary.LittleEndian

func ggufText(b []byte, s string) []byte {
	return append(little.AppendUint64(b, uint64(len(s))), s...)
}

func ggufValue(b []byte, v any) []byte {
	list := func(kind uint32, n int) []byte {
		return little.AppendUint64(little.AppendUint32(little.AppendUint32(b, 9), kind), uint64(n))
	}
	switch v := v.(type) {
	case int:
		return little.AppendUint32(little.AppendUint32(b, 4), uint32(v))
	case float64:
		return little.AppendUint32(little.AppendUint32(b, 6), math.Float32bits(float32(v)))
	case bool:
		b = little.AppendUint32(b, 7)
		return append(b, map[bool]byte{true: 1}[v])
	case string:
		return ggufText(little.AppendUint32(b, 8), v)
	case []string:
		b = list(8, len(v))
		for _, s := range v {
			b = ggufText(b, s)
		}
		return b
	case []int:
		b = list(5, len(v))
		for _, n := range v {
			b = little.AppendUint32(b, uint32(n))
		}
		return b
	case []byte: // as it is
		return append(b, v...)
	}
	panic(fmt.Sprintf("no GGUF value %T", v))
}

// header is the file up to its data, unpadded, given the tensors' offsets.
func (g *ggufModel) header(offsets []uint64) []byte {
	b := little.AppendUint32([]byte(ggufMagic), 3)
	b = little.AppendUint64(b, uint64(len(g.tensors)))
	b = little.AppendUint64(b, uint64(len(g.values)))
	for _, kv := range g.values {
		b = ggufValue(ggufText(b, kv.key), kv.value)
	}
	for i, t := range g.tensors {
		b = little.AppendUint32(ggufText(b, t.name), uint32(len(t.shape)))
		for _, d := range slices.Backward(t.shape) {
			b = little.AppendUint64(b, uint64(d))
		}
		b = little.AppendUint64(little.AppendUint32(b, t.kind), offsets[i])
	}
	return b
}

func (g *ggufModel) bytes() []byte {
	align := max(g.align, 1)
	pad := func(b []byte) []byte { return append(b, make([]byte, (align-len(b)%align)%align)...) }
	var data []byte
	var offsets []uint64
	for _, t := range g.tensors {
		data = pad(data)
		offsets = append(offsets, uint64(len(data)))
		data = append(data, t.data...)
	}
	return append(pad(g.header(offsets)), data...)
}

// save writes the file as m.gguf to a new folder.
func save(t *testing.T, data []byte) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, "m.gguf")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

// ggufOf makes a GGUF file of a model that is open, as llama.cpp's converter does it for the architecture arch.
func ggufOf(b *Base, arch string) *ggufModel {
	a := b.Arch
	g := &ggufModel{align: 32}
	g.set("general.architecture", arch)
	g.set("general.name", "a tiny one")
	for key, v := range map[string]any{
		"embedding_length": a.Width, "feed_forward_length": a.MLP, "block_count": a.Layers, "context_length": a.Context,
		"attention.head_count": a.Heads, "attention.head_count_kv": a.KVHeads, "attention.key_length": a.HeadDim,
		"attention.value_length": a.HeadDim, "rope.dimension_count": a.HeadDim, "rope.freq_base": a.Theta,
		"attention.layer_norm_rms_epsilon": a.Eps, "vocab_size": a.Vocab, "attention.sliding_window": a.Window,
	} {
		g.set(arch+"."+key, v)
	}
	if len(b.EOS) > 0 {
		g.set("tokenizer.ggml.eos_token_id", int(b.EOS[0]))
	}
	w, layers, bias := b.Weights, b.Weights.Layers, [targets]bool{}
	for i, t := range layers[0].Bias {
		bias[i] = !t.None()
	}
	all := w.slots(a, bias)
	copy(w.Layers, layers)
	for _, s := range all {
		data := slices.Clone(s.dst.Mem.(kernels.Host))
		if arch == "llama" && s.heads > 0 {
			data = permute(data, s.shape[0], s.heads)
		}
		g.tensors = append(g.tensors, ggufTensor{s.gguf, s.shape, 0, data})
	}
	if a.Scaling != nil {
		plain, data := a, []byte(nil)
		plain.Scaling = nil
		for i, f := range plain.Frequencies() {
			data = little.AppendUint32(data, math.Float32bits(float32(f/a.Frequencies()[i])))
		}
		g.tensors = append(g.tensors, ggufTensor{"rope_freqs.weight", []int{a.HeadDim / 2}, 0, data})
	}
	return g
}

// permute is what llama.cpp does to q and k: reshape(heads, 2, dim/2, …).swapaxes(1, 2).
func permute(data []byte, rows, heads int) []byte {
	row, half := len(data)/rows, rows/heads/2
	var out []byte
	for h := range heads {
		for i := range half {
			for side := range 2 {
				at := ((h*2+side)*half + i) * row
				out = append(out, data[at:at+row]...)
			}
		}
	}
	return out
}
