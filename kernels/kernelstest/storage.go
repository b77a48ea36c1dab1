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
	testFetch(t, b, x, values)
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

// testFetch changes x, which holds values, between and after fetches that nobody has waited for yet, and leaves it as it was.
func testFetch(t *testing.T, b kernels.Backend, x kernels.Tensor, values []float64) {
	typ, n := x.Type, len(values)
	twos := encode(slices.Repeat([]float64{2}, n), typ)
	kept := newDevice(t, b).put(typ, values, n)
	type fetched struct {
		what string
		host kernels.Tensor
		want []float64
		wait func()
	}
	var all []*fetched
	fetch := func(what string, part kernels.Tensor, want []float64) {
		// The middle of a host buffer of sevens.
		f := &fetched{what: what, host: encode(slices.Repeat([]float64{7}, part.Len()+2), typ), want: slices.Concat([]float64{7}, want, []float64{7})}
		f.wait = b.Fetch(f.host.View(1, part.Len()), part)
		all = append(all, f)
	}
	fetch("what was there", x, values)
	b.Zero(x)
	fetch("after Zero", x, make([]float64, n))
	b.Write(x, twos)
	fetch("after Write", x, decode(twos))
	b.Copy(x, kept)
	fetch("after Copy", x, values)
	fetch("of a part", x.View(n/2, n-n/2), values[n/2:])
	for range 20 {
		b.Zero(x)
		b.Copy(x, kept)
	}
	b.Zero(x)
	slices.Reverse(all)
	for i, f := range all {
		if i == 2 {
			if err := b.Sync(); err != nil {
				t.Fatalf("Sync: %v", err)
			}
		}
		f.wait()
		for j, got := range decode(f.host) {
			if got != f.want[j] {
				t.Errorf("Fetch %s: host[%d] is %v, want %v", f.what, j, got, f.want[j])
				break
			}
		}
	}
	b.Copy(x, kept)
}
