package datasets

import (
	"errors"
	"fmt"
	"io"
)

const (
	itemHint = `write it as {"question": "…", "options": ["…", "…"], "gold": 0}, where gold counts the options from 0`
	pairHint = `write it as {"prompt": "…", "answer": "…"}`
	// kindHint is for a line that might be meant as either.
	kindHint = `write a line as {"prompt": "…", "answer": "…"} or {"question": "…", "options": ["…", "…"], "gold": 0}`
)

// ReadItems reads multiple-choice items from JSONL: an object per line with "question", "options" and "gold", the
// index of the right option from 0. Other fields are allowed and ignored, so are blank lines. name is for messages.
func ReadItems(name string, r io.Reader) ([]Item, error) {
	var items []Item
	err := eachObject(name, r, maxLine, func(o object) error {
		it, err := itemOf(o)
		items = append(items, it)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return nil, noItems(name, itemHint)
	}
	return items, nil
}

// ReadPairs reads prompts and answers from JSONL: an object per line with "prompt" and "answer". Other fields are
// allowed and ignored, so are blank lines. name is for messages.
func ReadPairs(name string, r io.Reader) ([]Pair, error) {
	var pairs []Pair
	err := eachObject(name, r, maxLine, func(o object) error {
		p, err := pairOf(o)
		pairs = append(pairs, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(pairs) == 0 {
		return nil, noItems(name, pairHint)
	}
	return pairs, nil
}

// readEither reads what the first line holds, items or pairs.
func readEither(name string, r io.Reader) (t Task, err error) {
	err = eachObject(name, r, maxLine, func(o object) error {
		_, question := o.fields["question"]
		_, options := o.fields["options"]
		_, prompt := o.fields["prompt"]
		_, answer := o.fields["answer"]
		first := len(t.Items)+len(t.Pairs) == 0
		if first && !question && !options && !prompt && !answer {
			return invalid(o.where, kindHint, `neither "prompt" and "answer" nor "question", "options" and "gold"`)
		}
		if len(t.Items) > 0 || first && (options || question && !prompt) {
			it, err := itemOf(o)
			t.Items = append(t.Items, it)
			return err
		}
		p, err := pairOf(o)
		t.Pairs = append(t.Pairs, p)
		return err
	})
	if err == nil && len(t.Items)+len(t.Pairs) == 0 {
		err = noItems(name, kindHint)
	}
	return t, err
}

func itemOf(o object) (Item, error) {
	o.hint = itemHint
	question, err := o.text("question")
	if err != nil {
		return Item{}, err
	}
	options, err := o.texts("options")
	if err != nil {
		return Item{}, err
	}
	gold, err := o.whole("gold")
	if err != nil {
		return Item{}, err
	}
	return newItem(o.where, itemHint, question, options, gold)
}

func pairOf(o object) (Pair, error) {
	o.hint = pairHint
	prompt, err := o.text("prompt")
	if err != nil {
		return Pair{}, err
	}
	answer, err := o.text("answer")
	if err != nil {
		return Pair{}, err
	}
	if prompt == "" {
		return Pair{}, invalid(o.where, "write what the answer follows, or remove the line", "the prompt is empty")
	}
	if answer == "" {
		return Pair{}, invalid(o.where, "write what the model shall answer, or remove the line", "the answer is empty")
	}
	return Pair{prompt, answer, o.where}, nil
}

// eachObject calls visit with the object of every line of JSONL.
func eachObject(name string, r io.Reader, limit int, visit func(o object) error) error {
	return eachLine(name, r, limit, func(number int, line []byte) error {
		where := fmt.Sprintf("%s:%d", name, number)
		if at, reason := syntax(line); reason != nil {
			_, column := position(line, at)
			hint := "JSONL is one complete JSON object per line"
			if errors.Is(reason, errEncoding) {
				hint = utf8Hint
			}
			return invalid(fmt.Sprintf("%s:%d", where, column), hint, "%w", reason)
		}
		o, err := newObject(where, kindHint, line)
		if err != nil {
			return err
		}
		return visit(o)
	})
}

func noItems(name, hint string) error {
	return invalid(name, hint, "the file holds no items")
}
