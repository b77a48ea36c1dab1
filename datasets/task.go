package datasets

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"
)

// Item is one multiple-choice question.
type Item struct {
	Question string
	Options  []string // 2 to 26, none empty
	Gold     int      // index of the right option, which no other option repeats
	Source   string   // where it was read, for messages: "test.json:65: item 11"
}

// Pair is one of a user's own examples: the model learns to continue Prompt with Answer, which are joined as they are.
type Pair struct {
	Prompt, Answer string // neither empty
	Source         string // where it was read, for messages: "train.jsonl:17"
}

// Task holds items or pairs, never both and at least one.
type Task struct {
	Name  string
	Items []Item
	Pairs []Pair
}

// First is the task with its first n items or pairs only, all of them if n is 0.
func (t Task) First(n int) Task {
	if n > 0 {
		t.Items = slices.Clip(t.Items[:min(n, len(t.Items))])
		t.Pairs = slices.Clip(t.Pairs[:min(n, len(t.Pairs))])
	}
	return t
}

// Digest is the SHA-256, in hexadecimal, of everything in the task that reaches the model: the name and the sources
// do not matter, the order does.
func (t Task) Digest() string {
	h := sha256.New()
	writeCount(h, len(t.Items))
	for _, it := range t.Items {
		writeText(h, it.Question)
		writeCount(h, len(it.Options))
		for _, o := range it.Options {
			writeText(h, o)
		}
		writeCount(h, it.Gold)
	}
	writeCount(h, len(t.Pairs))
	for _, p := range t.Pairs {
		writeText(h, p.Prompt)
		writeText(h, p.Answer)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// writeText writes the length first, so that no two lists of texts give the same bytes.
func writeText(h hash.Hash, s string) {
	writeCount(h, len(s))
	h.Write([]byte(s))
}

func writeCount(h hash.Hash, n int) {
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

// Chance is the accuracy of guessing: the mean of 1/len(Options), 0 for no items.
func Chance(items []Item) float64 {
	sum := 0.0
	for _, it := range items {
		sum += 1 / float64(len(it.Options))
	}
	return sum / float64(max(1, len(items)))
}

// Majority is the accuracy of always choosing the place that is right most often: the largest share of one gold
// index, 0 for no items.
func Majority(items []Item) float64 {
	counts := map[int]int{}
	most := 0
	for _, it := range items {
		counts[it.Gold]++
		most = max(most, counts[it.Gold])
	}
	return float64(most) / float64(max(1, len(items)))
}

// maxOptions is how many letters the choice template has.
const maxOptions = 26

// newItem trims and checks what a reader found.
func newItem(source, hint, question string, options []string, gold int) (Item, error) {
	it := Item{Question: strings.TrimSpace(question), Gold: gold, Source: source}
	if it.Question == "" {
		return it, invalid(source, hint, "the question is empty")
	}
	if len(options) < 2 || len(options) > maxOptions {
		return it, invalid(source, hint, "%s, expected 2 to %d", count(len(options), "option"), maxOptions)
	}
	if gold < 0 || gold >= len(options) {
		return it, invalid(source, hint, "gold option %d, expected 0 to %d", gold, len(options)-1)
	}
	for i, o := range options {
		if o = strings.TrimSpace(o); o == "" {
			return it, invalid(source, hint, "option %d of %d is empty", i+1, len(options))
		}
		it.Options = append(it.Options, o)
	}
	for i, o := range it.Options {
		if i != gold && o == it.Options[gold] {
			return it, invalid(source, "change one of them or remove the item: nothing can tell which is right",
				"options %d and %d are both %s, and one of them is the gold option", min(i, gold)+1, max(i, gold)+1, quote(o))
		}
	}
	return it, nil
}

// invalid is an error about the user's input: where it is, what is wrong and, on the next line, what to do.
func invalid(where, hint, format string, args ...any) error {
	return fmt.Errorf("%s: %w\n%s", where, fmt.Errorf(format, args...), hint)
}

// count is n and its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// quote is %q of the first characters of s, so that a message stays on one readable line.
func quote(s string) string {
	const most = 40
	n := 0
	for i := range s {
		if n++; n > most {
			return fmt.Sprintf("%q…", s[:i])
		}
	}
	return fmt.Sprintf("%q", s)
}
