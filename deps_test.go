package loratrain_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport is policy: the packages of this module that each package may import, its tests aside.
// A build that needs another import needs another design first.
var mayImport = map[string][]string{
	"cmd/lora-train": {
		"train", "datasets", "datasets/toy", "model", "model/tokenizer", "model/tiny", "router", "kernels", "kernels/cpu",
		"kernels/cuda", "kernels/cuda/driver", "checkpoints", "internal/graph", "internal/budget",
	},
	"train": {
		"model", "model/tokenizer", "datasets", "checkpoints", "router", "kernels", "internal/graph",
	},
	"datasets":              {},
	"datasets/toy":          {},
	"model":                 {"router", "kernels", "checkpoints", "internal/graph", "model/tokenizer", "model/tiny"},
	"model/tokenizer":       {},
	"model/tiny":            {},
	"router":                {"internal/graph", "kernels"},
	"kernels":               {},
	"kernels/cpu":           {"kernels"},
	"kernels/cuda":          {"kernels"},
	"kernels/cuda/emulator": {"kernels", "kernels/cuda"},
	"kernels/cuda/driver":   {"kernels", "kernels/cuda", "kernels/cuda/compiled"},
	"kernels/cuda/compiled": {},
	"kernels/kernelstest":   {"kernels", "internal/gradcheck"},
	"checkpoints":           {},
	"internal/graph":        {"kernels"},
	"internal/gradcheck":    {},
	"internal/budget":       {"kernels"},
	"internal/testpython":   {},
	"internal/testgpu":      {"kernels", "kernels/cuda", "kernels/cuda/emulator", "kernels/cuda/driver"},
}

// mayBuildGraphs are the packages that may import Gorgonia; the others get values and programs from internal/graph.
var mayBuildGraphs = []string{"internal/graph", "model", "router", "train"}

func TestImports(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "." {
			if d != nil && d.IsDir() && err == nil {
				return fs.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		allowed, ok := mayImport[pkg]
		if !ok {
			t.Errorf("%s: no import policy for package %s", path, pkg)
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if dep, ours := strings.CutPrefix(name, "loratrain/"); ours && !slices.Contains(allowed, dep) {
				t.Errorf("%s may not import %s", path, dep)
			}
			if name == "gorgonia.org/gorgonia" && !slices.Contains(mayBuildGraphs, pkg) {
				t.Errorf("%s may not import %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
