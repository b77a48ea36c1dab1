package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"unicode/utf8"
)

// filePrompt is a line of a file of prompts.
type filePrompt struct {
	where  string // file:line
	id     json.RawMessage
	prompt string
}

const (
	promptAdvice   = `each line is {"prompt": "…"}, if you like with an "id", or a JSON string`
	maxPromptBytes = 16 << 20 // of a line
)

// readPrompts reads the file of --batch, - for in. Blank lines do not count.
func readPrompts(path string, in io.Reader) ([]filePrompt, error) {
	name := path
	if path == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(path)
		if err != nil {
			return nil, failf("check the path", "%w", located(err))
		}
		defer f.Close()
		in = f
	}
	var list []filePrompt
	ids := map[string]string{} // where each is
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxPromptBytes)
	number := 0
	for lines.Scan() {
		number++
		line := lines.Bytes()
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		p, err := parsePrompt(line)
		p.where = fmt.Sprintf("%s:%d", name, number)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.where, err)
		}
		if first, twice := ids[string(p.id)]; twice && p.id != nil {
			return nil, failf("give each prompt an id of its own, or none", "%s: id %s is that of %s too", p.where, p.id, first)
		}
		ids[string(p.id)] = p.where
		list = append(list, p)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, failf("write one prompt on each line", "%s:%d: longer than %s", name, number+1, bytesText(maxPromptBytes))
	} else if err != nil {
		return nil, failf("check that it is a file that can be read", "%s: %w", name, unwrapped(err))
	}
	if len(list) == 0 {
		return nil, failf(promptAdvice, "%s: no prompts", name)
	}
	return list, nil
}

// unwrapped is an error of the operating system without the path, which the message starts with.
func unwrapped(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

func parsePrompt(line []byte) (filePrompt, error) {
	if !utf8.Valid(line) {
		return filePrompt{}, failf("save the file as UTF-8", "not UTF-8")
	}
	var value any
	if err := json.Unmarshal(line, &value); err != nil {
		return filePrompt{}, failf(promptAdvice, "no JSON: %w", err)
	}
	switch v := value.(type) {
	case string:
		return checkPrompt(filePrompt{prompt: v})
	case map[string]any:
		return promptObject(line)
	}
	return filePrompt{}, failf(promptAdvice, "expected an object or a string, got %s", shorten(string(line), 40))
}

// promptObject takes an object apart by its tokens: encoding/json itself would take "Prompt" for "prompt", and the last of two.
func promptObject(line []byte) (filePrompt, error) {
	in := json.NewDecoder(bytes.NewReader(line))
	if _, err := in.Token(); err != nil {
		return filePrompt{}, err
	}
	fields := map[string]json.RawMessage{}
	for in.More() {
		key, err := in.Token()
		if err != nil {
			return filePrompt{}, err
		}
		name, _ := key.(string)
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return filePrompt{}, err
		}
		if _, twice := fields[name]; twice {
			return filePrompt{}, failf("keep one of them", "field %s appears twice", strconv.Quote(name))
		}
		if name != "prompt" && name != "id" {
			return filePrompt{}, failf(promptAdvice, "unknown field %s", strconv.Quote(shorten(name, 40)))
		}
		fields[name] = value
	}
	p := filePrompt{id: fields["id"]}
	if id := p.id; id != nil && id[0] != '"' && id[0] != '-' && (id[0] < '0' || id[0] > '9') {
		return p, failf("leave it out, or give a string or a number", `"id" is %s`, shorten(string(id), 40))
	}
	text := fields["prompt"]
	if text == nil {
		return p, failf(promptAdvice, `no "prompt"`)
	}
	if text[0] != '"' {
		return p, failf(promptAdvice, `"prompt" is %s, expected a string`, shorten(string(text), 40))
	}
	if err := json.Unmarshal(text, &p.prompt); err != nil {
		return p, err
	}
	return checkPrompt(p)
}

func checkPrompt(p filePrompt) (filePrompt, error) {
	if p.prompt == "" {
		return p, failf("the model continues a text: give it one", "the prompt is empty")
	}
	return p, nil
}
