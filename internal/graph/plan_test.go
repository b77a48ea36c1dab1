package graph

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"loratrain/kernels"
)

// TestPlanner takes and gives in any order and compares with a list of what is live.
func TestPlanner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type piece struct{ from, bytes int }
		var p planner
		var live []piece
		var most int // where live memory ended at its highest
		ends := func(l piece) int { return l.from + max((l.bytes+alignment-1)/alignment*alignment, alignment) }
		check := func() {
			for i, l := range live {
				if l.from%alignment != 0 || l.from < 0 || l.from+l.bytes > p.end {
					t.Fatalf("block %v does not lie on a multiple of %d in [0, %d)", l, alignment, p.end)
				}
				for _, m := range live[:i] {
					if l.from < ends(m) && m.from < ends(l) {
						t.Fatalf("blocks %v and %v overlap", l, m)
					}
				}
			}
			for i, f := range p.free {
				if f.from >= f.to || f.to > p.end || i > 0 && p.free[i-1].to >= f.from {
					t.Fatalf("free list %v of [0, %d): not sorted, apart and inside", p.free, p.end)
				}
				for _, l := range live {
					if l.from < f.to && f.from < ends(l) {
						t.Fatalf("block %v is live and free in %v", l, p.free)
					}
				}
			}
		}
		give := func(i int) {
			p.give(live[i].from, live[i].bytes)
			live = slices.Delete(live, i, i+1)
			check()
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(live) > 0 && rapid.Bool().Draw(t, "give") {
				give(rapid.IntRange(0, len(live)-1).Draw(t, "which"))
				continue
			}
			bytes := rapid.IntRange(0, 5*alignment).Draw(t, "bytes")
			lowest := -1
			for _, f := range p.free {
				if lowest < 0 && ends(piece{f.from, bytes}) <= f.to {
					lowest = f.from
				}
			}
			if n := len(p.free); lowest < 0 && n > 0 && p.free[n-1].to == p.end {
				lowest = p.free[n-1].from // the last block grows
			} else if lowest < 0 {
				lowest = p.end
			}
			l := piece{p.take(bytes), bytes}
			if l.from != lowest {
				t.Fatalf("%d bytes were put at %d, there was room at %d", bytes, l.from, lowest)
			}
			live, most = append(live, l), max(most, ends(l))
			check()
		}
		if p.end != most {
			t.Fatalf("the arena's size is %d, the highest block ended at %d", p.end, most)
		}
		for len(live) > 0 {
			give(rapid.IntRange(0, len(live)-1).Draw(t, "which"))
		}
		if want := []block{{0, p.end}}; p.end > 0 && !slices.Equal(p.free, want) {
			t.Fatalf("with everything given back the free list is %v, want %v", p.free, want)
		}
	})
}

// weave is an operation of any number of inputs and results: result i is the sum of the inputs plus i and a number. It
// fills its results with something else first, so that a result that lies on an input or on another shows.
func weave(number float64, sizes ...int) *Op {
	op := &Op{Name: fmt.Sprintf("weave %g", number)}
	for _, n := range sizes {
		op.Out = append(op.Out, Of(kernels.F64, n))
	}
	op.Run = func(_ kernels.Backend, out, in []kernels.Tensor) {
		for _, o := range out {
			for k := range float64s(o) {
				float64s(o)[k] = math.NaN()
			}
		}
		for i, o := range out {
			for k := range float64s(o) {
				float64s(o)[k] = weaveSum(number, i, k, in)
			}
		}
	}
	return op
}

func weaveSum(number float64, i, k int, in []kernels.Tensor) float64 {
	sum := number + float64(i)
	for _, t := range in {
		if !t.None() {
			xs := float64s(t)
			sum += xs[k%len(xs)]
		}
	}
	return math.Mod(sum, 1021)
}

// TestPlanOfAnyGraph runs random graphs in spoiled memory and compares with the Immediate, which gives every value memory of
// its own as long as Done is not called.
func TestPlanOfAnyGraph(t *testing.T) {
	b := newBackend(t, true)
	rapid.Check(t, func(t *rapid.T) {
		rec, x := NewRecorder(b), NewImmediate(b)
		shared := tensorOf(normal("input", 8), 8)
		recorded, immediate := []V{rec.Bind("x", shared)}, []V{x.Bind("x", shared)}
		total := 0
		for k := range rapid.IntRange(1, 25).Draw(t, "operations") {
			sizes := rapid.SliceOfN(rapid.IntRange(1, 100), 1, 3).Draw(t, "sizes")
			var a, c []V
			for _, i := range rapid.SliceOfN(rapid.IntRange(-1, len(recorded)-1), 1, 4).Draw(t, "inputs") {
				if i < 0 { // left out
					a, c = append(a, V{}), append(c, V{})
				} else {
					a, c = append(a, recorded[i]), append(c, immediate[i])
				}
			}
			if !slices.ContainsFunc(a, func(v V) bool { return !v.None() }) {
				a, c = append(a, recorded[0]), append(c, immediate[0])
			}
			op := weave(float64(k), sizes...)
			recorded, immediate = append(recorded, rec.Apply(op, a...)...), append(immediate, x.Apply(op, c...)...)
			for _, s := range op.Out {
				total += max((s.bytes()+alignment-1)/alignment*alignment, alignment)
			}
		}
		kept := rapid.SliceOfNDistinct(rapid.IntRange(1, len(recorded)-1), 1, 4, func(i int) int { return i }).Draw(t, "kept")
		var keep []V
		for _, i := range kept {
			keep = append(keep, recorded[i])
		}
		arena := NewArena(b)
		p, err := rec.Compile(arena, keep, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if p.Bytes() > total {
			t.Fatalf("the plan takes %d bytes, all results together %d", p.Bytes(), total)
		}
		if err := arena.Grow(); err != nil {
			t.Fatal(err)
		}
		for run := range 2 {
			spoil(arena)
			if err := p.Run(); err != nil {
				t.Fatal(err)
			}
			for j, i := range kept {
				if got, want := float64s(p.Kept(j)), float64s(immediate[i].Tensor()); !slices.Equal(got, want) {
					t.Fatalf("run %d: value %d is\n%v, want\n%v", run, i, got, want)
				}
			}
		}
	})
}

// TestSmallerProgramsFit compiles a random graph, and then the same with smaller results: it needs no more memory.
func TestSmallerProgramsFit(t *testing.T) {
	b, moved := newBackend(t, true), 0
	rapid.Check(t, func(t *rapid.T) {
		arena := NewArena(b)
		type step struct {
			sizes, smaller []int
			inputs         []int
		}
		var steps []step
		results := 1
		for range rapid.IntRange(3, 25).Draw(t, "operations") {
			s := step{sizes: rapid.SliceOfN(rapid.IntRange(1, 400), 1, 3).Draw(t, "sizes")}
			for _, n := range s.sizes {
				s.smaller = append(s.smaller, rapid.IntRange(1, n).Draw(t, "smaller"))
			}
			s.inputs = rapid.SliceOfN(rapid.IntRange(max(0, results-6), results-1), 1, 4).Draw(t, "inputs")
			results += len(s.sizes)
			steps = append(steps, s)
		}
		compile := func(x Exec, smaller bool) []V {
			vs := []V{bound(x, "x", normal("input", 8), 8)}
			for k, s := range steps {
				sizes, in := s.sizes, make([]V, len(s.inputs))
				if smaller {
					sizes = s.smaller
				}
				for i, at := range s.inputs {
					in[i] = vs[at]
				}
				vs = append(vs, x.Apply(weave(float64(k), sizes...), in...)...)
			}
			return vs[len(vs)-1:]
		}
		var programs []*Program
		for _, smaller := range []bool{false, true} {
			rec := NewRecorder(b)
			p, err := rec.Compile(arena, compile(rec, smaller), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			programs = append(programs, p)
		}
		if arena.Bytes() != programs[0].Bytes() || programs[1].Bytes() > arena.Bytes() {
			t.Fatalf("the arena needs %d bytes, the large program %d, the small one %d", arena.Bytes(), programs[0].Bytes(), programs[1].Bytes())
		}
		if programs[1].Bytes() == arena.Bytes() {
			moved++
		}
		if err := arena.Grow(); err != nil {
			t.Fatal(err)
		}
		spoil(arena)
		if err := programs[1].Run(); err != nil {
			t.Fatal(err)
		}
		if got, want := float64s(programs[1].Kept(0)), float64s(compile(NewImmediate(b), true)[0].Tensor()); !slices.Equal(got, want) {
			t.Fatalf("the small program gives %v, want %v", got, want)
		}
	})
	t.Logf("%d small programs lie as the large one does", moved)
}
