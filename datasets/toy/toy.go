// Package toy embeds the default task: questions about the toy world that the embedded base model knows.
//
// Start with [FS]. An item asks for one fact about one person, thing, word or country and gives four options, so that
// chance is 25 %; answers stand in each of the four places equally often. Train and test ask about different people,
// things, words and countries: whatever a test question asks about appears in no training question and no training
// option, so that answering it takes what the base model knows. Train asks for every fact about people in two wordings,
// test in one of the two.
//
// scripts/tinybase/make.py made both files and makes them again byte for byte. Most facts are invented (who lives
// where), the others (what is a bird, where a country lies) are common knowledge. A demonstration, no benchmark.
package toy

import (
	"embed"
	"io/fs"
)

//go:embed train.jsonl test.jsonl
var files embed.FS

// FS holds train.jsonl and test.jsonl, each with one JSON object a line: "question", "options" and "gold", the index
// of the right option from 0.
func FS() fs.FS { return files }
