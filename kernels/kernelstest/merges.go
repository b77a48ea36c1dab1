package kernelstest

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"testing"

	"loratrain/kernels"
)

// merging is the operands of a Merge: four for each layer, and what is merged.
type merging struct {
	c               *call
	experts, rank   int
	src, typ        kernels.Type
	dst, from, a, b []*operand

	id, weight *operand
	ids        []int32
}

func (m *merging) add(out, width int) {
	c, layer := m.c, len(m.dst)
	named := func(name string) string { return fmt.Sprintf("layers[%d].%s", layer, name) }
	m.dst = append(m.dst, c.out(named("Dst"), c.b.Float(), out, width))
	m.from = append(m.from, c.weight(named("Src"), m.src, c.normal(out*width), out, width))
	m.a = append(m.a, c.weight(named("A"), m.typ, c.normal(m.experts*m.rank*width), m.experts, m.rank, width))
	m.b = append(m.b, c.weight(named("B"), m.typ, c.normal(m.experts*m.rank*out), m.experts, m.rank, out))
}

// choose makes the operands that say what is merged.
func (m *merging) choose(ids []int32, weights []float64) {
	m.ids, m.id = ids, m.c.ids("ids", ids, len(ids))
	m.weight = m.c.in("weights", m.c.b.Param(), weights, len(weights))
}

func (m *merging) layers() []kernels.Merge {
	var layers []kernels.Merge
	for i := range m.dst {
		layers = append(layers, kernels.Merge{Dst: m.dst[i].tensor(), Src: m.from[i].tensor(), A: m.a[i].tensor(), B: m.b[i].tensor()})
	}
	return layers
}

// prepared is the layers as a backend takes them.
func (m *merging) prepared() kernels.Merging {
	m.c.t.Helper()
	p, err := m.c.b.PrepareMerge(m.layers())
	if err != nil {
		m.c.t.Fatalf("PrepareMerge: %v", err)
	}
	return p
}

const mergeScale = 2

// merge merges into layers that are prepared for it.
func (m *merging) merge(force *operand) {
	p := m.prepared()
	defer p.Close()
	m.c.b.Merge(p, m.id.tensor(), m.weight.tensor(), force.tensor(), mergeScale)
}

// check compares every dst with the reference.
func (m *merging) check() {
	m.c.t.Helper()
	for i := range m.dst {
		m.c.want(m.dst[i], merge(m.from[i].matrix(), m.a[i].matrix(), m.b[i].matrix(), m.rank, m.ids, m.weight.matrix().row(0), mergeScale))
	}
}

// force is what it is when a choice is in force.
func force(ids []int32, weights []number) []int32 {
	f := slices.Clone(ids)
	for _, w := range weights {
		f = append(f, int32(math.Float32bits(float32(w.v))))
	}
	return f
}

func testMerge(t *testing.T, b kernels.Backend) {
	t.Run("shapes", func(t *testing.T) { testMergeShapes(t, b) })
	t.Run("force", func(t *testing.T) { testMergeForce(t, b) })
	t.Run("again", func(t *testing.T) { testMergeAgain(t, b) })
	t.Run("contradictions", func(t *testing.T) {
		c := newCall(t, b)
		m := merging{c: c, experts: 3, rank: 2, src: b.Float(), typ: b.Float()}
		m.add(5, 3)
		m.choose([]int32{0, 2}, []float64{1, 1})
		f := c.adds("force", kernels.I32, []float64{-1, -1, -1, -1}, 4)
		c.contradict(func() { m.merge(f) })
	})
}

func testMergeShapes(t *testing.T, b kernels.Backend) {
	f, zero := b.Float(), math.Copysign(0, -1)
	several := [][2]int{{33, 17}, {1, 1}, {65, 129}, {7, 1025}}
	even := [][2]int{{40, 72}, {1, 8}, {130, 136}, {17, 584}}
	for _, row := range []struct {
		name          string
		src, typ      kernels.Type
		experts, rank int
		ids           []int32
		weights       []float64
		layers        [][2]int
	}{
		{"one layer", f, f, 4, 3, []int32{2, 0}, []float64{0.75, 0.25}, several[:1]},
		{"layers of several shapes", f, f, 8, 8, []int32{7, 3}, []float64{0.75, 0.25}, several},
		{"an expert twice", f, f, 4, 3, []int32{1, 1}, []float64{0.5, 0.5}, several[:2]},
		{"gate underflows", f, f, 4, 3, []int32{1, 2}, []float64{1, 0}, several[:2]},
		{"gate is minus zero", f, f, 4, 3, []int32{1, 2}, []float64{zero, 1}, several[:2]},
		{"one expert", f, f, 1, 5, []int32{0}, []float64{1}, several[:2]},
		{"three experts", f, f, 4, 2, []int32{3, 0, 1}, []float64{0.5, 0.3, 0.2}, several[:2]},
		{"from f32 with bf16", kernels.F32, kernels.BF16, 4, 3, []int32{2, 0}, []float64{0.75, 0.25}, several[:2]},
		{"from bf16 with f32", kernels.BF16, kernels.F32, 4, 3, []int32{2, 0}, []float64{0.75, 0.25}, several[:2]},
		{"from f64 with f64", kernels.F64, kernels.F64, 4, 3, []int32{2, 0}, []float64{0.75, 0.25}, several[:2]},

		{"rank 1", f, f, 8, 1, []int32{7, 3}, []float64{0.75, 0.25}, even},
		{"rank 8", f, f, 8, 8, []int32{7, 3}, []float64{0.75, 0.25}, even},
		{"rank 13", f, f, 4, 13, []int32{0, 3}, []float64{0.75, 0.25}, even[:3]},
		{"rank 23", f, f, 4, 23, []int32{3, 1}, []float64{0.75, 0.25}, even[:3]},
		{"rank 64", f, f, 3, 64, []int32{2, 0}, []float64{0.75, 0.25}, even[2:]},
		{"rank 65", f, f, 2, 65, []int32{1, 0}, []float64{0.75, 0.25}, even[:2]},
		{"rank 128", f, f, 1, 128, []int32{0}, []float64{1}, even[:3]},
		{"64 experts", f, f, 64, 2, []int32{63, 62}, []float64{0.75, 0.25}, even[:2]},
		{"an even expert twice", f, f, 4, 8, []int32{1, 1}, []float64{0.5, 0.5}, even[:2]},
		{"an even gate underflows", f, f, 4, 8, []int32{1, 2}, []float64{1, zero}, even[:2]},
		{"a shape is odd", f, f, 4, 8, []int32{2, 1}, []float64{0.75, 0.25}, [][2]int{{40, 72}, {9, 68}}},
		{"long rows", f, f, 2, 4, []int32{1, 0}, []float64{0.75, 0.25}, [][2]int{{3, 11008}, {5, 520}}},
		{"many rows", f, f, 2, 4, []int32{1, 0}, []float64{0.75, 0.25}, [][2]int{{1031, 8}, {129, 16}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			c.aligned = &row.layers[0] != &several[0]
			m := merging{c: c, experts: row.experts, rank: row.rank, src: row.src, typ: row.typ}
			for _, shape := range row.layers {
				m.add(shape[0], shape[1])
			}
			m.choose(row.ids, row.weights)
			c.run(func() { m.merge(nil) })
			m.check()
		})
	}
}

// testMergeForce asks for a choice when another is in force, or the same.
func testMergeForce(t *testing.T, b kernels.Backend) {
	ids, weights := []int32{2, 1}, []float64{0.75, 0.1}
	asked := force(ids, numbers(weights))
	held := asked
	if float64(float32(weights[1])) != weights[1] && b.Param() == kernels.F64 {
		held = nil // no weight of this choice may be taken for the nearest float32
	}
	edit := func(i int, change int32) []int32 {
		f := slices.Clone(asked)
		f[i] ^= change
		return f
	}
	for _, row := range []struct {
		name          string
		ids           []int32
		weights       []float64
		force         []int32
		merges        bool
		width, layers int
	}{
		{"nothing was merged", ids, weights, []int32{-1, -1, -1, -1}, true, 24, 2},
		{"it is in force", ids, weights, asked, held == nil, 24, 2},
		{"an odd one is in force", ids, weights, asked, held == nil, 7, 2},
		{"weights that float32 holds are", ids, []float64{0.75, 0.25}, force(ids, numbers([]float64{0.75, 0.25})), false, 24, 2},
		{"one of one is", []int32{2}, []float64{1}, force([]int32{2}, numbers([]float64{1})), false, 24, 1},
		{"memory that is zero", ids, weights, []int32{0, 0, 0, 0}, true, 24, 2},
		{"another first expert", ids, weights, edit(0, 1), true, 24, 2},
		{"another second expert", ids, weights, edit(1, 1), true, 7, 2},
		{"the first weight differs in a bit", ids, weights, edit(2, 1), true, 24, 2},
		{"the second weight differs in a bit", ids, weights, edit(3, 1), true, 24, 2},
		{"the other sign", ids, weights, edit(3, math.MinInt32), true, 7, 2},
		{"the other way round", []int32{1, 2}, weights, asked, true, 24, 2},
		{"minus zero is not zero", ids, []float64{1, math.Copysign(0, -1)}, force(ids, numbers([]float64{1, 0})), true, 24, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCall(t, b)
			c.aligned = true
			m := merging{c: c, experts: 4, rank: 3, src: b.Float(), typ: b.Float()}
			for range row.layers {
				m.add(19, row.width)
			}
			m.choose(row.ids, row.weights)
			var before []float64
			for _, v := range row.force {
				before = append(before, float64(v))
			}
			f := c.adds("force", kernels.I32, before, len(before))
			c.run(func() { m.merge(f) })
			c.wantIDs(f, force(row.ids, m.weight.matrix().row(0))...)
			if row.merges {
				m.check()
				return
			}
			for _, d := range m.dst {
				if i := slices.IndexFunc(d.got(), func(v float64) bool { return !math.IsNaN(v) }); i >= 0 {
					t.Errorf("%s%v was written, though what is asked for is in force", d.name, d.index(i))
				}
			}
		})
	}
}

// testMergeAgain merges one choice after the other into the same weights, prepared once and, where a backend can, recorded once, and wants
// the bits of a fresh merge each time.
func testMergeAgain(t *testing.T, b kernels.Backend) {
	c := newCall(t, b)
	c.aligned = true
	m := merging{c: c, experts: 4, rank: 3, src: b.Float(), typ: b.Float()}
	m.add(19, 24)
	m.add(9, 88)
	d := newDevice(t, b)
	ids, weights := d.put(kernels.I32, []float64{0, 0}, 2), d.put(b.Param(), []float64{0, 0}, 2)
	last := d.put(kernels.I32, []float64{-1, -1, -1, -1}, 4)
	p := m.prepared()
	defer p.Close()
	queue := func() { b.Merge(p, ids, weights, last, mergeScale) }
	if r, ok := b.(kernels.Capturer); ok {
		recording, err := r.Capture(queue)
		if err != nil {
			t.Fatal(err)
		}
		defer recording.Close()
		queue = recording.Run
	}
	fresh := m.layers()
	for i, l := range fresh {
		fresh[i].Dst = d.put(l.Dst.Type, make([]float64, l.Dst.Len()), l.Dst.Shape...)
	}
	want, err := b.PrepareMerge(fresh)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	for step, choice := range []struct {
		ids     []float64
		weights []float64
	}{
		{[]float64{1, 2}, []float64{0.75, 0.25}},
		{[]float64{1, 2}, []float64{0.75, 0.25}},
		{[]float64{1, 2}, []float64{0.5, 0.5}},
		{[]float64{3, 0}, []float64{1e4, -1e4}},
		{[]float64{3, 3}, []float64{1e-30, 0}},
		{[]float64{1, 2}, []float64{0.75, 0.25}},
	} {
		d.set(ids, choice.ids)
		d.set(weights, choice.weights)
		queue()
		b.Merge(want, ids, weights, kernels.Tensor{}, mergeScale)
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		for i := range fresh {
			host := kernels.NewHost(b.Float(), fresh[i].Dst.Len())
			b.Read(host, fresh[i].Dst)
			got := kernels.NewHost(b.Float(), fresh[i].Dst.Len())
			b.Read(got, m.layers()[i].Dst)
			if !bytes.Equal(hostBytes(got), hostBytes(host)) {
				t.Errorf("after %d merges layers[%d].Dst has other bits than a fresh merge", step+1, i)
			}
		}
	}
}

// testPrepareMerge looks at what preparing keeps, and at layers that contradict each other.
func testPrepareMerge(t *testing.T, b kernels.Backend) {
	c := newCall(t, b)
	m := merging{c: c, experts: 3, rank: 2, src: b.Float(), typ: b.Float()}
	m.add(5, 3)
	m.add(2, 9)
	layers := m.layers()
	p := m.prepared()
	for i, l := range p.Layers() {
		for _, pair := range [][2]kernels.Tensor{{l.Dst, layers[i].Dst}, {l.Src, layers[i].Src}, {l.A, layers[i].A}, {l.B, layers[i].B}} {
			if pair[0].Type != pair[1].Type || !slices.Equal(pair[0].Shape, pair[1].Shape) {
				t.Errorf("layers[%d] has %v, prepared was %v", i, pair[0], pair[1])
			}
		}
	}
	if n := len(p.Layers()); n != len(layers) {
		t.Errorf("%d layers, prepared were %d", n, len(layers))
	}
	p.Close()
	c.contradict(func() { m.prepared().Close() })
}
