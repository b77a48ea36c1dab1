package model

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/x448/float16"

	"loratrain/kernels"
)

// quantised describes a storage type by what one element of a block is worth, written down from the layouts in ggml's
// ggml-common.h, element by element.
type quantised struct {
	kind        uint32
	block, size int   // elements and bytes of a block
	halves      []int // where its F16 numbers lie
	value       func(b []byte, i int) float64
}

func half(b []byte, at int) float64 {
	return float64(float16.Frombits(little.Uint16(b[at:])).Float32())
}

func bit(b []byte, i int) int { return int(b[i/8]>>(i%8)) & 1 }

// nibble is element i of 32, of which the first 16 are in the low halves of 16 bytes.
func nibble(b []byte, i int) int { return int(b[i%16]>>(4*(i/16))) & 15 }

// two is element i of 256 of two bits: each 32 bytes hold 128 elements.
func two(b []byte, i int) int { return int(b[i/128*32+i%32]>>(i%128/32*2)) & 3 }

// four is element i of 256 of four bits: each 32 bytes hold 64 elements.
func four(b []byte, i int) int { return int(b[i/64*32+i%32]>>(i%64/32*4)) & 15 }

// scaleMin is scale and minimum s of 8, six bits each, in 12 bytes.
func scaleMin(b []byte, s int) (scale, least float64) {
	if s < 4 {
		return float64(b[s] & 63), float64(b[s+4] & 63)
	}
	return float64(b[s+4]&15 | b[s-4]>>6<<4), float64(b[s+4]>>4 | b[s]>>6<<4)
}

var quantisedTypes = map[string]quantised{
	"Q4_0": {2, 32, 18, []int{0}, func(b []byte, i int) float64 { return half(b, 0) * float64(nibble(b[2:], i)-8) }},
	"Q4_1": {3, 32, 20, []int{0, 2}, func(b []byte, i int) float64 { return half(b, 0)*float64(nibble(b[4:], i)) + half(b, 2) }},
	"Q5_0": {6, 32, 22, []int{0}, func(b []byte, i int) float64 {
		return half(b, 0) * float64(nibble(b[6:], i)+16*bit(b[2:], i)-16)
	}},
	"Q5_1": {7, 32, 24, []int{0, 2}, func(b []byte, i int) float64 {
		return half(b, 0)*float64(nibble(b[8:], i)+16*bit(b[4:], i)) + half(b, 2)
	}},
	"Q8_0": {8, 32, 34, []int{0}, func(b []byte, i int) float64 { return half(b, 0) * float64(int8(b[2+i])) }},
	"Q2_K": {10, 256, 84, []int{80, 82}, func(b []byte, i int) float64 {
		s := b[i/16]
		return half(b, 80)*float64(s&15)*float64(two(b[16:], i)) - half(b, 82)*float64(s>>4)
	}},
	"Q3_K": {11, 256, 110, []int{108}, func(b []byte, i int) float64 {
		s, scales := i/16, b[96:]
		scale := int(scales[s%8]>>(s/8*4)&15 | scales[8+s%4]>>(s/4*2)&3<<4)
		high := int(b[i%32]>>(i/32)) & 1
		return half(b, 108) * float64(scale-32) * float64(two(b[32:], i)+4*high-4)
	}},
	"Q4_K": {12, 256, 144, []int{0, 2}, func(b []byte, i int) float64 {
		scale, least := scaleMin(b[4:], i/32)
		return half(b, 0)*scale*float64(four(b[16:], i)) - half(b, 2)*least
	}},
	"Q5_K": {13, 256, 176, []int{0, 2}, func(b []byte, i int) float64 {
		scale, least := scaleMin(b[4:], i/32)
		high := int(b[16+i%32]>>(i/32)) & 1
		return half(b, 0)*scale*float64(four(b[48:], i)+16*high) - half(b, 2)*least
	}},
	"Q6_K": {14, 256, 210, []int{208}, func(b []byte, i int) float64 {
		low := int(b[i/128*64+i%64]>>(i%128/64*4)) & 15
		return half(b, 208) * float64(int8(b[192+i/16])) * float64(low+16*two(b[128:], i)-32)
	}},
	"F16":  {1, 1, 2, []int{0}, func(b []byte, _ int) float64 { return half(b, 0) }},
	"BF16": {30, 1, 2, nil, func(b []byte, _ int) float64 { return float64(kernels.BFloat16(little.Uint16(b)).Float32()) }},
	"F32":  {0, 1, 4, nil, func(b []byte, _ int) float64 { return float64(math.Float32frombits(little.Uint32(b))) }},
}

// wide is a model whose rows are long enough for every type, all zeros.
func wide() *ggufModel {
	b := &Base{Arch: Arch{
		Width: 256, MLP: 256, Layers: 1, Heads: 4, KVHeads: 4, HeadDim: 64, Vocab: 2, Context: 16, Theta: 1e4, Eps: 1e-5, Tied: true,
	}}
	for _, s := range b.Weights.slots(b.Arch, [targets]bool{}) {
		*s.dst = kernels.NewHost(kernels.F32, s.shape...)
	}
	return ggufOf(b, "llama")
}

// Every type that can be read is read right, in the layers whose rows are permuted too.
func TestGGUFTypes(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for name, q := range quantisedTypes {
		g := wide()
		n := 256 * 256
		data := make([]byte, n/q.block*q.size)
		for at := 0; at < len(data); at += q.size {
			b := data[at : at+q.size]
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			for _, h := range q.halves {
				little.PutUint16(b[h:], float16.Fromfloat32(random.Float32()-0.5).Bits())
			}
			if q.halves == nil {
				b[q.size-1] = b[q.size-1]&0x80 | 0x3f // no infinities
			}
		}
		for _, tensor := range []string{"blk.0.ffn_gate.weight", "blk.0.attn_q.weight"} {
			g.tensor(tensor).kind, g.tensor(tensor).data = q.kind, data
		}
		path, _ := save(t, g.bytes())
		b := mustOpen(t, path)
		w := b.Weights.Layers[0].W
		gate, query := floats(widened(w[GateProj])), floats(widened(w[QProj]))
		for i := range n {
			want := q.value(data[i/q.block*q.size:], i%q.block)
			row, column := i/256, i%256
			unpermuted := row/64*64 + row%2*32 + row%64/2
			for tensor, got := range map[string]float32{"gate": gate[i], "q": query[unpermuted*256+column]} {
				// Minuends reach 0.5·63·31 and round in float32.
				if math.Abs(float64(got)-want) > 1e-6*math.Abs(want)+2e-4 {
					t.Fatalf("%s: %s element %d is %v, want %v", name, tensor, i, got, want)
				}
			}
		}
	}
}
