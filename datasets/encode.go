package datasets

import (
	"slices"
	"unicode/utf8"
)

// Tokenizer turns text into ids; special adds what it puts around a text, such as a begin-of-sequence token.
type Tokenizer interface {
	Encode(text string, special bool) []int32
}

// Encoder turns tasks into ids.
type Encoder struct {
	Tokenizer Tokenizer
	Template  Template
	Special   bool  // let the tokenizer add its special tokens
	EOS       int32 // learned at the end of a Pair's answer unless it is there, never after an item's; below 0: none
	MaxLength int   // most tokens the model is given at once
}

// Sequence is a prompt and its answer as ids, to be trained on.
//
// IDs are those of prompt and answer together. The answer starts where they leave the ids of the prompt alone, which is
// at the prompt's last token if that would merge with the answer: "Answer: " and "yes" give "Answer", ":", " yes".
type Sequence struct {
	IDs    []int32
	Prompt int    // index of the answer's first token: at least 1, less than len(IDs)
	Task   string // the task's name
	Source string // the item, for messages
}

// Group is an item to be evaluated: the tokens that all options share, computed once, and a branch for each option.
type Group struct {
	Prefix   []int32 // never includes the prompt's last token, which predicts the answer's first; may be empty
	Branches []Branch
	Source   string // the item, for messages
}

// Branch is what follows the prefix for one option, without the last token, which predicts nothing. Targets[i] is the
// id that must follow IDs[i]: -100 ([NoTarget]) in the prompt, then every token of the answer.
type Branch struct {
	IDs, Targets []int32
	Chars        int // the option's length for acc_norm, see [Encoder.Groups]
}

// Sequences encodes tasks for training, one after the other: an item as its prompt and gold option, a pair as it is.
// A sequence longer than MaxLength loses the beginning of its prompt, as in lm-evaluation-harness; truncated counts
// these. An answer that leaves no room for any of its prompt is an error.
func (e Encoder) Sequences(tasks ...Task) (seqs []Sequence, truncated int, err error) {
	add := func(task, source, prompt, answer string, eos int32) error {
		ids, start, err := e.encode(source, e.ids(prompt), prompt+answer)
		if err != nil {
			return err
		}
		if eos >= 0 && ids[len(ids)-1] != eos {
			ids = append(ids, eos)
		}
		cut, err := e.excess(source, len(ids), start)
		if err != nil {
			return err
		}
		if cut > 0 {
			truncated++
		}
		seqs = append(seqs, Sequence{IDs: ids[cut:], Prompt: start - cut, Task: task, Source: source})
		return nil
	}
	for _, t := range tasks {
		for _, it := range t.Items {
			prompt, answers := e.Template.Render(it)
			if err := add(t.Name, it.Source, prompt, answers[it.Gold], -1); err != nil {
				return nil, 0, err
			}
		}
		for _, p := range t.Pairs {
			if err := add(t.Name, p.Source, p.Prompt, p.Answer, e.EOS); err != nil {
				return nil, 0, err
			}
		}
	}
	return seqs, truncated, nil
}

// Groups encodes items for evaluation. Chars are the code points of the answer without its leading space, by which
// lm-evaluation-harness divides (len of the choice in Python): the option's own for Cloze, 1 for Choice. If an option
// makes an item longer than MaxLength, the prompt loses the same tokens at its beginning for every option, so that all
// are still asked the same question; truncated counts these items.
func (e Encoder) Groups(items []Item) (groups []Group, truncated int, err error) {
	for _, it := range items {
		g, cut, err := e.group(it)
		if err != nil {
			return nil, 0, err
		}
		if cut {
			truncated++
		}
		groups = append(groups, g)
	}
	return groups, truncated, nil
}

func (e Encoder) group(it Item) (g Group, truncated bool, err error) {
	prompt, answers := e.Template.Render(it)
	promptIDs := e.ids(prompt)
	full := make([][]int32, len(answers))
	starts := make([]int, len(answers))
	cut := 0
	for i, a := range answers {
		if full[i], starts[i], err = e.encode(it.Source, promptIDs, prompt+a); err != nil {
			return g, false, err
		}
		// The last token is a target only and takes no room.
		c, err := e.excess(it.Source, len(full[i])-1, starts[i])
		if err != nil {
			return g, false, err
		}
		cut = max(cut, c)
	}
	// Up to their starts all options have the prompt's ids; the shared part ends a token before the first start.
	shared := slices.Min(starts) - 1
	if cut > shared {
		return g, false, e.tooLong(it.Source, len(full[slices.Index(starts, shared+1)])-shared-1)
	}
	g = Group{Prefix: full[0][cut:shared], Source: it.Source}
	for i, ids := range full {
		targets := make([]int32, len(ids)-1-shared)
		for j := range targets {
			targets[j] = NoTarget
			if shared+j >= starts[i]-1 {
				targets[j] = ids[shared+j+1]
			}
		}
		g.Branches = append(g.Branches, Branch{ids[shared : len(ids)-1], targets, utf8.RuneCountInString(answers[i]) - 1})
	}
	return g, cut > 0, nil
}

func (e Encoder) ids(text string) []int32 { return e.Tokenizer.Encode(text, e.Special) }

// encode is the ids of prompt and answer and the index of the answer's first token.
func (e Encoder) encode(source string, prompt []int32, text string) (ids []int32, start int, err error) {
	ids = e.ids(text)
	start = commonPrefix(prompt, ids)
	if start == len(ids) {
		return nil, 0, invalid(source, "change the answer: the tokenizer makes no token of it", "the answer has no token of its own")
	}
	if start == 0 {
		return nil, 0, invalid(source, "put a space or a newline between prompt and answer, or lengthen the prompt",
			"prompt and answer share their first token, so no token is left that predicts the answer")
	}
	return ids, start, nil
}

// excess is how many tokens must go from the beginning of a sequence of that length.
func (e Encoder) excess(source string, length, start int) (int, error) {
	cut := max(0, length-e.MaxLength)
	if cut >= start {
		return 0, e.tooLong(source, length-start)
	}
	return cut, nil
}

func (e Encoder) tooLong(source string, answer int) error {
	return invalid(source, "raise the maximum length or shorten the answer",
		"the answer of %s leaves no room for the prompt in a sequence of at most %d", count(answer, "token"), e.MaxLength)
}

// commonPrefix is how many ids a and b start with alike.
func commonPrefix(a, b []int32) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
