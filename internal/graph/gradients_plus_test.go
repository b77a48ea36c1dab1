package graph

import (
	"slices"
	"strings"
	"testing"
)

// plusRows is operations that add: forward an operand, backward the gradient that another use of an input has had.
func plusRows() []gradientRow {
	const rows, width, out, experts, rank = 4, 5, 5, 3, 2
	h, z, plus := activation("h", rows, width), activation("z", rows, width), activation("plus", rows, out)
	gates := activation("gates", rows, experts)
	bank := []leaf{parameter("A", width, experts*rank+1), parameter("B", experts*rank+1, out)}
	layer := func(p *pass, h, z, plus V, weight string) V {
		return SwitchLinear(p, h, z, p.fixed(weight, out, width), p.fixed(weight+" bias", out), plus, Bank{
			A: p.leaf["A"], B: p.leaf["B"], Gates: p.leaf["gates"], Rank: rank, Scale: 1.5,
		})
	}
	linear := func(p *pass, h, plus V, weight string) V {
		return Linear(p, h, p.fixed(weight, width, width), V{}, plus)
	}
	return []gradientRow{
		{"Linear with plus", []leaf{h, plus}, func(p *pass) V { return linear(p, p.leaf["h"], p.leaf["plus"], "w") }},
		{"Linear with bias and plus", []leaf{h, plus}, func(p *pass) V {
			return Linear(p, p.leaf["h"], p.fixed("w", out, width), p.fixed("bias", out), p.leaf["plus"])
		}},
		{"Linear of its plus", []leaf{h}, func(p *pass) V { return linear(p, p.leaf["h"], p.leaf["h"], "w") }},
		{"three Linear of one value", []leaf{h}, func(p *pass) V {
			h := p.leaf["h"]
			return Sum(p, linear(p, h, V{}, "first"), linear(p, h, V{}, "second"), linear(p, h, V{}, "third"))
		}},
		{"a chain of plus", []leaf{h, z}, func(p *pass) V {
			first := linear(p, p.leaf["h"], p.leaf["z"], "first")
			second := linear(p, p.leaf["z"], first, "second")
			return linear(p, first, second, "third")
		}},
		{"Linear of one value, and a use that cannot add", []leaf{h}, func(p *pass) V {
			h := p.leaf["h"]
			y := linear(p, h, V{}, "first")
			scaled := Scale(p, h, p.numbers("factor", []float64{-0.5}, 1))
			return linear(p, h, Sum(p, y, scaled), "second")
		}},
		{"RMSNorm beside its input", []leaf{h}, func(p *pass) V {
			h := p.leaf["h"]
			return linear(p, RMSNorm(p, h, p.fixed("norm", width), 1e-3), h, "w")
		}},
		{"two RMSNorm of one value", []leaf{h}, func(p *pass) V {
			h := p.leaf["h"]
			return SwiGLU(p, RMSNorm(p, h, p.fixed("first", width), 1e-3), RMSNorm(p, h, p.fixed("second", width), 1e-3))
		}},
		{"SwitchLinear with plus", append(slices.Clone(bank), h, gates, plus), func(p *pass) V {
			return layer(p, p.leaf["h"], p.leaf["h"], p.leaf["plus"], "w")
		}},
		{"SwitchLinear of its plus", append(slices.Clone(bank), h, gates), func(p *pass) V {
			return layer(p, p.leaf["h"], p.leaf["h"], p.leaf["h"], "w")
		}},
		{"SwitchLinear with plus, another adapter input", append(slices.Clone(bank), h, z, gates, plus), func(p *pass) V {
			return layer(p, p.leaf["h"], p.leaf["z"], p.leaf["plus"], "w")
		}},
		{"SwitchLinear whose plus is its adapter input", append(slices.Clone(bank), h, z, gates), func(p *pass) V {
			return layer(p, p.leaf["h"], p.leaf["z"], p.leaf["z"], "w")
		}},
		{"SwitchLinear of one value, with dropout and plus", append(slices.Clone(bank), h, gates), func(p *pass) V {
			h, key := p.leaf["h"], p.ints("key", []int32{1, 2}, 2)
			first := layer(p, h, Dropout(p, h, key, 3, 0.3), h, "first")
			return layer(p, h, Dropout(p, h, key, 4, 0.3), first, "second")
		}},
		{"a block of two residuals", append(slices.Clone(bank), h, gates), func(p *pass) V {
			h := p.leaf["h"]
			n := RMSNorm(p, h, p.fixed("first norm", width), 1e-3)
			q, k := layer(p, n, n, V{}, "q"), layer(p, n, n, V{}, "k")
			v := linear(p, n, V{}, "v")
			mid := layer(p, SwiGLU(p, q, k), v, h, "o")
			n = RMSNorm(p, mid, p.fixed("second norm", width), 1e-3)
			return layer(p, n, n, mid, "down")
		}},
	}
}

// operations is the names of what a program runs.
func (r recorded) operations(prefix string) []string {
	var names []string
	for _, n := range r.program.order {
		if strings.HasPrefix(n.Name, prefix) {
			names = append(names, n.Name)
		}
	}
	return names
}

// TestGradientsAreAddedWhereTheyAreMade counts the sums of programs, of which only those are left that the row has itself or that
// two uses need which cannot add.
func TestGradientsAreAddedWhereTheyAreMade(t *testing.T) {
	sums := map[string][]string{
		"Linear with plus": nil, "Linear with bias and plus": nil, "RMSNorm beside its input": nil,
		"two RMSNorm of one value": nil, "SwitchLinear with plus": nil, "SwitchLinear with plus, another adapter input": nil,
		"three Linear of one value":                      {"Sum of 3"},
		"a chain of plus":                                {"Sum of 2", "Sum of 2"}, // what passes through comes last
		"Linear of one value, and a use that cannot add": {"Sum of 2", "Sum of 2"},
	}
	b := newBackend(t, true)
	for _, row := range plusRows() {
		want, ok := sums[row.name]
		if !ok {
			continue
		}
		if got := row.record(t, b, row.names()...).operations("Sum"); !slices.Equal(got, want) {
			t.Errorf("%s: the program has %q, want %q", row.name, got, want)
		}
	}
}

// TestTakenGradientIsPartOfTheNext follows the gradient of a value that is used thrice: each use adds the one before.
func TestTakenGradientIsPartOfTheNext(t *testing.T) {
	for _, row := range plusRows() {
		if row.name != "three Linear of one value" {
			continue
		}
		var chain []*node
		for _, n := range row.record(t, newBackend(t, true), "h").program.order {
			if n.Name == "LinearGrad" {
				chain = append(chain, n)
			}
		}
		if len(chain) != 3 {
			t.Fatalf("%d gradients, want 3", len(chain))
		}
		for i, n := range chain {
			switch plus := n.in[2]; {
			case i == 0 && !plus.None():
				t.Error("the first gradient adds another")
			case i > 0 && plus.node != chain[i-1].out[0].node:
				t.Errorf("gradient %d does not add the one before", i)
			}
		}
	}
}

// TestGradientsThatReadOneInputFollowEachOther wants the gradients of A of layers with a common input side by side.
func TestGradientsThatReadOneInputFollowEachOther(t *testing.T) {
	for _, row := range plusRows() {
		if row.name != "a block of two residuals" {
			continue
		}
		places := map[string][]int{} // of a gradient of A, by the input that it reads
		for i, n := range row.record(t, newBackend(t, true), row.names()...).program.order {
			if n.Name == "SwitchGradA" {
				name := n.in[0].node.String()
				places[name] = append(places[name], i)
			}
		}
		shared := 0
		for input, at := range places {
			for k := 1; k < len(at); k++ {
				shared++
				if at[k] != at[k-1]+1 {
					t.Errorf("gradients that read %s are operations %v", input, at)
				}
			}
		}
		if len(places) != 3 || shared != 1 {
			t.Errorf("%d inputs are read, one of them twice: %v", len(places), places)
		}
	}
}

// TestTakenGradientLeavesMemory measures a value with many uses: as many gradients arrive, and two at a time are in memory.
func TestTakenGradientLeavesMemory(t *testing.T) {
	const uses, rows, width = 20, 50, 8
	row := gradientRow{"many uses", []leaf{activation("h", rows, width)}, func(p *pass) V {
		y := p.leaf["h"]
		for range uses {
			y = Linear(p, p.leaf["h"], p.fixed("w", width, width), V{}, y)
		}
		return y
	}}
	rec := row.record(t, newBackend(t, true), "h")
	mustRun(t, rec.program)
	if result := 8 * rows * width; rec.program.Bytes() > 6*result {
		t.Errorf("%d uses of one value take %d bytes, want 6 results of %d at most", uses, rec.program.Bytes(), result)
	}
}
