package graph

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"

	"loratrain/internal/gradcheck"
	"loratrain/kernels"
)

// leaf is an input whose gradient is checked.
type leaf struct {
	name  string
	shape []int
	data  []float64
	// trainable says that operations give its gradient by adding to memory, as they do for trainable tensors; activations
	// are lifted.
	trainable bool
}

// pass is one execution of a row: the values of its leaves, and constants named after the row.
type pass struct {
	Exec
	row  *gradientRow
	leaf map[string]V
}

func (p *pass) fixed(name string, shape ...int) V {
	return bound(p, name, normal(p.row.name+name, kernels.Len(shape...)), shape...)
}

func (p *pass) numbers(name string, xs []float64, shape ...int) V {
	return bound(p, name, xs, shape...)
}

func (p *pass) ints(name string, xs []int32, shape ...int) V {
	return p.Bind(name, kernels.FromSlice(xs, shape...))
}

// loss is the row's function: its output combined at random.
func (p *pass) loss() V {
	y := p.row.build(p)
	return dot(p, y, p.fixed("weights of the loss", y.Shape...))
}

// gradientRow is an expression over leaves; its gradients must agree with differences of itself.
type gradientRow struct {
	name   string
	leaves []leaf
	build  func(p *pass) V
}

// value runs the row at once, with one leaf replaced.
func (r *gradientRow) value(b kernels.Backend, name string, data []float64) float64 {
	x := NewImmediate(b)
	p := &pass{Exec: x, row: r, leaf: map[string]V{}}
	for _, l := range r.leaves {
		if l.name == name {
			l.data = data
		}
		p.leaf[l.name] = bound(x, l.name, l.data, l.shape...)
	}
	return float64s(p.loss().Tensor())[0]
}

// recorded is the row as a graph, and its program with the gradients of the leaves that are named.
type recorded struct {
	*Recorder
	program *Program
	grads   map[string][]float64
}

func (r *gradientRow) record(t *testing.T, b kernels.Backend, wanted ...string) recorded {
	t.Helper()
	rec := recorded{Recorder: NewRecorder(b), grads: map[string][]float64{}}
	p := &pass{Exec: rec, row: r, leaf: map[string]V{}}
	var grads []Gradient
	for _, l := range r.leaves {
		v := bound(rec, l.name, l.data, l.shape...)
		p.leaf[l.name] = v
		if !l.trainable {
			p.leaf[l.name] = lift(rec, v)
		}
		if slices.Contains(wanted, l.name) {
			rec.grads[l.name] = make([]float64, len(l.data))
			grads = append(grads, Gradient{Of: v, Into: tensorOf(rec.grads[l.name], l.shape...)})
		}
	}
	loss := p.loss()
	sums, err := rec.Gradients(loss, bound(rec, "seed", []float64{1}, 1), grads)
	if err != nil {
		t.Fatal(err)
	}
	rec.program = compiled(t, rec.Recorder, []V{loss}, sums)
	return rec
}

func (r *gradientRow) names() []string {
	var names []string
	for _, l := range r.leaves {
		names = append(names, l.name)
	}
	return names
}

// coverage is which operations a table has run, and which inputs of them had their gradient checked.
type coverage struct {
	ran      map[string]bool
	declared map[string]bool // "name, input i" of every Diff
	checked  map[string]bool
}

func (c coverage) note(r *Recorder) {
	for _, n := range r.made {
		op, ok := n.Op().(*node)
		if !ok {
			continue
		}
		c.ran[op.Name] = true
		for _, i := range op.Diff {
			key := fmt.Sprintf("%s, input %d", op.Name, i)
			c.declared[key] = c.declared[key] || !op.in[i].None()
			c.checked[key] = c.checked[key] || op.ask.need != nil && op.ask.need[i]
		}
	}
}

// TestGradients compares every operation's gradient, as Gradients and a Program compute it through SymDiff, with differences
// of what the Immediate computes: towards each input alone and towards all together.
func TestGradients(t *testing.T) {
	b := newBackend(t, true)
	seen := coverage{ran: map[string]bool{}, declared: map[string]bool{}, checked: map[string]bool{}}
	for _, row := range gradientRows() {
		t.Run(row.name, func(t *testing.T) {
			together := row.record(t, b, row.names()...)
			mustRun(t, together.program)
			if got, want := float64s(together.program.Kept(0))[0], row.value(b, "", nil); got != want {
				t.Errorf("the program's loss is %v, run at once it is %v", got, want)
			}
			for _, l := range row.leaves {
				alone := row.record(t, b, l.name)
				seen.note(alone.Recorder)
				mustRun(t, alone.program)
				f := func(x []float64) float64 { return row.value(b, l.name, x) }
				gradcheck.Check(t, row.name+": "+l.name, f, l.data, alone.grads[l.name], 1e-9)
				if !slices.Equal(alone.grads[l.name], together.grads[l.name]) {
					t.Errorf("%s: asked for alone the gradient is\n%v, with the others\n%v", l.name,
						alone.grads[l.name], together.grads[l.name])
				}
			}
		})
	}
	for _, key := range slices.Sorted(maps.Keys(seen.declared)) {
		if seen.declared[key] && !seen.checked[key] {
			t.Errorf("no row checks the gradient of %s", key)
		}
	}
	var missing []string
	for name, differentiable := range operationsInSource(t) {
		ran := false
		for _, n := range slices.Collect(maps.Keys(seen.ran)) {
			ran = ran || n == name || strings.HasSuffix(name, "%d") && strings.HasPrefix(n, strings.TrimSuffix(name, "%d"))
		}
		if !ran && (differentiable || !slices.Contains(withoutGradient, name)) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		t.Errorf("no row runs %q", missing)
	}
}

// withoutGradient is the operations that nothing is learned through.
var withoutGradient = []string{"Embed", "LogProb", "Top2", "Experts", "Spread"}

// operationsInSource is the names of all Ops in the package's source, and whether they list inputs that have a gradient.
func operationsInSource(t *testing.T) map[string]bool {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	ops := map[string]bool{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if id, isOp := litType(lit); !ok || !isOp || id != "Op" {
				return true
			}
			name, diff := "", false
			for _, e := range lit.Elts {
				kv := e.(*ast.KeyValueExpr)
				switch kv.Key.(*ast.Ident).Name {
				case "Name":
					name = firstString(kv.Value)
				case "Diff":
					diff = true
				}
			}
			if name == "" {
				t.Errorf("an Op in %v has no name", f.Name)
			}
			ops[name] = ops[name] || diff
			return true
		})
	}
	if len(ops) < 25 || !ops["SwitchLinear"] {
		t.Fatalf("found %d operations in the source: this test no longer understands it", len(ops))
	}
	return ops
}

func litType(lit *ast.CompositeLit) (name string, ok bool) {
	if lit == nil {
		return "", false
	}
	id, ok := lit.Type.(*ast.Ident)
	if !ok {
		return "", false
	}
	return id.Name, true
}

// firstString is the first string literal in an expression.
func firstString(e ast.Expr) (s string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && s == "" {
			s, _ = strconv.Unquote(lit.Value)
		}
		return true
	})
	return s
}

// TestSymDiff calls gorgonia.SDOp as Gorgonia defines it: one gradient for every child, nil where DiffWRT says so.
func TestSymDiff(t *testing.T) {
	b := newBackend(t, true)
	for _, row := range gradientRows() {
		rec := NewRecorder(b)
		p := &pass{Exec: rec, row: &row, leaf: map[string]V{}}
		for _, l := range row.leaves {
			p.leaf[l.name] = bound(rec, l.name, l.data, l.shape...)
		}
		p.loss()
		for _, n := range slices.Clone(rec.made) {
			if op, ok := n.Op().(G.SDOp); ok {
				symDiff(t, row.name, rec, n, op)
			}
		}
	}
}

func symDiff(t *testing.T, row string, rec *Recorder, n *G.Node, op G.SDOp) {
	t.Helper()
	kids := rec.kids[n]
	if len(kids) != op.Arity() {
		t.Errorf("%s: %v has %d children and arity %d", row, op, len(kids), op.Arity())
	}
	diff := op.DiffWRT(len(kids))
	if len(diff) != len(kids) {
		t.Errorf("%s: DiffWRT of %v answers for %d of %d children", row, op, len(diff), len(kids))
		return
	}
	dy := rec.Bind("dy", kernels.NewHost(kernels.F64, n.Shape()...))
	got, err := op.SymDiff(kids, n, dy.node)
	if !slices.Contains(diff, true) {
		if err == nil {
			t.Errorf("%s: %v has nothing to differentiate and gives %v", row, op, got)
		}
		return
	}
	if err != nil || len(got) != len(kids) {
		t.Errorf("%s: %v has %d children and %d gradients, error %v", row, op, len(kids), len(got), err)
		return
	}
	for i, g := range got {
		if (g != nil) != diff[i] {
			t.Errorf("%s: child %d of %v has gradient %v, DiffWRT says %v", row, i, op, g, diff[i])
		}
		if g != nil && !g.Shape().Eq(kids[i].Shape()) {
			t.Errorf("%s: child %d of %v has shape %v, its gradient %v", row, i, op, kids[i].Shape(), g.Shape())
		}
	}
}

// TestSymDiffOfArgumentsLeftOut asks for no gradient of what is not there.
func TestSymDiffOfArgumentsLeftOut(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	x := bound(r, "x", []float64{1}, 1)
	var asked []bool
	y := r.Apply(&Op{
		Name: "three inputs", Out: []Spec{x.Spec}, Diff: []int{0, 1, 2},
		Grad: func(_ Exec, _, _ []V, dy V, ask Ask) []V {
			asked = ask.need
			return []V{dy, {}, dy}
		},
	}, x, V{}, x)[0]
	got, err := y.node.Op().(G.SDOp).SymDiff(r.kids[y.node], y.node, x.node)
	if want := (G.Nodes{x.node, x.node}); err != nil || !slices.Equal(got, want) {
		t.Errorf("gradients %v, error %v, want %v", got, err, want)
	}
	if want := []bool{true, false, true}; !slices.Equal(asked, want) {
		t.Errorf("Grad was asked for %v, want %v", asked, want)
	}
}

// TestGradientsWithoutAWay lists the mistakes that Gradients refuses.
func TestGradientsWithoutAWay(t *testing.T) {
	b := newBackend(t, true)
	into := kernels.NewHost(kernels.F64, 1)
	for _, c := range []struct {
		name string
		loss func(r *Recorder, w V) V
		want string
	}{
		{"a parameter that the loss does not use", func(r *Recorder, _ V) V {
			return Scale(r, bound(r, "x", []float64{1}, 1), bound(r, "f", []float64{1}, 1))
		}, "no gradient reaches w#1"},
		{"behind an input that has no gradient", func(r *Recorder, w V) V {
			return Scale(r, bound(r, "x", []float64{1}, 1), lift(r, w))
		}, "no gradient reaches w#1"},
		{"a gradient that does not add", func(r *Recorder, w V) V {
			return Scale(r, w, bound(r, "f", []float64{1}, 1))
		}, "the gradient of w#1 comes from Scale, which does not add to memory"},
		{
			"a gradient that passes through", func(r *Recorder, w V) V { return Sum(r, w, w) },
			"the gradient of w#1 comes from <nil>, which does not add to memory",
		},
		{"a gradient that adds to what is no parameter", func(r *Recorder, w V) V {
			return lift(r, lift(r, w))
		}, "gradient of lift adds its gradient to memory, but lift is no trainable tensor"},
		{"an operation whose gradient panics", func(r *Recorder, w V) V {
			return r.Apply(&Op{
				Name: "broken", Out: []Spec{w.Spec}, Diff: []int{0},
				Grad: func(Exec, []V, []V, V, Ask) []V { panic("not today") },
			}, lift(r, w))[0]
		}, "gradient of broken: not today"},
		{"an operation without the gradient it declares", func(r *Recorder, w V) V {
			return r.Apply(&Op{Name: "hollow", Out: []Spec{w.Spec}, Diff: []int{0}}, lift(r, w))[0]
		}, "hollow has no gradient"},
		{"an operation that gives fewer gradients than it declares", func(r *Recorder, w V) V {
			return r.Apply(&Op{
				Name: "forgetful", Out: []Spec{w.Spec}, Diff: []int{0},
				Grad: func(Exec, []V, []V, V, Ask) []V { return nil },
			}, lift(r, w))[0]
		}, "forgetful gives no gradient for input 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewRecorder(b)
			w := bound(r, "w", []float64{2}, 1)
			loss := c.loss(r, w)
			_, err := r.Gradients(loss, bound(r, "seed", []float64{1}, 1), []Gradient{{Of: w, Into: into}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestSeed scales all gradients.
func TestSeed(t *testing.T) {
	r := NewRecorder(newBackend(t, true))
	w, into := bound(r, "w", []float64{2, 3}, 2), kernels.NewHost(kernels.F64, 2)
	loss := dot(r, lift(r, w), bound(r, "weights", []float64{5, 7}, 2))
	sums, err := r.Gradients(loss, bound(r, "seed", []float64{-0.5}, 1), []Gradient{{Of: w, Into: into}})
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, compiled(t, r, nil, sums))
	if got, want := float64s(into), []float64{-2.5, -3.5}; !slices.Equal(got, want) {
		t.Errorf("gradient %v, want %v", got, want)
	}
}

// TestOnlyNeededGradientsAreRecorded asks for one of the four gradients of a layer.
func TestOnlyNeededGradientsAreRecorded(t *testing.T) {
	row := switchRows()[0]
	for _, c := range []struct {
		leaf string
		want []string
	}{
		{"A", []string{"SwitchGradHidden", "SwitchGradA"}},
		{"B", []string{"SwitchGradB", "SwitchGradHidden"}},
		{"h", []string{"SwitchGradHidden", "SwitchGradInput", "gradient of lift"}},
		{"gates", []string{"SwitchGradHidden", "gradient of lift"}},
	} {
		var got []string
		for _, n := range row.record(t, newBackend(t, true), c.leaf).made {
			if op, ok := n.Op().(*node); ok && (strings.HasPrefix(op.Name, "SwitchGrad") || op.Name == "gradient of lift") {
				got = append(got, op.Name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("for the gradient of %s the operations %q are recorded, want %q", c.leaf, got, c.want)
		}
	}
}
