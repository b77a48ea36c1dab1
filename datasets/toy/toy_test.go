package toy_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"loratrain/datasets/toy"
)

type item struct {
	Question string
	Options  []string
	Gold     int
}

func read(t *testing.T, name string) []item {
	t.Helper()
	data, err := fs.ReadFile(toy.FS(), name)
	if err != nil {
		t.Fatal(err)
	}
	var items []item
	for i, line := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		var x item
		if err := d.Decode(&x); err != nil {
			t.Fatalf("%s:%d: %v", name, i+1, err)
		}
		items = append(items, x)
	}
	return items
}

// peopleWordings is how many of the wordings ask about people. Two of them in a row ask for the same fact.
const peopleWordings = 10

// wordings are all forms a question has; the group is the thing it asks about.
var wordings = []*regexp.Regexp{
	regexp.MustCompile(`^Where does (\w+) live\?$`),
	regexp.MustCompile(`^In which town is the home of (\w+)\?$`),
	regexp.MustCompile(`^What is the job of (\w+)\?$`),
	regexp.MustCompile(`^What does (\w+) do for a living\?$`),
	regexp.MustCompile(`^Which pet does (\w+) have\?$`),
	regexp.MustCompile(`^What is the pet of (\w+)\?$`),
	regexp.MustCompile(`^What does (\w+) play\?$`),
	regexp.MustCompile(`^Which instrument does (\w+) play in the band\?$`),
	regexp.MustCompile(`^Which color does (\w+) like\?$`),
	regexp.MustCompile(`^What is the favorite color of (\w+)\?$`),
	regexp.MustCompile(`^What is an? (\w+)\?$`),
	regexp.MustCompile(`^What is the first letter of (\w+)\?$`),
	regexp.MustCompile(`^Where on the map is (\w+)\?$`),
	regexp.MustCompile(`^What is the opposite of (\w+)\?$`),
}

// parse gives the number of a question's wording and the thing it asks about.
func parse(t *testing.T, question string) (int, string) {
	t.Helper()
	for i, w := range wordings {
		if m := w.FindStringSubmatch(question); m != nil {
			return i, m[1]
		}
	}
	t.Fatalf("%q has none of the known wordings", question)
	return 0, ""
}

// TestDisjoint is the task's promise: what a test question asks about is nowhere in train.
func TestDisjoint(t *testing.T) {
	seen := map[string]string{} // word of train to a question that has it
	for _, x := range read(t, "train.jsonl") {
		for _, text := range append(x.Options, x.Question) {
			for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '?' }) {
				seen[word] = x.Question
			}
		}
	}
	for i, x := range read(t, "test.jsonl") {
		if _, thing := parse(t, x.Question); seen[thing] != "" {
			t.Errorf("test.jsonl:%d: %q asks about %q, which the training question %q or its options have", i+1, x.Question,
				thing, seen[thing])
		}
	}
}

func TestEveryWordingInBothSplits(t *testing.T) {
	for _, name := range []string{"train.jsonl", "test.jsonl"} {
		count := make([]int, len(wordings))
		for _, x := range read(t, name) {
			w, _ := parse(t, x.Question)
			count[w]++
		}
		for w, n := range count {
			if n == 0 {
				t.Errorf("%s: no question like %s", name, wordings[w])
			}
		}
	}
}

func TestItems(t *testing.T) {
	for name, size := range map[string]int{"train.jsonl": 4144, "test.jsonl": 461} {
		items := read(t, name)
		if len(items) != size {
			t.Errorf("%s: %d items, want %d", name, len(items), size)
		}
		golds := make([]int, 4)
		asked := map[string]int{}
		for i, x := range items {
			if len(x.Options) != 4 || len(slices.Compact(slices.Sorted(slices.Values(x.Options)))) != 4 {
				t.Fatalf("%s:%d: options %q, want four different ones", name, i+1, x.Options)
			}
			if x.Gold < 0 || x.Gold > 3 {
				t.Fatalf("%s:%d: gold %d", name, i+1, x.Gold)
			}
			if first := asked[x.Question]; first != 0 {
				t.Errorf("%s:%d: %q again, first on line %d", name, i+1, x.Question, first)
			}
			asked[x.Question] = i + 1
			golds[x.Gold]++
		}
		if slices.Max(golds)-slices.Min(golds) > 1 {
			t.Errorf("%s: the right answer stands in the four places %v times", name, golds)
		}
	}
}

// TestOneAnswer holds that the two wordings of a fact about a person agree about it.
func TestOneAnswer(t *testing.T) {
	type fact struct {
		pair  int
		thing string
	}
	known := map[fact]string{}
	for i, x := range read(t, "train.jsonl") {
		w, thing := parse(t, x.Question)
		if w >= peopleWordings {
			continue
		}
		f, answer := fact{w / 2, thing}, x.Options[x.Gold]
		if before, ok := known[f]; ok && before != answer {
			t.Errorf("train.jsonl:%d: %q is %q, in the other wording %q", i+1, x.Question, answer, before)
		}
		known[f] = answer
	}
	if len(known) < 1000 {
		t.Errorf("%d facts about people, want at least 1000", len(known))
	}
}
