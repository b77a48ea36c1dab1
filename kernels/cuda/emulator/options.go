package emulator

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// Order is how the threads of a block, and the blocks, take turns. Any other number than the named ones is the seed of a
// random order.
type Order uint64

// The lowest thread first, or the highest; or the lowest, but the last block's first warp falls behind the rest of its block and the other blocks
// wherever some warps meet.
const (
	Forward Order = iota
	Backward
	Late
)

// Options says what to run and how. The zero Options is the kernels of package cuda, in the order that LORA_EMULATOR_ORDER
// names (forward, backward, late or a seed), or else forward.
type Options struct {
	Sources string // folder of the .cu files, or empty
	Order   Order
	// Hopper says that the device is a Hopper card, of as many multiprocessors as blocks run at a time, and has those of the kernels for Hopper alone
	// that need neither wgmma nor clusters.
	Hopper bool
}

// orderVariable overrides Options.Order.
const orderVariable = "LORA_EMULATOR_ORDER"

func (o Options) order() (Order, error) {
	switch s := os.Getenv(orderVariable); s {
	case "":
		return o.Order, nil
	case "forward":
		return Forward, nil
	case "backward":
		return Backward, nil
	case "late":
		return Late, nil
	default:
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s is %q\nset it to forward, backward, late or a number", orderVariable, s)
		}
		return Order(n), nil
	}
}

// ForTest is Open, or skips the test where the emulator cannot be had, unless LORA_EMULATOR is "require".
func ForTest(t testing.TB, o Options) *Device {
	t.Helper()
	d, err := Open(o)
	switch {
	case err == nil:
		return d
	case os.Getenv("LORA_EMULATOR") == "require":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return nil
}
