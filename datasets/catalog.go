package datasets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Split is the part of a task that is trained on or tested on.
type Split string

// The splits of a published task.
const (
	Train Split = "train"
	Test  Split = "test"
)

// benchmarks are the folders of the published tasks.
var benchmarks = map[string]string{
	"arc_easy":      "ARC-Easy",
	"arc_challenge": "ARC-Challenge",
	"openbookqa":    "openbookqa",
	"boolq":         "boolq",
}

// Catalog says where tasks are.
type Catalog struct {
	Dir      string           // the published tasks' folders, each with train.json and test.json
	Embedded map[string]fs.FS // further tasks by name, each with train.jsonl and test.jsonl as ReadItems reads them
}

// Names are the tasks that Load knows without a file.
func (c Catalog) Names() []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(benchmarks)), maps.Keys(c.Embedded))
	slices.Sort(names)
	return slices.Compact(names)
}

// Load reads one split of a task. spec is a task's name; or name=FILE; or a FILE, whose name without ending is then
// the task's. A FILE ends in .json (see ReadInstructions) or in .jsonl, which holds items (see ReadItems) or pairs
// (see ReadPairs), as its first line does; it is read whatever the split.
func (c Catalog) Load(spec string, split Split) (Task, error) {
	name, path, named := strings.Cut(spec, "=")
	if !named && (strings.HasSuffix(spec, ".json") || strings.HasSuffix(spec, ".jsonl")) {
		path, named = spec, true
		name = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	}
	if named {
		return loadFile(name, path)
	}
	if files, ok := c.Embedded[name]; ok {
		return loadEmbedded(name, files, split)
	}
	folder, ok := benchmarks[name]
	if !ok {
		return Task{}, fmt.Errorf("unknown task %s, expected one of %s\ngive a task's file as name=FILE", quote(name),
			strings.Join(c.Names(), ", "))
	}
	path = filepath.Join(c.Dir, folder, string(split)+".json")
	t, err := loadFile(name, path)
	if errors.Is(err, fs.ErrNotExist) {
		return Task{}, c.missing(name, path, split)
	}
	return t, err
}

// missing is the error for a published task whose file is not there.
func (c Catalog) missing(name, path string, split Split) error {
	hint := fmt.Sprintf("give the file as %s=FILE, or the folder that holds %s", name,
		filepath.Join(benchmarks[name], string(split)+".json"))
	if others, err := filepath.Glob(filepath.Join(c.Dir, benchmarks[name], "*.json")); err == nil && len(others) > 0 {
		for i, o := range others {
			others[i] = filepath.Base(o)
		}
		hint = fmt.Sprintf("that folder has only %s: give the file as %s=FILE or choose another task", strings.Join(others, ", "), name)
		if split == Test {
			hint += ", with eval.tasks if it is only trained on"
		}
	}
	return fmt.Errorf("%s: no %s split: %s does not exist\n%s", name, split, path, hint)
}

// LoadAll loads several tasks, whose names must differ because tables tell them apart by name.
func (c Catalog) LoadAll(specs []string, split Split) ([]Task, error) {
	seen := map[string]string{}
	var tasks []Task
	for _, spec := range specs {
		t, err := c.Load(spec, split)
		if err != nil {
			return nil, err
		}
		if other, twice := seen[t.Name]; twice {
			return nil, fmt.Errorf("tasks %s and %s are both named %s\nname one of them yourself: othername=FILE", other, spec, t.Name)
		}
		seen[t.Name] = spec
		tasks = append(tasks, t)
	}
	return tasks, nil
}

var taskName = regexp.MustCompile(`^[\pL\pN_.-]+$`)

func loadFile(name, path string) (Task, error) {
	if !taskName.MatchString(name) {
		return Task{}, fmt.Errorf("%s is no name for a task, expected letters, digits, _, . and -\ngive the file as name=FILE", quote(name))
	}
	ending := strings.ToLower(filepath.Ext(path))
	if ending != ".json" && ending != ".jsonl" {
		return Task{}, fmt.Errorf("%s=%s: the file must end in .json or .jsonl\n.json is the instruction JSON of LLM-Adapters, "+
			".jsonl an object per line with question, options and gold or with prompt and answer", name, path)
	}
	file, err := os.Open(path)
	if err != nil {
		return Task{}, unreadable(path, err)
	}
	defer file.Close()
	return read(name, path, file)
}

func loadEmbedded(name string, files fs.FS, split Split) (Task, error) {
	path := string(split) + ".jsonl"
	file, err := files.Open(path)
	if err != nil {
		return Task{}, fmt.Errorf("%s: no %s split: %w\nchoose another task or give a file as name=FILE", name, split, err)
	}
	defer file.Close()
	return read(name, name+"/"+path, file)
}

// read reads a task in the format that the path's ending says.
func read(name, path string, r io.Reader) (t Task, err error) {
	if strings.EqualFold(filepath.Ext(path), ".jsonl") {
		t, err = readEither(path, r)
	} else {
		t.Items, err = ReadInstructions(path, r)
	}
	if err != nil {
		return Task{}, err
	}
	t.Name = name
	return t, nil
}
