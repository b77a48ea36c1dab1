package kernelstest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
)

// every is all types that a backend can hold.
var every = []kernels.Type{kernels.F32, kernels.F64, kernels.BF16, kernels.I32}

func testStorage(t *testing.T, b kernels.Backend) {
	t.Run("description", func(t *testing.T) {
		if name := b.Name(); name == "" || strings.ContainsAny(name, " \n") {
			t.Errorf("Name is %q, want a word to type", name)
		}
		if s := b.String(); s == "" || strings.Contains(s, "\n") {
			t.Errorf("String is %q, want one line", s)
		}
		types := [2]kernels.Type{b.Float(), b.Param()}
		if !slices.Contains([][2]kernels.Type{{kernels.F32, kernels.F32}, {kernels.F64, kernels.F64}, {kernels.BF16, kernels.F32}}, types) {
			t.Errorf("Float and Param are %v", types)
		}
	})
	for _, typ := range every {
		for _, n := range []int{1, 3, 65, 4099} {
			t.Run(fmt.Sprintf("%v of %d", typ, n), func(t *testing.T) { testMemory(t, b, typ, n) })
		}
	}
	t.Run("too much memory", func(t *testing.T) {
		var x kernels.Tensor
		err := errors.New("panic")
		if p, _ := caught(func() { x, err = b.Alloc(kernels.F64, 1<<29, 1<<29) }); p != nil {
			t.Fatalf("panic: %v", p)
		}
		if err == nil {
			b.Free(x)
			t.Fatal("2⁶¹ bytes were given")
		}
		if msg := err.Error(); !strings.ContainsAny(msg, "0123456789") {
			t.Errorf("%q does not say how much was asked for", msg)
		}
	})
	t.Run("no elements", func(t *testing.T) {
		x, err := b.Alloc(kernels.F32, 0, 3)
		if err != nil || x.None() || x.Len() != 0 {
			t.Fatalf("Alloc of nothing is %v, %v", x, err)
		}
		b.Zero(x)
		b.Free(x)
	})
	t.Run("Sync", func(t *testing.T) {
		if err := b.Sync(); err != nil {
			t.Error(err)
		}
	})
}

func testMemory(t *testing.T, b kernels.Backend, typ kernels.Type, n int) {
	values := make([]float64, n)
	for i := range values {
		values[i] = float64(1 + i%100)
	}
	host := encode(values, typ)
	zeros, ones := make([]float64, n), slices.Repeat([]float64{1}, n)
	d := newDevice(t, b)
	wants := func(what string, x kernels.Tensor, want []float64) {
		t.Helper()
		for i, got := range d.get(x) {
			if got != want[i] {
				t.Fatalf("%s: element %d is %v, want %v", what, i, got, want[i])
			}
		}
	}

	// Memory that was used before must come back as zeros.
	for range 3 {
		used, err := b.Alloc(typ, n)
		if err != nil {
			t.Fatal(err)
		}
		wants("Alloc", used, zeros)
		b.Write(used, host)
		b.Free(used)
	}
	x, y := d.put(typ, zeros, n), d.put(typ, ones, 1, n)
	b.Write(x, host)
	wants("Write", x, values)
	b.Copy(y, x)
	b.Zero(x)
	wants("Copy before a Zero of its source", y, values)
	wants("Zero", x, zeros)

	placed, err := b.Place(host)
	if err != nil {
		t.Fatal(err)
	}
	if placed.Type != typ || !slices.Equal(placed.Shape, host.Shape) {
		t.Errorf("Place of %v is %v", host, placed)
	}
	wants("Place", placed, values)
	b.Copy(x, placed)
	wants("Copy from a place", x, values)
	if n >= 3 {
		testParts(b, x, wants, values)
	}
}

// testParts moves elements [1, n-1) and leaves those beside them.
func testParts(b kernels.Backend, x kernels.Tensor, wants func(string, kernels.Tensor, []float64), values []float64) {
	n := len(values)
	b.Zero(x.View(1, n-2))
	want := make([]float64, n)
	want[0], want[n-1] = values[0], values[n-1]
	wants("Zero of a part", x, want)

	b.Write(x.View(1, n-2), encode(values[2:], x.Type))
	copy(want[1:], values[2:])
	want[n-1] = values[n-1]
	wants("Write of a part", x, want)
	wants("Read of a part", x.View(1, n-2), want[1:])

	b.Copy(x.View(0, 1), x.View(n-2, 1))
	want[0] = want[n-2]
	wants("Copy of a part", x, want)
}
