package datasets

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// words is a tokenizer like byte-level BPE in what matters here: a word takes the space before it.
type words struct {
	ids   map[string]int32
	texts []string
}

var wordPattern = regexp.MustCompile(` ?\pL+| ?[^\s\pL]|\s`)

func newWords() *words { return &words{ids: map[string]int32{"<bos>": 0}, texts: []string{"<bos>"}} }

func (w *words) Encode(text string, special bool) []int32 {
	var ids []int32
	if special {
		ids = append(ids, 0)
	}
	for _, s := range wordPattern.FindAllString(text, -1) {
		id, ok := w.ids[s]
		if !ok {
			id = int32(len(w.texts))
			w.ids[s], w.texts = id, append(w.texts, s)
		}
		ids = append(ids, id)
	}
	return ids
}

// text shows ids with | between tokens; an id that is no word is <eos>, NoTarget is a dot.
func (w *words) text(ids []int32) string {
	var s []string
	for _, id := range ids {
		switch {
		case id == NoTarget:
			s = append(s, ".")
		case int(id) >= len(w.texts):
			s = append(s, "<eos>")
		default:
			s = append(s, w.texts[id])
		}
	}
	return strings.Join(s, "|")
}

const eos = 9999

func TestSequences(t *testing.T) {
	item := Task{Name: "i", Items: []Item{{"Why so?", []string{"it is", "not"}, 0, "f:1"}}}
	pair := func(prompt, answer string) Task { return Task{Name: "p", Pairs: []Pair{{prompt, answer, "f:1"}}} }
	w := newWords()
	for _, c := range []struct {
		name           string
		encoder        Encoder
		task           Task
		prompt, answer string
		truncated      int
	}{
		{"cloze, no end after an item", Encoder{Template: Cloze, EOS: eos, MaxLength: 99}, item, "Question|:| Why| so|?|\n|Answer|:", " it| is", 0},
		{"choice", Encoder{Template: Choice, EOS: -1, MaxLength: 99}, item, "Question|:| Why| so|?|\n|A|.| it| is|\n|B|.| not|\n|Answer|:", " A", 0},
		{"pair", Encoder{EOS: eos, MaxLength: 99}, pair("say\n", "a b"), "say|\n", "a| b|<eos>", 0},
		{"pair without end", Encoder{EOS: -1, MaxLength: 99}, pair("say\n", "a b"), "say|\n", "a| b", 0},
		{"special", Encoder{Special: true, EOS: -1, MaxLength: 99}, pair("say", " a"), "<bos>|say", " a", 0},
		{"a space that merges with the answer", Encoder{EOS: eos, MaxLength: 99}, pair("say: ", "a"), "say|:", " a|<eos>", 0},
		{"special makes a prompt where all merges", Encoder{Special: true, EOS: -1, MaxLength: 99}, pair("a", "b"), "<bos>", "ab", 0},
		{"just fits", Encoder{EOS: eos, MaxLength: 5}, pair("a b c", " d"), "a| b| c", " d|<eos>", 0},
		{"prompt cut", Encoder{EOS: eos, MaxLength: 4}, pair("a b c", " d"), " b| c", " d|<eos>", 1},
		{"one token of prompt left", Encoder{EOS: eos, MaxLength: 3}, pair("a b c", " d"), " c", " d|<eos>", 1},
	} {
		c.encoder.Tokenizer = w
		seqs, truncated, err := c.encoder.Sequences(c.task)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		s := seqs[0]
		got := []string{w.text(s.IDs[:s.Prompt]), w.text(s.IDs[s.Prompt:]), s.Task, s.Source}
		if d := cmp.Diff([]string{c.prompt, c.answer, c.task.Name, "f:1"}, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if truncated != c.truncated {
			t.Errorf("%s: %d truncated, want %d", c.name, truncated, c.truncated)
		}
	}
}

func TestEndIsNotDoubled(t *testing.T) {
	w := newWords()
	end := w.Encode(" end", false)[0]
	e := Encoder{Tokenizer: w, EOS: end, MaxLength: 9}
	seqs, _, err := e.Sequences(Task{Pairs: []Pair{{"a", " b end", "f:1"}, {"a", " b", "f:2"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seqs {
		if got := w.text(s.IDs); got != "a| b| end" {
			t.Errorf("%s: got %s, want the end once", s.Source, got)
		}
	}
}

func TestSequencesOfSeveralTasks(t *testing.T) {
	e := Encoder{Tokenizer: newWords(), Template: Cloze, EOS: -1, MaxLength: 99}
	seqs, _, err := e.Sequences(Task{Name: "a", Items: []Item{{"q", []string{"x", "y"}, 0, "f:1"}, {"q", []string{"x", "y"}, 1, "f:2"}}},
		Task{Name: "b", Pairs: []Pair{{"p", " a", "g:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range seqs {
		got = append(got, s.Task+" "+s.Source)
	}
	if d := cmp.Diff([]string{"a f:1", "a f:2", "b g:1"}, got); d != "" {
		t.Errorf("order of sequences (-want +got):\n%s", d)
	}
}

func TestEncodeErrors(t *testing.T) {
	pairs := func(prompt, answer string) Task { return Task{Pairs: []Pair{{prompt, answer, "f:7"}}} }
	for _, c := range []struct {
		max          int
		task         Task
		want, advice string
	}{
		{3, pairs("a b", " c d"), "f:7: the answer of 3 tokens leaves no room for the prompt in a sequence of at most 3", "raise the maximum length"},
		{9, pairs("a", "b"), "f:7: prompt and answer share their first token, so no token is left that predicts the answer", "put a space"},
		{9, pairs("a b", "\x00"), "f:7: the answer has no token of its own", "change the answer"},
	} {
		w := newWords()
		e := Encoder{Tokenizer: skipNUL{w}, EOS: eos, MaxLength: c.max}
		_, _, err := e.Sequences(c.task)
		wantError(t, err, c.want, c.advice)
	}
	e := Encoder{Tokenizer: newWords(), Template: Cloze, MaxLength: 2}
	_, _, err := e.Groups([]Item{{"q", []string{"a", "b c d"}, 0, "f:3"}})
	wantError(t, err, "f:3: the answer of 2 tokens leaves no room for the prompt in a sequence of at most 2", "raise")
}

// skipNUL drops a character, as tokenizers that normalize text may.
type skipNUL struct{ Tokenizer }

func (s skipNUL) Encode(text string, special bool) []int32 {
	return s.Tokenizer.Encode(strings.ReplaceAll(text, "\x00", ""), special)
}

func TestGroups(t *testing.T) {
	w := newWords()
	type branch struct {
		IDs, Targets string
		Chars        int
	}
	for _, c := range []struct {
		name      string
		encoder   Encoder
		options   []string
		prefix    string
		branches  []branch
		truncated int
	}{
		{
			"cloze: the prompt's last token in every branch, the answer's last in none",
			Encoder{Template: Cloze, MaxLength: 99},
			[]string{"it is", "it", "ça 😀"},
			"Question|:| q|\n|Answer",
			[]branch{{":| it", " it| is", 5}, {":", " it", 2}, {":| ça", " ça| 😀", 4}},
			0,
		},
		{
			"choice",
			Encoder{Template: Choice, MaxLength: 99},
			[]string{"x", "y z"},
			"Question|:| q|\n|A|.| x|\n|B|.| y| z|\n|Answer",
			[]branch{{":", " A", 1}, {":", " B", 1}},
			0,
		},
		{"equal options", Encoder{Template: Cloze, MaxLength: 99}, []string{"a b", "a b"}, "Question|:| q|\n|Answer", []branch{{":| a", " a| b", 3}, {":| a", " a| b", 3}}, 0},
		{"just fits", Encoder{Template: Cloze, MaxLength: 7}, []string{"a", "b c"}, "Question|:| q|\n|Answer", []branch{{":", " a", 1}, {":| b", " b| c", 3}}, 0},
		{"all cut alike", Encoder{Template: Cloze, MaxLength: 5}, []string{"a", "b c"}, " q|\n|Answer", []branch{{":", " a", 1}, {":| b", " b| c", 3}}, 1},
		{"no prefix left", Encoder{Template: Cloze, MaxLength: 2}, []string{"a", "b c"}, "", []branch{{":", " a", 1}, {":| b", " b| c", 3}}, 1},
		{"special", Encoder{Template: Cloze, MaxLength: 99, Special: true}, []string{"a", "b"}, "<bos>|Question|:| q|\n|Answer", []branch{{":", " a", 1}, {":", " b", 1}}, 0},
	} {
		c.encoder.Tokenizer = w
		groups, truncated, err := c.encoder.Groups([]Item{{"q", c.options, 0, "f:1"}})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var got []branch
		for _, b := range groups[0].Branches {
			got = append(got, branch{w.text(b.IDs), w.text(b.Targets), b.Chars})
		}
		if d := cmp.Diff(c.prefix, w.text(groups[0].Prefix)) + cmp.Diff(c.branches, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if truncated != c.truncated {
			t.Errorf("%s: %d truncated, want %d", c.name, truncated, c.truncated)
		}
	}
}

// merging is a tokenizer whose colon merges with a following " x", so that options share less than the prompt.
type merging struct{ *words }

func (m merging) Encode(text string, special bool) []int32 {
	var ids []int32
	for _, part := range regexp.MustCompile(`: x|[^:]+|:`).FindAllString(text, -1) {
		if part == ": x" {
			m.words.Encode("∷", false)
			ids = append(ids, m.words.ids["∷"])
			continue
		}
		ids = append(ids, m.words.Encode(part, false)...)
	}
	return ids
}

func TestGroupWhosePromptMerges(t *testing.T) {
	w := merging{newWords()}
	for _, c := range []struct {
		max  int
		want []string
	}{
		{99, []string{"Question|:| q|\n", "Answer|:", ".| a", "Answer|∷", "∷| b"}},
		{2, []string{"", "Answer|:", ".| a", "Answer|∷", "∷| b"}},
	} {
		groups, _, err := Encoder{Tokenizer: w, Template: Cloze, MaxLength: c.max}.Groups([]Item{{"q", []string{"a", "x b"}, 0, "f:1"}})
		if err != nil {
			t.Fatal(err)
		}
		g := groups[0]
		got := []string{w.text(g.Prefix)}
		for _, b := range g.Branches {
			got = append(got, w.text(b.IDs), w.text(b.Targets))
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("at most %d tokens (-want +got):\n%s", c.max, d)
		}
	}
	_, _, err := Encoder{Tokenizer: w, Template: Cloze, MaxLength: 1}.Groups([]Item{{"q", []string{"a", "x"}, 0, "f:1"}})
	wantError(t, err, "f:1: the answer of 1 token leaves no room for the prompt in a sequence of at most 1", "raise")
}
