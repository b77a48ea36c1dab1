package kernelstest

import "loratrain/kernels"

var transposeFlaws = []flaw{
	{"Transpose copies", "Transpose", `7x3(?s:.*)y\[0 1\] has the bytes`, func(n naive) kernels.Backend { return transposesNothing{n} }},
	{"Transpose leaves parts of tiles", "Transpose", `33x65(?s:.*)y\[0 32\] has the bytes`, func(n naive) kernels.Backend { return wholeTiles{n} }},
	{"Transpose quiets NaN", "Transpose", `f32_of_1x1(?s:.*)y\[0 0\] has the bytes 0100c07f, want 0100807f`, func(n naive) kernels.Backend { return quietsNaN{n} }},
	{"Transpose takes any shape", "Transpose", `no panic though y is f32\[2 3\]`, func(n naive) kernels.Backend { return anyShape{n} }},
	{"Transpose works in place", "Transpose", `x\[.*\]: an input was modified`, func(n naive) kernels.Backend { return transposesInput{n} }},
}

type transposesNothing struct{ naive }

func (b transposesNothing) Transpose(y, x kernels.Tensor) {
	b.naive.Transpose(y, x)
	b.Copy(y, x)
}

// wholeTiles leaves what is beside the last whole tile of 32, unless there is none at all.
type wholeTiles struct{ naive }

func (b wholeTiles) Transpose(y, x kernels.Tensor) {
	before := append([]byte(nil), hostBytes(y)...)
	b.naive.Transpose(y, x)
	rows, cols, size := x.Shape[0], x.Shape[1], x.Type.Size()
	if rows < 32 || cols < 32 {
		return
	}
	for i := range rows * cols {
		if i/rows >= cols/32*32 || i%rows >= rows/32*32 {
			copy(hostBytes(y)[i*size:(i+1)*size], before[i*size:])
		}
	}
}

type quietsNaN struct{ naive }

func (b quietsNaN) Transpose(y, x kernels.Tensor) {
	b.naive.Transpose(y, x)
	if y.Type == kernels.F32 {
		for i, v := range kernels.Slice[float32](y) {
			if v != v {
				hostBytes(y)[4*i+2] |= 0x40
			}
		}
	}
}

type anyShape struct{ naive }

func (b anyShape) Transpose(y, x kernels.Tensor) {
	if len(x.Shape) == 2 && y.Len() == x.Len() {
		y = y.Reshape(x.Shape[1], x.Shape[0])
	}
	b.naive.Transpose(y, x)
}

type transposesInput struct{ naive }

func (b transposesInput) Transpose(y, x kernels.Tensor) {
	b.naive.Transpose(y, x)
	b.Copy(x, y)
}
