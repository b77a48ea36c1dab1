package tokenizer

import "strings"

// The byte alphabet of GPT-2 (openai/gpt-2, encoder.py, bytes_to_unicode)
// gives each byte a printable character: itself where it is printable in
// Latin-1, else the next free one from U+0100 on. A space becomes Ġ.
var (
	byteToChar [256]rune
	charToByte = map[rune]byte{}
)

func init() {
	next := rune(256)
	for b := range 256 {
		c := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
			c = next
			next++
		}
		byteToChar[b] = c
		charToByte[c] = byte(b)
	}
}

func toByteAlphabet(s string) string {
	var b strings.Builder
	b.Grow(len(s) + len(s)/4)
	for i := range len(s) {
		b.WriteRune(byteToChar[s[i]])
	}
	return b.String()
}

// fromByteAlphabet appends the bytes that s spells; a string with any
// character outside the alphabet spells its own bytes.
func fromByteAlphabet(dst []byte, s string) []byte {
	start := len(dst)
	for _, r := range s {
		b, ok := charToByte[r]
		if !ok {
			return append(dst[:start], s...)
		}
		dst = append(dst, b)
	}
	return dst
}
