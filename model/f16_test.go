package model

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/x448/float16"

	"loratrain/internal/testgpu"
	"loratrain/kernels"
)

// everyF16 is a tensor of all numbers that F16 has, some more than once: several pieces and a part of one.
func everyF16(rows, columns int) (kernels.Tensor, []float32) {
	var data f16
	want := make([]float32, rows*columns)
	for i := range want {
		data = binary.LittleEndian.AppendUint16(data, uint16(i))
		want[i] = float16.Frombits(uint16(i)).Float32()
	}
	return kernels.Tensor{Type: kernels.F32, Shape: []int{rows, columns}, Mem: data}, want
}

// TestF16 holds what becomes of F16 against its numbers as F32, bit by bit: whole, in pieces, and as bf16 on a device, where two
// matrices share the memory that they are converted in.
func TestF16(t *testing.T) {
	x, want := everyF16(1021, 521)
	wide := kernels.FromSlice(want, x.Shape...)
	whole := wide.Mem.(kernels.Host)
	if got := widened(x); got.Type != kernels.F32 || !bytes.Equal(got.Mem.(kernels.Host), whole) {
		t.Error("widened, it has other bits")
	}
	n := 0
	for piece := range pieces(x) {
		if !bytes.Equal(piece, whole[n:n+len(piece)]) {
			t.Fatalf("the piece from byte %d on has other bits", n)
		}
		n += len(piece)
	}
	if n != len(whole) {
		t.Errorf("the pieces have %d bytes, want %d", n, len(whole))
	}
	if got := storedBytes(x); got != len(whole)/2 {
		t.Errorf("it takes %d bytes, want %d", got, len(whole)/2)
	}
	if rows := (kernels.Tensor{Type: kernels.F32, Shape: []int{2}, Mem: x.Mem.Slice(8, 16)}); !bytes.Equal(widened(rows).Mem.(kernels.Host), whole[8:16]) {
		t.Error("a part of it has other bits")
	}
	for _, gpu := range testgpu.All() {
		t.Run(gpu.Name, func(t *testing.T) {
			b := gpu.Open(t, false)
			to := placer{b: b}
			other, _ := everyF16(3, 5)
			first, err := to.matrix(x)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := to.matrix(other); err != nil {
				t.Fatal(err)
			}
			host := kernels.NewHost(kernels.BF16, x.Shape...)
			b.Read(host, first)
			if err := b.Sync(); err != nil {
				t.Fatal(err)
			}
			for i, got := range kernels.Slice[kernels.BFloat16](host) {
				if got != kernels.ToBFloat16(want[i]) {
					t.Fatalf("element %d, %g, is placed as %g", i, want[i], got.Float32())
				}
			}
		})
	}
}
