package cuda

import "loratrain/kernels"

// matmulTile is the rows and columns that a block of matmul.cu computes.
const matmulTile = 64

// operand is a factor of matmul.cu's product.
type operand struct {
	at         Address
	stride     int64
	transposed int32
}

func operandOf(m Matrix) operand {
	x := operand{at: m.At, stride: int64(m.Stride)}
	if m.Transposed {
		x.transposed = 1
	}
	return x
}

// product queues C ← Alpha·A·B + Beta·C at any alignment. C is not transposed. The device does all products but those of bf16 in
// rows that it could not read 16 bytes at a time: odd sizes and addresses.
func (b *Backend) product(p Product) {
	if p.A.Type == kernels.F32 || inSixteens(p.A) && inSixteens(p.B) && inSixteens(p.C) {
		b.dev.Multiply(p)
		return
	}
	rows, depth := p.A.shape()
	_, cols := p.B.shape()
	l := Launch{Grid: [3]int{ceil(cols, matmulTile), ceil(rows, matmulTile)}, Block: [3]int{256}}
	b.dev.Launch("matmul"+suffix(p.C.Type), l,
		p.C.At, int64(p.C.Stride), operandOf(p.A), operandOf(p.B), int32(rows), int32(cols), int32(depth), p.Alpha, p.Beta)
}

// shape is the rows and columns of what m stands for.
func (m Matrix) shape() (rows, cols int) {
	if m.Transposed {
		return m.Cols, m.Rows
	}
	return m.Rows, m.Cols
}

// inSixteens says that the rows of m start at multiples of 16 bytes.
func inSixteens(m Matrix) bool { return m.At%16 == 0 && m.Stride*m.Type.Size()%16 == 0 }
