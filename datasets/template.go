package datasets

import (
	"fmt"
	"strings"
)

// Template is how an item becomes text, in training and evaluation alike.
type Template string

const (
	// Cloze asks for the option's own words, as lm-evaluation-harness does ARC: "Question: …\nAnswer:", " option".
	Cloze Template = "cloze"
	// Choice lists the options and asks for a letter: "Question: …\nA. …\nB. …\nAnswer:", " A".
	Choice Template = "choice"
)

// ParseTemplate is the template of that name.
func ParseTemplate(name string) (Template, error) {
	switch t := Template(name); t {
	case Cloze, Choice:
		return t, nil
	}
	return "", fmt.Errorf("unknown template %s, expected %s or %s\n%s scores the words of each option, %s its letter", quote(name),
		Cloze, Choice, Cloze, Choice)
}

// Render is the prompt and what may follow it, an answer per option. Every answer starts with its space.
func (t Template) Render(it Item) (prompt string, answers []string) {
	var b strings.Builder
	b.WriteString("Question: " + it.Question + "\n")
	for i, o := range it.Options {
		if t == Choice {
			letter := string(rune('A' + i))
			b.WriteString(letter + ". " + o + "\n")
			o = letter
		}
		answers = append(answers, " "+o)
	}
	b.WriteString("Answer:")
	return b.String(), answers
}
