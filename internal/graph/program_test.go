package graph

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"loratrain/kernels"
)

// chain scales a value n times by a factor.
func chain(x Exec, v, factor V, n int) V {
	for range n {
		v = Scale(x, v, factor)
	}
	return v
}

func TestDeepChainReusesMemory(t *testing.T) {
	const depth, length = 300, 1000
	r := NewRecorder(newBackend(t, true))
	w, into := bound(r, "w", normal("w", length), length), kernels.NewHost(kernels.F64, length)
	weights := normal("weights", length)
	loss := dot(r, chain(r, lift(r, w), bound(r, "factor", []float64{-1}, 1), depth), bound(r, "weights", weights, length))
	sums, err := r.Gradients(loss, bound(r, "seed", []float64{1}, 1), []Gradient{{Of: w, Into: into}})
	if err != nil {
		t.Fatal(err)
	}
	p := compiled(t, r, []V{loss}, sums)
	mustRun(t, p)
	if n := p.Operations(); n < 2*depth {
		t.Errorf("the program has %d operations, want at least %d", n, 2*depth)
	}
	if result := 8 * length; p.Bytes() > 3*result {
		t.Errorf("%d operations with results of %d bytes take %d bytes, want 3 results at most", p.Operations(), result, p.Bytes())
	}
	want := 0.0
	for i, x := range normal("w", length) {
		want += x * weights[i]
	}
	if got := float64s(p.Kept(0))[0]; got != want {
		t.Errorf("the loss is %v, want %v", got, want)
	}
	if !slices.Equal(float64s(into), weights) {
		t.Errorf("the gradient is not the weights of the loss")
	}
}

func TestUnusedResultsAreNotComputed(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x := bound(r, "x", []float64{1}, 1)
	r.Apply(&Op{Name: "unused", Out: []Spec{x.Spec}, Run: func(kernels.Backend, []kernels.Tensor, []kernels.Tensor) {
		t.Error("an operation that leads nowhere was run")
	}}, x, bound(r, "unused input", []float64{2}, 1))
	p := compiled(t, r, r.Apply(plus("used", 1), x), nil)
	mustRun(t, p)
	if got := float64s(p.Kept(0))[0]; got != 2 || p.Operations() != 1 {
		t.Errorf("%d operations gave %g, want 1 and 2", p.Operations(), got)
	}
}

// TestSumsAddUp runs a program twice: kept values are the same bits, gradients are added to what is there.
func TestSumsAddUp(t *testing.T) {
	b := newBackend(t, true)
	for _, row := range switchRows() {
		t.Run(row.name, func(t *testing.T) {
			rec := row.record(t, b, row.names()...)
			mustRun(t, rec.program)
			loss, once := float64s(rec.program.Kept(0))[0], map[string][]float64{}
			for name, g := range rec.grads {
				once[name] = slices.Clone(g)
			}
			mustRun(t, rec.program)
			if again := float64s(rec.program.Kept(0))[0]; again != loss {
				t.Errorf("the second run's loss is %v, the first's %v", again, loss)
			}
			for name, g := range rec.grads {
				for i := range g {
					// Rounded anew at each step of the sum, so not exactly twice.
					if d := g[i] - 2*once[name][i]; d > 1e-13 || d < -1e-13 {
						t.Errorf("gradient of %s[%d] is %v after two runs, %v after one", name, i, g[i], once[name][i])
					}
				}
				clear(g)
			}
			mustRun(t, rec.program)
			for name, g := range rec.grads {
				if !slices.Equal(g, once[name]) {
					t.Errorf("gradient of %s from zero is\n%v, at first it was\n%v", name, g, once[name])
				}
			}
		})
	}
}

// TestProgramsShareAnArena compiles a small program, runs it, lets a larger one move the memory, and runs both in turns.
func TestProgramsShareAnArena(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 100}
	arena := NewArena(b)
	program := func(n, depth int) *Program {
		r := NewRecorder(b)
		v := chain(r, bound(r, "x", slices.Repeat([]float64{1}, n), n), bound(r, "two", []float64{2}, 1), depth)
		early := chain(r, v, bound(r, "half", []float64{0.5}, 1), 1)
		p, err := r.Compile(arena, []V{v, early}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	check := func(p *Program, n int, want float64) {
		t.Helper()
		spoil(arena)
		mustRun(t, p)
		for i, w := range []float64{want, want / 2} {
			if got := float64s(p.Kept(i)); !slices.Equal(got, slices.Repeat([]float64{w}, n)) {
				t.Errorf("value %d of the program of %d is %v, want %g throughout", i, n, got, w)
			}
		}
		now := arena.mem.Mem.(kernels.Host)
		for _, at := range p.pieces {
			if &at.of.results[at.i].Mem.(kernels.Host)[0] != &now[at.from] {
				t.Errorf("operation %d of the program of %d wrote outside the arena, to where it was before", at.first, n)
			}
		}
	}
	small := program(3, 5)
	check(small, 3, 32)
	was := arena.Bytes()
	large := program(400, 4)
	if arena.Bytes() <= was || arena.Bytes() != max(small.Bytes(), large.Bytes()) {
		t.Errorf("the arena has %d bytes, had %d; the programs need %d and %d", arena.Bytes(), was, small.Bytes(), large.Bytes())
	}
	kept := slices.Clone(float64s(small.Kept(0)))
	check(large, 400, 16)
	if !slices.Equal(float64s(small.Kept(0)), kept) {
		t.Errorf("a run of the large program changed what the small one kept: %v, was %v", float64s(small.Kept(0)), kept)
	}
	check(small, 3, 32)
	between := program(50, 3)
	if arena.Bytes() != large.Bytes() {
		t.Errorf("a program that fits made the arena %d bytes, was %d", arena.Bytes(), large.Bytes())
	}
	check(between, 50, 8)
	check(large, 400, 16)
	if want := 3 + 1; len(b.held) != want {
		t.Errorf("%d allocations are held, want the kept values of 3 programs and one arena", len(b.held))
	}
}

func TestInputsAreReadAtEachRun(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x := []float64{1}
	p := compiled(t, r, r.Apply(plus("plus", 1), bound(r, "x", x, 1)), nil)
	for _, v := range []float64{1, 41, -7} {
		x[0] = v
		mustRun(t, p)
		if got := float64s(p.Kept(0))[0]; got != v+1 {
			t.Errorf("%g + 1 = %g", v, got)
		}
	}
}

func TestDisturbedOrderIsAnError(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x := bound(r, "x", []float64{1}, 1)
	y := r.Apply(plus("second", 2), r.Apply(plus("first", 1), x)...)
	p := compiled(t, r, y, nil)
	for _, c := range []struct {
		name    string
		disturb func()
		want    string
	}{
		{"another order", func() { slices.Reverse(p.order) }, "first ran out of the planned order"},
		{"too few", func() { p.order = p.order[:1] }, "second ran out of the planned order"},
		{"too many", func() { p.order = append(p.order, p.order[1]) }, "the machine ran 2 of 3 operations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			order := slices.Clone(p.order)
			mustRun(t, p) // binds
			c.disturb()
			if err := p.Run(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			p.order = order
			mustRun(t, p)
			if got := float64s(p.Kept(0))[0]; got != 4 {
				t.Errorf("after the failed run 1 + 1 + 2 = %g", got)
			}
		})
	}
}

func TestPanickingKernelIsAnError(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x, broken := bound(r, "x", []float64{1}, 1), false
	fragile := plus("fragile", 1)
	run := fragile.Run
	fragile.Run = func(b kernels.Backend, out, in []kernels.Tensor) {
		if broken {
			panic("shapes contradict each other")
		}
		run(b, out, in)
	}
	p := compiled(t, r, r.Apply(plus("last", 1), r.Apply(fragile, x)...), nil)
	for _, broken = range []bool{false, true, true, false} {
		switch err := p.Run(); {
		case !broken && err != nil:
			t.Errorf("after a failed run: %v", err)
		case broken && (err == nil || !strings.Contains(err.Error(), "fragile: shapes contradict each other")):
			t.Errorf("error %v, want the operation and what the kernel said", err)
		case !broken && float64s(p.Kept(0))[0] != 3:
			t.Errorf("1 + 1 + 1 = %g", float64s(p.Kept(0))[0])
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	b := newBackend(t, true)
	for _, c := range []struct {
		name string
		keep func(r *Recorder, x V) []V
		want string
	}{
		{"a bound tensor", func(r *Recorder, x V) []V { return []V{Sum(r, x, x), x} }, "a bound tensor cannot be kept"},
		{"a value twice", func(r *Recorder, x V) []V {
			y := Sum(r, x, x)
			return []V{y, y}
		}, "a result of Sum of 2 cannot be kept: it is already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewRecorder(b)
			p, err := r.Compile(NewArena(b), c.keep(r, bound(r, "x", []float64{1}, 1)), nil)
			if p != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("program %v, error %v, want %q", p, err, c.want)
			}
		})
	}
	t.Run("a gradient of a trainable tensor", func(t *testing.T) {
		r := NewRecorder(b)
		w := bound(r, "w", []float64{1}, 1)
		loss := dot(r, lift(r, w), bound(r, "weights", []float64{1}, 1))
		sums, err := r.Gradients(loss, bound(r, "seed", []float64{1}, 1), []Gradient{{Of: w, Into: kernels.NewHost(kernels.F64, 1)}})
		if err != nil {
			t.Fatal(err)
		}
		const want = "a result of gradient of lift cannot be kept"
		if p, err := r.Compile(NewArena(b), sums, sums); p != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("program %v, error %v, want %q", p, err, want)
		}
	})
}

func TestNodeOutsideAProgram(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	y := r.Apply(plus("stray", 1), bound(r, "x", []float64{1}, 1))[0]
	if _, err := y.node.Op().Do(); err == nil || err.Error() != "stray is not part of a program" {
		t.Errorf("error %v, want that stray is not part of a program", err)
	}
}

// scarce is a backend of which a number of Allocs succeed, and which may have an error for Sync.
type scarce struct {
	kernels.Backend
	left  int
	held  map[*byte]bool
	fault error
}

var errScarce = errors.New("no memory left for this test")

func (s *scarce) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	if s.left == 0 {
		return kernels.Tensor{}, errScarce
	}
	s.left--
	x, err := s.Backend.Alloc(t, shape...)
	if s.held == nil {
		s.held = map[*byte]bool{}
	}
	s.held[&x.Mem.(kernels.Host)[0]] = true
	return x, err
}

func (s *scarce) Free(t kernels.Tensor) {
	p := &t.Mem.(kernels.Host)[0]
	if !s.held[p] {
		panic(fmt.Sprintf("%v is given back but was not taken", t))
	}
	delete(s.held, p)
}

func (s *scarce) Sync() error { return s.fault }

func TestWithoutMemory(t *testing.T) {
	for left := range 3 {
		b := &scarce{Backend: newBackend(t, true), left: left}
		arena := NewArena(b)
		r := NewRecorder(b)
		y := Sum(r, bound(r, "x", []float64{1}, 1), bound(r, "y", []float64{2}, 1))
		z := Sum(r, y, y)
		p, err := r.Compile(arena, []V{z, Sum(r, z, z)}, nil) // two kept, which are one allocation, and y in the arena
		if enough := left > 0; enough != (err == nil) || enough != (p != nil) || !enough && !errors.Is(err, errScarce) {
			t.Errorf("with %d allocations: program %v, error %v", left, p, err)
		}
		if p == nil {
			if len(b.held) != 0 {
				t.Errorf("with %d allocations the failed Compile holds %d of them", left, len(b.held))
			}
			continue
		}
		if len(b.held) != 1 || arena.Bytes() != p.Bytes() {
			t.Errorf("Compile made %d allocations, want that of the kept values; the arena needs %d bytes, want %d", len(b.held), arena.Bytes(), p.Bytes())
		}
		if left == 1 {
			if err := p.Run(); !errors.Is(err, errScarce) {
				t.Errorf("without memory for the arena: error %v, want %v", err, errScarce)
			}
		} else {
			mustRun(t, p)
			if got := float64s(p.Kept(1))[0]; got != 12 {
				t.Errorf("2·2·(1 + 2) = %g", got)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		arena.Close()
		if len(b.held) != 0 {
			t.Errorf("after Close %d allocations are held", len(b.held))
		}
	}
}

// TestArenaThatCannotGrow leaves the programs that fit as they are.
func TestArenaThatCannotGrow(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 3}
	arena := NewArena(b)
	program := func(n int) *Program {
		r := NewRecorder(b)
		x := bound(r, "x", normal("x", n), n)
		p, err := r.Compile(arena, []V{chain(r, x, bound(r, "minus one", []float64{-1}, 1), 2)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	small := program(2)
	if err := arena.Grow(); err != nil {
		t.Fatal(err)
	}
	large := program(5000)
	if err := arena.Grow(); !errors.Is(err, errScarce) {
		t.Errorf("the arena grew: error %v, want %v", err, errScarce)
	}
	if err := large.Run(); !errors.Is(err, errScarce) {
		t.Errorf("the large program ran: error %v, want %v", err, errScarce)
	}
	mustRun(t, small)
	if got, want := float64s(small.Kept(0)), normal("x", 2); !slices.Equal(got, want) {
		t.Errorf("the program before gives %v, want %v", got, want)
	}
}

// TestRunDoesNotWait leaves the fault of a device to whoever waits for it.
func TestRunDoesNotWait(t *testing.T) {
	b := &scarce{Backend: newBackend(t, true), left: 2}
	r := NewRecorder(b)
	p := compiled(t, r, r.Apply(plus("plus", 1), bound(r, "x", []float64{1}, 1)), nil)
	b.fault = errors.New("the device fell over")
	if err := p.Run(); err != nil {
		t.Errorf("error %v", err)
	}
}

// TestFetch brings kept values of several types to the host; those that never come are NaN.
func TestFetch(t *testing.T) {
	b := &lost{Backend: newBackend(t, false)}
	r := NewRecorder(b)
	logits := r.Bind("logits", kernels.FromSlice([]float32{1, 3, 3, 2, 9, 7}, 2, 3))
	ids, weights := Top2(r, logits)
	gates := Gate(r, logits)
	p := compiled(t, r, []V{ids, gates, weights}, nil)
	mustRun(t, p)
	kept, wait := p.Fetch()
	wait()
	if got, want := kernels.Slice[int32](kept[0]), []int32{1, 2, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("ids %v, want %v", got, want)
	}
	for i := range 3 {
		if got, want := kept[i].Mem.(kernels.Host), p.Kept(i).Mem.(kernels.Host); !bytes.Equal(got, want) {
			t.Errorf("kept value %d is %x, want %x", i, got, want)
		}
	}
	b.dead = true
	kept, wait = p.Fetch()
	wait()
	for _, f := range kernels.Slice[float32](kept[1]) {
		if f == f {
			t.Errorf("a number that was never sent is %v, want NaN", f)
		}
	}
}

// lost is a backend that sends nothing once dead is set.
type lost struct {
	kernels.Backend
	dead bool
}

func (l *lost) Fetch(host, t kernels.Tensor) func() {
	if l.dead {
		return func() {}
	}
	return l.Backend.Fetch(host, t)
}
