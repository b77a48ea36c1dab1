package checkpoints

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// exponent is what tells NaN and infinities of a type: that all bits of the exponent are ones. In a word that holds several
// elements, adding one to each element's exponent carries into the place of its sign, there and nowhere else, if the rest was
// masked away.
type exponent struct{ mask, one, sign uint64 }

var exponents = map[Type]exponent{
	BF16: {0x7f80_7f80_7f80_7f80, 0x0080_0080_0080_0080, 0x8000_8000_8000_8000},
	F16:  {0x7c00_7c00_7c00_7c00, 0x0400_0400_0400_0400, 0x8000_8000_8000_8000},
	F32:  {0x7f80_0000_7f80_0000, 0x0080_0000_0080_0000, 0x8000_0000_8000_0000},
	F64:  {0x7ff0_0000_0000_0000, 0x0010_0000_0000_0000, 0x8000_0000_0000_0000},
}

// carry has a one in the sign's place of each element of a word that is NaN or infinite.
func (e exponent) carry(word uint64) uint64 { return word&e.mask + e.one }

// firstNonFinite is the index of the first NaN or infinity, -1 where there is none.
// Types that are no floating-point type of this package have none.
func firstNonFinite(t Tensor) int {
	e, ok := exponents[t.Type]
	if !ok {
		return -1
	}
	if at := e.first(t.Data); at >= 0 {
		return at / t.Type.Size()
	}
	return -1
}

// first is a byte of the first element in data that is NaN or infinite, -1 where there is none. It runs as fast as memory is read.
func (e exponent) first(data []byte) int {
	const block = 64
	at := 0
	for ; at+block <= len(data); at += block {
		b := data[at : at+block : at+block]
		w0, w1 := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		w2, w3 := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
		w4, w5 := binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])
		w6, w7 := binary.LittleEndian.Uint64(b[48:]), binary.LittleEndian.Uint64(b[56:])
		carries := e.carry(w0) | e.carry(w1) | e.carry(w2) | e.carry(w3) | e.carry(w4) | e.carry(w5) | e.carry(w6) | e.carry(w7)
		if carries&e.sign != 0 {
			break
		}
	}
	for ; at < len(data); at += 8 {
		var word [8]byte // zeros, which are finite, after the last element
		copy(word[:], data[at:])
		if m := e.carry(binary.LittleEndian.Uint64(word[:])) & e.sign; m != 0 {
			return at + bits.TrailingZeros64(m)/8
		}
	}
	return -1
}

// finitePiece is the bytes that are checked at once: several to a core, so that one large tensor keeps all of them busy.
const finitePiece = 1 << 20

// checkFinite names the first NaN or infinity in a list of tensors. All cores look for it.
func checkFinite(tensors []Tensor) error {
	type piece struct{ tensor, from int }
	var pieces []piece
	for i, t := range tensors {
		for from := 0; from < len(t.Data); from += finitePiece {
			pieces = append(pieces, piece{i, from})
		}
	}
	found := make([]int, len(pieces)) // the element in its tensor
	inParallel(len(pieces), func(i int) {
		t := tensors[pieces[i].tensor]
		from := pieces[i].from
		t.Data = t.Data[from:min(from+finitePiece, len(t.Data))]
		if found[i] = firstNonFinite(t); found[i] >= 0 {
			found[i] += from / t.Type.Size()
		}
	})
	for i, at := range found {
		if at >= 0 {
			return nonFinite(tensors[pieces[i].tensor], at)
		}
	}
	return nil
}

func nonFinite(t Tensor, i int) error {
	v := floatDecoders[t.Type](t.Data[i*t.Type.Size():])
	return fmt.Errorf("tensor %q is %v at element %d %v", t.Name, v, i, coordinates(t.Shape, i))
}

// coordinates turns a row-major offset into one index a dimension.
func coordinates(shape []int, offset int) []int {
	at := make([]int, len(shape))
	for d := len(shape) - 1; d >= 0; d-- {
		at[d], offset = offset%shape[d], offset/shape[d]
	}
	return at
}
