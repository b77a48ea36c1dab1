package datasets

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// instruction is an item as LLM-Adapters writes it.
func instruction(question, labelled, format, answer string) string {
	return fmt.Sprintf(`{"instruction": "Please choose the correct answer to the question: %s\n\n%s\n\nAnswer format: %s", `+
		`"input": "", "output": "the correct answer is %s", "answer": "%s"}`, question, labelled, format, answer, answer)
}

func TestReadItems(t *testing.T) {
	for _, c := range []struct {
		name, file string
		want       []Item
	}{
		{"plain", `{"question": "q", "options": ["a", "b"], "gold": 1}`, []Item{{"q", []string{"a", "b"}, 1, "f:1"}}},
		{
			"byte order mark, CRLF, blank lines, extra fields",
			"\xef\xbb\xbf{\"id\": 7, \"question\": \"q\", \"options\": [\"a\", \"b\"], \"gold\": 0}\r\n\r\n \t\r\n" +
				"{\"question\": \"r\", \"options\": [\"c\", \"d\"], \"gold\": 1, \"x\": {\"gold\": 9}}\r\n\r\n\n",
			[]Item{{"q", []string{"a", "b"}, 0, "f:1"}, {"r", []string{"c", "d"}, 1, "f:4"}},
		},
		{
			"trimmed, but only outside",
			`{"question": " a  b\n", "options": ["\u00a0é  ü", "b\t"], "gold": 0}`,
			[]Item{{"a  b", []string{"é  ü", "b"}, 0, "f:1"}},
		},
		{
			"wrong options may repeat",
			`{"question": "q", "options": ["a", "b", "a"], "gold": 1}`,
			[]Item{{"q", []string{"a", "b", "a"}, 1, "f:1"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ReadItems("f", strings.NewReader(c.file))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("items (-want +got):\n%s", d)
			}
		})
	}
}

func TestReadPairs(t *testing.T) {
	file := "{\"prompt\": \" p \\n\", \"answer\": \" a\"}\n\n{\"answer\": \"\\ud83d\\ude00\", \"prompt\": \"x\", \"id\": null}"
	got, err := ReadPairs("f", strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	want := []Pair{{" p \n", " a", "f:1"}, {"x", "😀", "f:3"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("pairs (-want +got):\n%s", d)
	}
}

func TestReadInstructions(t *testing.T) {
	file := "\xef\xbb\xbf[\r\n" + instruction("Which: a question: or Answer1: b?", "Answer1: one Answer2:  two\\nlines  Answer3: Answer key",
		"answer1/answer2/answer3", "answer2") + ",\r\n\r\n" +
		instruction("is it?", "", "true/false", "false") + "]\r\n\r\n"
	got, err := ReadInstructions("f", strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	want := []Item{
		{"Which: a question: or Answer1: b?", []string{"one", "two\nlines", "Answer key"}, 1, "f:2: item 1"},
		{"is it?", []string{"true", "false"}, 1, "f:4: item 2"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("items (-want +got):\n%s", d)
	}
}

// read functions by the name that the tables below use.
var readers = map[string]func(r io.Reader) error{
	"items":        func(r io.Reader) error { _, err := ReadItems("f", r); return err },
	"pairs":        func(r io.Reader) error { _, err := ReadPairs("f", r); return err },
	"instructions": func(r io.Reader) error { _, err := ReadInstructions("f", r); return err },
	"either":       func(r io.Reader) error { _, err := readEither("f", r); return err },
}

func TestReadErrors(t *testing.T) {
	const good = `{"question": "q", "options": ["a", "b"], "gold": 0}`
	const four, words = "Answer1: a Answer2: b Answer3: c Answer4: d", "answer1/answer2/answer3/answer4"
	letters := strings.Repeat(`"x",`, 26) + `"y"`
	for _, c := range []struct{ reader, file, want, advice string }{
		{"items", "", "f: the file holds no items", itemHint},
		{"items", "\xef\xbb\xbf\r\n \n", "f: the file holds no items", itemHint},
		{"pairs", "\n", "f: the file holds no items", pairHint},
		{"either", "\n", "f: the file holds no items", kindHint},
		{"instructions", " \n", "f: the file holds no items", instructionHint},
		{"instructions", "[ ]", "f: the file holds no items", instructionHint},

		{"items", good + "\n{\"question\": \"q\" \"é\"}", "f:2:18: invalid character '\"' after object key:value pair", "JSONL is one"},
		{"items", "{\"é\": x}", "f:1:7: invalid character 'x' looking for beginning of value", "JSONL is one"},
		{"items", good + "\n\n" + good[:20], "f:3:20: unexpected end of JSON input", "JSONL is one"},
		{"items", good[:20] + "\r\n" + good, "f:1:20: unexpected end of JSON input", "JSONL is one"},
		{"items", good + good, "f:1:52: invalid character '{' after top-level value", "JSONL is one"},
		{"items", "\n{\"é\": \"caf\xe9\"}", "f:2:11: byte 0xe9 is not UTF-8", utf8Hint},
		{"items", "{\"a\": \u201cb\"}", "f:1:7: invalid character 'â' looking for beginning of value", "JSONL is one"},
		{"items", "\xff\xfe{\x00}\x00", "f:1:1: byte 0xff is not UTF-8", utf8Hint},
		{"items", `[` + good + `]`, "f:1: an array, expected an object", kindHint},
		{"items", `"x"`, "f:1: a string, expected an object", kindHint},
		{"items", `null`, "f:1: null, expected an object", kindHint},
		{"items", `{"question": "q", "question": "r"}`, `f:1: field "question" appears twice`, "keep one"},
		{"items", `{"options": ["a", "b"], "gold": 0}`, `f:1: no "question" field`, itemHint},
		{"items", `{"Question": "q", "options": ["a", "b"], "gold": 0}`, `f:1: no "question" field`, itemHint},
		{"items", `{"question": 1, "options": ["a", "b"], "gold": 0}`, `f:1: "question" is a number, expected a string`, itemHint},
		{"items", `{"question": " ", "options": ["a", "b"], "gold": 0}`, `f:1: the question is empty`, itemHint},
		{"items", `{"question": "q", "gold": 0}`, `f:1: no "options" field`, itemHint},
		{"items", `{"question": "q", "options": "a", "gold": 0}`, `f:1: "options" is a string, expected an array`, itemHint},
		{"items", `{"question": "q", "options": ["a", 2], "gold": 0}`, `f:1: element 2 of "options" is a number, expected a string`, itemHint},
		{"items", `{"question": "q", "options": ["a", null], "gold": 0}`, `f:1: element 2 of "options" is null, expected a string`, itemHint},
		{"items", `{"question": "q", "options": ["a"], "gold": 0}`, `f:1: 1 option, expected 2 to 26`, itemHint},
		{"items", `{"question": "q", "options": [], "gold": 0}`, `f:1: 0 options, expected 2 to 26`, itemHint},
		{"items", `{"question": "q", "options": [` + letters + `], "gold": 26}`, `f:1: 27 options, expected 2 to 26`, itemHint},
		{"items", `{"question": "q", "options": ["a", " "], "gold": 0}`, `f:1: option 2 of 2 is empty`, itemHint},
		{"items", `{"question": "q", "options": ["a", "b"]}`, `f:1: no "gold" field`, itemHint},
		{"items", `{"question": "q", "options": ["a", "b"], "gold": "A"}`, `f:1: "gold" is a string, expected a number`, itemHint},
		{"items", `{"question": "q", "options": ["a", "b"], "gold": 0.5}`, `f:1: "gold" is 0.5, expected a whole number`, itemHint},
		{"items", `{"question": "q", "options": ["a", "b"], "gold": 1e99}`, `f:1: "gold" is 1e99, expected a whole number`, itemHint},
		{"items", `{"question": "q", "options": ["a", "b"], "gold": 2}`, `f:1: gold option 2, expected 0 to 1`, itemHint},
		{"items", `{"question": "q", "options": ["a", "b"], "gold": -1}`, `f:1: gold option -1, expected 0 to 1`, itemHint},
		{
			"items", `{"question": "q", "options": ["a", "b", " a"], "gold": 2}`,
			`f:1: options 1 and 3 are both "a", and one of them is the gold option`, "change one",
		},

		{"pairs", "{\"prompt\": \"p\", \"answer\": \"a\"}\n{\"prompt\": \"p\"}", `f:2: no "answer" field`, pairHint},
		{"pairs", `{"answer": "a"}`, `f:1: no "prompt" field`, pairHint},
		{"pairs", `{"prompt": "p", "answer": ["a"]}`, `f:1: "answer" is an array, expected a string`, pairHint},
		{"pairs", `{"prompt": null, "answer": "a"}`, `f:1: "prompt" is null, expected a string`, pairHint},
		{"pairs", `{"prompt": true, "answer": "a"}`, `f:1: "prompt" is a boolean, expected a string`, pairHint},
		{"pairs", `{"prompt": "p", "answer": ""}`, `f:1: the answer is empty`, "write what the model"},
		{"pairs", `{"prompt": "", "answer": "a"}`, `f:1: the prompt is empty`, "write what the answer follows"},

		{"either", `{"text": "a"}`, `f:1: neither "prompt" and "answer" nor "question", "options" and "gold"`, kindHint},
		{"either", `{"prompt": "a", "question": "q"}`, `f:1: no "answer" field`, pairHint},
		{"either", `{"question": "a"}`, `f:1: no "options" field`, itemHint},
		{"either", good + "\n" + `{"prompt": "p", "answer": "a"}`, `f:2: no "question" field`, itemHint},
		{"either", `{"prompt": "p", "answer": "a"}` + "\n" + good, `f:2: no "prompt" field`, pairHint},

		{"instructions", `{"a": 1}`, `f:1: an object, expected an array of items`, ".jsonl"},
		{"instructions", `"x"`, `f:1: a string, expected an array of items`, instructionHint},
		{"instructions", `<html>`, `f:1:1: item 1: invalid character '<' looking for beginning of value`, "repair the file"},
		{"instructions", "[\n" + instruction("q", four, words, "answer1") + ",\n {\"instr", "f:3:8: item 2: unexpected end of JSON input", "repair the file"},
		{"instructions", "[\n" + instruction("q", four, words, "answer1") + ",\n]", "f:3:1: item 2: invalid character ']' looking for beginning of value", "repair the file"},
		{"instructions", "[\n" + instruction("q", four, words, "answer1") + ",\n{\"x\": \"\xe9\"}]", "f:3:8: byte 0xe9 is not UTF-8", utf8Hint},
		{"instructions", "[\n3]", "f:2: item 1: a number, expected an object", instructionHint},
		{"instructions", "[" + instruction("q", four, words, "answer1") + ",\n\n {\"answer\": \"answer1\"}]", `f:3: item 2: no "instruction" field`, instructionHint},
		{"instructions", `[{"instruction": "x"}]`, `f:1: item 1: no "answer" field`, instructionHint},
		{"instructions", `[{"instruction": "x", "answer": 1}]`, `f:1: item 1: "answer" is a number, expected a string`, instructionHint},
		{"instructions", `[{"instruction": "x", "answer": "a", "input": "y"}]`, `f:1: item 1: "input" is "y", expected ""`, "put what"},
		{"instructions", `[{"instruction": "x", "answer": "answer1"}]`, `f:1: item 1: the instruction has no "question: "`, instructionHint},
		{"instructions", `[{"instruction": "question: x", "answer": "answer1"}]`, `f:1: item 1: the instruction has no "Answer format: " after a blank line`, instructionHint},
		{"instructions", "[" + instruction("q", "1: a 2: b", "answer1/answer2", "answer1") + "]", `f:1: item 1: the instruction has no "Answer1:" after a blank line`, instructionHint},
		{"instructions", "[" + instruction("q", four, "solution1/solution2", "solution1") + "]", `f:1: item 1: answer format "solution1/solution2", expected answer1/answer2/… or true/false`, instructionHint},
		{"instructions", "[" + instruction("q", four, "", "answer1") + "]", `f:1: item 1: answer format "", expected answer1/answer2/… or true/false`, instructionHint},
		{"instructions", "[" + instruction("q", four, words, "answer5") + "]", `f:1: item 1: "answer" is "answer5", expected one of answer1, answer2, answer3, answer4`, "correct the answer"},
		{"instructions", "[" + instruction("q", four, "true/false", "True") + "]", `f:1: item 1: "answer" is "True", expected one of true, false`, "correct the answer"},
		{"instructions", "[" + instruction("", four, words, "answer1") + "]", `f:1: item 1: the question is empty`, instructionHint},
		{"instructions", "[" + instruction("q", "Answer1: a Answer2:", "answer1/answer2", "answer1") + "]", `f:1: item 1: option 2 of 2 is empty`, instructionHint},
		{"instructions", "[" + instruction("q", "Answer1: a", "answer1", "answer1") + "]", `f:1: item 1: 1 option, expected 2 to 26`, instructionHint},
		{"instructions", "[" + instruction("q", "Answer1: say Answer2: b Answer2: c", "answer1/answer2", "answer1") + "]", `f:1: item 1: options are labelled "1 2 2", expected 1 to 2 in order`, labelHint},
		{"instructions", "[" + instruction("q", "Answer1: a Answer3: b Answer2: c", "answer1/answer2/answer3", "answer1") + "]", `f:1: item 1: options are labelled "1 3 2", expected 1 to 3 in order`, labelHint},
		{"instructions", "[" + instruction("q", four, "answer1/answer2/answer3", "answer1") + "]", `f:1: item 1: options are labelled "1 2 3 4", expected 1 to 3 in order`, labelHint},
		{
			"instructions", "[" + instruction("q", "Answer1: a Answer2: a", "answer1/answer2", "answer2") + "]",
			`f:1: item 1: options 1 and 2 are both "a", and one of them is the gold option`, "change one",
		},
	} {
		t.Run(c.reader+"/"+c.want, func(t *testing.T) {
			wantError(t, readers[c.reader](strings.NewReader(c.file)), c.want, c.advice)
		})
	}
}

// wantError holds an error to its form: one line that says where and what, one line of advice that contains advice.
func wantError(t *testing.T, err error, want, advice string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", want)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 2 {
		t.Fatalf("error has %d lines, want 2:\n%v", len(lines), err)
	}
	if lines[0] != want {
		t.Errorf("error\n got %s\nwant %s", lines[0], want)
	}
	if !strings.Contains(lines[1], advice) {
		t.Errorf("advice\n got %s\nwant %s", lines[1], advice)
	}
}

func TestLimits(t *testing.T) {
	noop := func(int, []byte) error { return nil }
	line := strings.Repeat(" ", 70000) // longer than the reader's buffer
	if err := eachLine("f", strings.NewReader("{}\n"+line), len(line), noop); err != nil {
		t.Error(err)
	}
	err := eachLine("f", strings.NewReader("{}\n"+line+" "), len(line), noop)
	wantError(t, err, "f:2: the line is longer than 70000 bytes", "end it with a newline")

	if _, err := readWhole("f", strings.NewReader("[1]"), 3); err != nil {
		t.Error(err)
	}
	_, err = readWhole("f", strings.NewReader("[1] "), 3)
	wantError(t, err, "f: the file is larger than 3 bytes", "JSONL")
}

// endless is a line that never ends; reading it whole would not return.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestEndlessLine(t *testing.T) {
	_, err := ReadItems("f", endless{})
	wantError(t, err, "f:1: the line is longer than 104857600 bytes", "one object per line")
}

func TestReadFailure(t *testing.T) {
	broken := errors.New("input/output error")
	for name, read := range readers {
		err := read(io.MultiReader(strings.NewReader("["), errReader{broken}))
		if !errors.Is(err, broken) {
			t.Errorf("%s: error %v does not wrap %v", name, err, broken)
		}
		wantError(t, err, "f: input/output error", "readable")
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func FuzzReadItems(f *testing.F) {
	for _, seed := range []string{
		"", "\xef\xbb\xbf\r\n", `{"question": "q", "options": ["a", "b"], "gold": 1}`, `{"question": "q", "options": ["a", "a"], "gold": 1}`,
		"[" + instruction("q", "Answer1: a Answer2: b", "answer1/answer2", "answer1") + "]",
		"[" + instruction("q", "", "true/false", "true") + ",{}]", `{"prompt": "p", "answer": "a"}`, "{\"a\":\xff}", "[[[[", "\n\n{\"gold\":",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(format string, items []Item, pairs []Pair, err error) {
			if err != nil {
				if lines := strings.Split(err.Error(), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "f:") || lines[1] == "" {
					t.Errorf("%s: error is not a place and an advice: %q", format, err)
				}
				return
			}
			if len(items)+len(pairs) == 0 {
				t.Errorf("%s: neither items nor an error", format)
			}
			for _, it := range items {
				if again, err := newItem(it.Source, "", it.Question, it.Options, it.Gold); err != nil || !cmp.Equal(it, again) {
					t.Errorf("%s: item %+v is not one: %v", format, it, err)
				}
			}
		}
		items, err := ReadItems("f", bytes.NewReader(data))
		check("items", items, nil, err)
		items, err = ReadInstructions("f", bytes.NewReader(data))
		check("instructions", items, nil, err)
		task, err := readEither("f", bytes.NewReader(data))
		check("either", task.Items, task.Pairs, err)
	})
}
