package loratrain_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTwinsCarryTheContractsComment holds the comment above every backend's operation against the contract's: it is the
// mathematics, and a reader of one backend must find it there.
func TestTwinsCarryTheContractsComment(t *testing.T) {
	want := contractComments(t)
	if len(want) < 30 {
		t.Fatalf("kernels/backend.go has %d operations with a comment", len(want))
	}
	for _, pkg := range []string{"kernels/cpu", "kernels/cuda"} {
		got := methodComments(t, pkg)
		for _, name := range slices.Sorted(maps.Keys(want)) {
			switch text, ok := got[name]; {
			case !ok:
				t.Errorf("%s: no method %s", pkg, name)
			case text != want[name]:
				t.Errorf("%s: the comment of %s is\n%s\nthe contract has\n%s", pkg, name, text, want[name])
			}
		}
	}
}

// operations are the interfaces whose methods compute. The others' are said in each backend's own words.
var operations = []string{"Network", "Gradients", "Optimizer", "Decoding"}

// contractComments is the comments of the operations in kernels/backend.go, by name.
func contractComments(t *testing.T) map[string]string {
	t.Helper()
	comments := map[string]string{}
	ast.Inspect(parse(t, "kernels/backend.go"), func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || !slices.Contains(operations, spec.Name.Name) {
			return true
		}
		for _, m := range spec.Type.(*ast.InterfaceType).Methods.List {
			if len(m.Names) == 1 && m.Doc != nil {
				comments[m.Names[0].Name] = words(m.Doc)
			}
		}
		return true
	})
	return comments
}

// methodComments is the comments of all exported methods in a package.
func methodComments(t *testing.T, pkg string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(pkg, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{}
	for _, file := range files {
		for _, d := range parse(t, file).Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil && f.Name.IsExported() {
				comments[f.Name.Name] = words(f.Doc)
			}
		}
	}
	return comments
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// words is a comment without its line breaks and indentation, and with names of this package as others write them.
func words(c *ast.CommentGroup) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(c.Text()), " "), "[kernels.", "[")
}

// TestKernelsCarryTheContractsComment does the same for the CUDA sources: where a comment begins to say what an operation of the contract is, it
// says it as the contract does.
func TestKernelsCarryTheContractsComment(t *testing.T) {
	contract := contractComments(t)
	files, err := filepath.Glob("kernels/cuda/*.cu")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d CUDA sources: %v", len(files), err)
	}
	found := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range sourceComments(string(text)) {
			for name, want := range contract {
				want = strings.ReplaceAll(want, "[Random]", "Random")
				verb := strings.Fields(want)[1]
				if !strings.HasPrefix(block, name+" "+verb+" ") {
					continue
				}
				found[name] = true
				if !strings.HasPrefix(block, want) {
					t.Errorf("%s: the comment of %s is\n%s\nthe contract has\n%s", file, name, block, want)
				}
			}
		}
	}
	found["LinearGrad"] = true // a product of cuBLAS, which has no source
	for name := range contract {
		if !found[name] {
			t.Errorf("no CUDA source says what %s is", name)
		}
	}
}

// sourceComments is the text from each paragraph of a source's comments to the end of that comment.
func sourceComments(source string) []string {
	var blocks, paragraphs []string
	flush := func() {
		for i := range paragraphs {
			blocks = append(blocks, strings.Join(strings.Fields(strings.Join(paragraphs[i:], " ")), " "))
		}
		paragraphs = nil
	}
	fresh := true
	for line := range strings.Lines(source) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "//")
		switch {
		case !ok:
			flush()
			fresh = true
		case strings.TrimSpace(text) == "":
			fresh = true
		case fresh:
			paragraphs = append(paragraphs, text)
			fresh = false
		default:
			paragraphs[len(paragraphs)-1] += " " + text
		}
	}
	flush()
	return blocks
}
