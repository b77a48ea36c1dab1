package model

import (
	"fmt"

	"loratrain/router"
)

// Mode is how a decoder applies experts.
type Mode string

// The modes. Fused applies the chosen experts beside the base's weights, looked up in the routing table. Merged adds them to
// a copy of the weights before each token, from the pristine ones, and then runs the bare backbone (LoRA-Switch).
// Layerwise computes the routers and applies each layer's experts by itself, the cost that the other two remove.
const (
	Fused     Mode = "fused"
	Merged    Mode = "merged"
	Layerwise Mode = "layerwise"
)

// Modes lists those that an adapter of a granularity can be decoded in, the fastest first.
func Modes(g router.Granularity) []Mode {
	switch g {
	case router.Token, router.None:
		return []Mode{Fused, Merged, Layerwise}
	default:
		return []Mode{Layerwise}
	}
}

// ParseMode is the Mode of that name, if an adapter of that granularity has it.
func ParseMode(name string, g router.Granularity) (Mode, error) {
	for _, m := range Modes(g) {
		if string(m) == name {
			return m, nil
		}
	}
	for _, m := range Modes(router.Token) {
		if string(m) == name {
			return "", fmt.Errorf("mode %s needs one decision per token, this adapter decides per %s\nuse --mode %s", name, g, Modes(g)[0])
		}
	}
	return "", fmt.Errorf("unknown mode %q\nuse one of %v", name, Modes(router.Token))
}
