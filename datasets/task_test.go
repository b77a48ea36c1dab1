package datasets

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// write makes a file below dir.
func write(t *testing.T, dir, path, text string) string {
	t.Helper()
	full := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return full
}

// catalog has one published task with both splits, one without test, and an embedded one.
func catalog(t *testing.T) Catalog {
	dir := t.TempDir()
	easy := "[" + instruction("easy?", "Answer1: a Answer2: b", "answer1/answer2", "answer1") + "]"
	write(t, dir, "ARC-Easy/train.json", easy)
	write(t, dir, "ARC-Easy/test.json", easy)
	write(t, dir, "ARC-Challenge/train.json", easy)
	write(t, dir, "own.jsonl", `{"prompt": "p", "answer": " a"}`)
	write(t, dir, "items.jsonl", `{"question": "q", "options": ["a", "b"], "gold": 1}`)
	write(t, dir, "my file.jsonl", `{"prompt": "p", "answer": " a"}`)
	write(t, dir, "data.csv", "a,b")
	write(t, dir, "folder.json/x", "")
	toy := fstest.MapFS{"test.jsonl": {Data: []byte(`{"question": "toy?", "options": ["a", "b"], "gold": 1}`)}}
	return Catalog{Dir: dir, Embedded: map[string]fs.FS{"toy": toy}}
}

func TestLoad(t *testing.T) {
	c := catalog(t)
	in := func(name string) string { return filepath.Join(c.Dir, name) }
	easy := in("ARC-Easy/test.json")
	item := func(question string, gold int, source string) []Item {
		return []Item{{question, []string{"a", "b"}, gold, source}}
	}
	for _, test := range []struct {
		spec string
		want Task
	}{
		{"arc_easy", Task{Name: "arc_easy", Items: item("easy?", 0, easy+":1: item 1")}},
		{"other=" + easy, Task{Name: "other", Items: item("easy?", 0, easy+":1: item 1")}},
		{"toy", Task{Name: "toy", Items: item("toy?", 1, "toy/test.jsonl:1")}},
		{"toy=" + in("items.jsonl"), Task{Name: "toy", Items: item("q", 1, in("items.jsonl")+":1")}},
		{in("items.jsonl"), Task{Name: "items", Items: item("q", 1, in("items.jsonl")+":1")}},
		{in("own.jsonl"), Task{Name: "own", Pairs: []Pair{{"p", " a", in("own.jsonl") + ":1"}}}},
	} {
		got, err := c.Load(test.spec, Test)
		if err != nil {
			t.Errorf("%s: %v", test.spec, err)
		}
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.spec, d)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	c := catalog(t)
	in := func(name string) string { return filepath.Join(c.Dir, name) }
	for _, test := range []struct {
		specs        []string
		want, advice string
	}{
		{[]string{"arc"}, `unknown task "arc", expected one of arc_challenge, arc_easy, boolq, openbookqa, toy`, "name=FILE"},
		{[]string{"arc_challenge"}, "arc_challenge: no test split: " + in("ARC-Challenge/test.json") + " does not exist", "that folder has only train.json: give the file as arc_challenge=FILE"},
		{[]string{"boolq"}, "boolq: no test split: " + in("boolq/test.json") + " does not exist", "the folder that holds boolq/test.json"},
		{[]string{"x=" + in("none.json")}, in("none.json") + ": no such file or directory", "readable"},
		{[]string{in("folder.json")}, in("folder.json") + ": is a directory", "readable"},
		{[]string{"x=" + in("data.csv")}, "x=" + in("data.csv") + ": the file must end in .json or .jsonl", "an object per line"},
		{[]string{in("my file.jsonl")}, `"my file" is no name for a task, expected letters, digits, _, . and -`, "name=FILE"},
		{[]string{"=" + in("own.jsonl")}, `"" is no name for a task, expected letters, digits, _, . and -`, "name=FILE"},
		{[]string{"x=" + in("own.jsonl"), "x=" + in("items.jsonl")}, "tasks x=" + in("own.jsonl") + " and x=" + in("items.jsonl") + " are both named x", "othername=FILE"},
	} {
		_, err := c.LoadAll(test.specs, Test)
		wantError(t, err, test.want, test.advice)
	}
	_, err := c.Load("toy", Train)
	wantError(t, err, "toy: no train split: open train.jsonl: file does not exist", "choose another task")
}

func TestLoadAll(t *testing.T) {
	tasks, err := catalog(t).LoadAll([]string{"toy", "arc_easy"}, Test)
	if err != nil {
		t.Fatal(err)
	}
	if len(tasks) != 2 || tasks[0].Name != "toy" || tasks[1].Name != "arc_easy" {
		t.Errorf("got %+v, want toy and arc_easy", tasks)
	}
}

func TestDigest(t *testing.T) {
	base := Task{Name: "t", Items: []Item{{"q", []string{"a", "b"}, 0, "s"}, {"r", []string{"a", "b"}, 0, "s"}}}
	if other := (Task{Name: "u", Items: []Item{{"q", []string{"a", "b"}, 0, "x"}, {"r", []string{"a", "b"}, 0, "x"}}}); other.Digest() != base.Digest() {
		t.Error("name or source changes the digest")
	}
	seen := map[string]string{base.Digest(): "base"}
	for name, task := range map[string]Task{
		"gold":     {Items: []Item{{"q", []string{"a", "b"}, 1, "s"}, {"r", []string{"a", "b"}, 0, "s"}}},
		"order":    {Items: []Item{{"r", []string{"a", "b"}, 0, "s"}, {"q", []string{"a", "b"}, 0, "s"}}},
		"boundary": {Items: []Item{{"q", []string{"ab", ""}, 0, "s"}, {"r", []string{"a", "b"}, 0, "s"}}},
		"question": {Items: []Item{{"qa", []string{"", "b"}, 0, "s"}, {"r", []string{"a", "b"}, 0, "s"}}},
		"fewer":    {Items: base.Items[:1]},
		"pairs":    {Pairs: []Pair{{"q", "a", "s"}}},
		"pairs'":   {Pairs: []Pair{{"qa", "", "s"}}},
		"none":     {},
	} {
		if other, same := seen[task.Digest()]; same {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[task.Digest()] = name
	}
}

func TestStatistics(t *testing.T) {
	items := []Item{{Options: make([]string, 2), Gold: 1}, {Options: make([]string, 4), Gold: 1}, {Options: make([]string, 4), Gold: 3}}
	if got, want := Chance(items), 1.0/3; got != want {
		t.Errorf("chance %v, want %v", got, want)
	}
	if got, want := Majority(items), 2.0/3; got != want {
		t.Errorf("majority %v, want %v", got, want)
	}
	if Chance(nil) != 0 || Majority(nil) != 0 {
		t.Errorf("no items: chance %v and majority %v, want 0", Chance(nil), Majority(nil))
	}
}

func TestRender(t *testing.T) {
	it := Item{Question: "Why?", Options: []string{"so", "not so"}}
	for _, test := range []struct {
		name, prompt string
		answers      []string
	}{
		{"cloze", "Question: Why?\nAnswer:", []string{" so", " not so"}},
		{"choice", "Question: Why?\nA. so\nB. not so\nAnswer:", []string{" A", " B"}},
	} {
		template, err := ParseTemplate(test.name)
		if err != nil {
			t.Fatal(err)
		}
		prompt, answers := template.Render(it)
		if d := cmp.Diff(test.prompt, prompt) + cmp.Diff(test.answers, answers); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, d)
		}
	}
	_, err := ParseTemplate("chioce")
	wantError(t, err, `unknown template "chioce", expected cloze or choice`, "letter")
}

func TestFirst(t *testing.T) {
	three := Task{Items: []Item{{Question: "a"}, {Question: "b"}, {Question: "c"}}}
	for n, want := range map[int]int{0: 3, 1: 1, 3: 3, 9: 3} {
		if got := three.First(n); len(got.Items) != want {
			t.Errorf("the first %d of 3 items are %d, want %d", n, len(got.Items), want)
		}
	}
	one := three.First(1)
	one.Items = append(one.Items, Item{Question: "new"})
	if three.Items[1].Question != "b" {
		t.Errorf("appending to the first item overwrote the second with %q", three.Items[1].Question)
	}
}
