package cuda

import "loratrain/kernels"

// Round is dst = src, each element the nearest that dst's type has. dst, src of one length, each F32, BF16 or F64.
func (b *Backend) Round(dst, src kernels.Tensor) {
	const op = "Round"
	needWeight(op, "dst", dst, dst.Shape...)
	needWeight(op, "src", src, src.Shape...)
	n := src.Len()
	if dst.Len() != n {
		fail(op, "dst is %v, src %v: expected one length", dst, src)
	}
	if dst.Type == src.Type {
		b.dev.Copy(at(dst), at(src), src.Bytes())
		return
	}
	per := 8
	if dst.Type == kernels.F64 || src.Type == kernels.F64 {
		per = 1
	}
	b.dev.Launch("round"+suffix(dst.Type, src.Type), threads1(n, per), at(dst), at(src), int64(n))
}
