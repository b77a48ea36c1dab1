package datasets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

const (
	instructionHint = `expected the instruction JSON of LLM-Adapters: [{"instruction": "… question: …\n\nAnswer1: … Answer2: …` +
		`\n\nAnswer format: answer1/answer2", "answer": "answer1"}, …]`
	labelHint = `an option that holds "Answer2: " itself cannot be told apart here: ` +
		`write the items as JSONL {"question": "…", "options": ["…", "…"], "gold": 0}`
)

// ReadInstructions reads the instruction JSON of LLM-Adapters (Hu et al., arXiv 2304.01933), one array of objects
// whose "instruction" holds the question, the labelled options and the format of the answer, and whose "answer" names
// the right one. A question of the format true/false has these two words as its options. name is for messages.
func ReadInstructions(name string, r io.Reader) ([]Item, error) {
	data, err := readWhole(name, r, maxFile)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, noItems(name, instructionHint)
	}
	if k := kind(data); k == "an object" {
		return nil, invalid(name+":1", "if the file holds an object per line, its name must end in .jsonl",
			"an object, expected an array of items")
	}
	if at, reason := syntax(data); reason != nil {
		return nil, brokenArray(name, data, at, reason)
	}
	if k := kind(data); k != "an array" {
		return nil, invalid(name+":1", instructionHint, "%s, expected an array of items", k)
	}
	var items []Item
	line, counted := 1, 0
	err = eachElement(data, func(n, start int, element []byte) error {
		line, counted = line+bytes.Count(data[counted:start], []byte("\n")), start
		o, err := newObject(fmt.Sprintf("%s:%d: item %d", name, line, n), instructionHint, element)
		if err != nil {
			return err
		}
		it, err := instructionOf(o)
		items = append(items, it)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return nil, noItems(name, instructionHint)
	}
	return items, nil
}

// eachElement calls visit with every element of a JSON array, its number from 1 and its offset, until one is broken.
func eachElement(data []byte, visit func(n, start int, element []byte) error) error {
	in := json.NewDecoder(bytes.NewReader(data))
	if _, err := in.Token(); err != nil {
		return err
	}
	for n := 1; in.More(); n++ {
		var element json.RawMessage
		if err := in.Decode(&element); err != nil {
			return err
		}
		if err := visit(n, int(in.InputOffset())-len(element), element); err != nil {
			return err
		}
	}
	return nil
}

// brokenArray is the error for a syntax error in a file that holds an array.
func brokenArray(name string, data []byte, at int, reason error) error {
	line, column := position(data, at)
	where := fmt.Sprintf("%s:%d:%d", name, line, column)
	if errors.Is(reason, errEncoding) {
		return invalid(where, utf8Hint, "%w", reason)
	}
	complete := 0
	// The decoder stops at the same syntax error, which is reported already.
	_ = eachElement(data[:at], func(n, _ int, _ []byte) error {
		complete = n
		return nil
	})
	return invalid(where, "repair the file or fetch it again: it must be one complete JSON array", "item %d: %w",
		complete+1, reason)
}

func instructionOf(o object) (Item, error) {
	instruction, err := o.text("instruction")
	if err != nil {
		return Item{}, err
	}
	answer, err := o.text("answer")
	if err != nil {
		return Item{}, err
	}
	if input, ok := o.fields["input"]; ok && string(input) != `""` {
		return Item{}, invalid(o.where, "put what the question needs into the instruction", `"input" is %s, expected ""`, clip(input))
	}
	question, words, options, err := splitInstruction(o.where, instruction)
	if err != nil {
		return Item{}, err
	}
	gold := -1
	for i, w := range words {
		if w == answer {
			gold = i
		}
	}
	if gold < 0 {
		return Item{}, invalid(o.where, "correct the answer or remove the item", `"answer" is %s, expected one of %s`,
			quote(answer), strings.Join(words, ", "))
	}
	return newItem(o.where, instructionHint, question, options, gold)
}

// splitInstruction takes an instruction apart: the question, the words that answer it, and the option each stands for.
func splitInstruction(where, instruction string) (question string, words, options []string, err error) {
	_, rest, ok := strings.Cut(instruction, "question: ")
	if !ok {
		return "", nil, nil, invalid(where, instructionHint, `the instruction has no "question: "`)
	}
	const formatMark = "\n\nAnswer format: "
	end := strings.LastIndex(rest, formatMark)
	if end < 0 {
		return "", nil, nil, invalid(where, instructionHint, `the instruction has no "Answer format: " after a blank line`)
	}
	format := strings.TrimSpace(rest[end+len(formatMark):])
	words, rest = strings.Split(format, "/"), rest[:end]
	if format == "true/false" {
		return rest, words, words, nil
	}
	for i, w := range words {
		if w != "answer"+strconv.Itoa(i+1) {
			return "", nil, nil, invalid(where, instructionHint, "answer format %s, expected answer1/answer2/… or true/false", quote(format))
		}
	}
	question, labelled, ok := strings.Cut(rest, "\n\nAnswer1:")
	if !ok {
		return "", nil, nil, invalid(where, instructionHint, `the instruction has no "Answer1:" after a blank line`)
	}
	options, err = splitOptions(where, "Answer1:"+labelled, len(words))
	return question, words, options, err
}

var optionLabel = regexp.MustCompile(`(?:^|\s)Answer(\d+):(?:\s|$)`)

// splitOptions splits "Answer1: … Answer2: …". It refuses rather than guesses where a label does not follow its
// predecessor.
func splitOptions(where, s string, n int) ([]string, error) {
	labels := optionLabel.FindAllStringSubmatchIndex(s, -1)
	numbers := make([]string, len(labels))
	ordered := len(labels) == n
	options := make([]string, len(labels))
	for i, l := range labels {
		end := len(s)
		if i+1 < len(labels) {
			end = labels[i+1][0]
		}
		numbers[i], options[i] = s[l[2]:l[3]], s[l[1]:end]
		ordered = ordered && numbers[i] == strconv.Itoa(i+1)
	}
	if !ordered {
		return nil, invalid(where, labelHint, "options are labelled %s, expected 1 to %d in order", quote(strings.Join(numbers, " ")), n)
	}
	return options, nil
}
