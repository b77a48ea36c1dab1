package model

import (
	"fmt"
	"strings"

	"loratrain/kernels"
)

// Enough refuses what a backend says that it has no memory for, in one line: only the caller knows how to do with less.
func Enough(b kernels.Backend, what string, need int) error {
	limited, ok := b.(kernels.Limited)
	if !ok {
		return nil
	}
	if free, known := limited.FreeMemory(); known && free < need {
		return fmt.Errorf("%s needs %s of memory, and %s are free", what, inBytes(need), inBytes(free))
	}
	return nil
}

func inBytes(n int) string {
	if n < 1e9 { // three digits tell what is wanted from what is free
		return fmt.Sprintf("%.3f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// headline is an error without its advice, the lines after the first.
type headline struct{ error }

func (h headline) Error() string {
	first, _, _ := strings.Cut(h.error.Error(), "\n")
	return first
}

func (h headline) Unwrap() error { return h.error }
