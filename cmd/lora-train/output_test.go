package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"loratrain/model"
)

func TestNumbersForPeople(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 134515008: "134,515,008", -1234: "-1,234", -123: "-123"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) is %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{
		0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 12345: "12.3 kB", 999_940: "999.9 kB",
		999_960: "1.00 MB", 5e15: "5.00 PB", 5e18: "5000.0 PB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) is %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int]string{0: "0 tokens", 1: "1 token", 2000: "2,000 tokens"} {
		if got := plural(n, "token"); got != want {
			t.Errorf("plural(%d) is %q, want %q", n, got, want)
		}
	}
}

func TestPrintTable(t *testing.T) {
	var b strings.Builder
	printTable(&b, [][]string{{"name", "\tsize", "note"}, {"é", "\t1,000"}, {"longer", "\t5", "x"}})
	want := "  name     size  note\n  é       1,000\n  longer      5  x\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPrintError(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("disk: full"), "lora-train: disk: full\n"},
		{failf("make room", "%s: %w", "disk", errors.New("full")), "lora-train: disk: full\n  make room\n"},
		{fmt.Errorf("a: %w", failf("advice", "b")), "lora-train: a: b\n  advice\n"},
		{context.Canceled, "lora-train: interrupted\n"},
		{errors.Join(context.Canceled, nil), "lora-train: interrupted\n"},
		{fmt.Errorf("stopped at step 3: %w", context.Canceled), "lora-train: stopped at step 3: context canceled\n"},
	} {
		var b strings.Builder
		if printError(&b, test.err); b.String() != test.want {
			t.Errorf("%q is printed %q, want %q", test.err, b.String(), test.want)
		}
	}
}

func TestFlatten(t *testing.T) {
	var v any
	text := `{"b": [{"task": "toy", "acc": 0.51234}, {"x": null}], "a": {"n": 3, "l": [1, "two", true], "e": ""}, "c": "1\n2", "d": []}`
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"r a l", "1 two true"}, {"r a n", "3"}, {"r b toy acc", "0.5123"}, {"r c", "1↵2"}, {"r d", ""}}
	if diff := cmp.Diff(want, flatten("r", v)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A person's prompt needs a fresh line, a pipe needs the text alone.
func TestDecodeEndsTheLineForPeople(t *testing.T) {
	base, err := model.OpenDefault()
	if err != nil {
		t.Fatal(err)
	}
	c := converter{tokens: base.Tokenizer}
	for _, test := range []struct {
		ids    string
		person bool
		want   string
	}{{"2414", false, "Anna"}, {"2414", true, "Anna\n"}, {"2414 199", true, "Anna\n"}, {"", true, ""}, {"", false, ""}} {
		var b strings.Builder
		w := bufio.NewWriter(&b)
		if err := errors.Join(c.decode(strings.NewReader(test.ids), w, test.person), w.Flush()); err != nil || b.String() != test.want {
			t.Errorf("ids %q, for a person %v: %q, %v; want %q", test.ids, test.person, b.String(), err, test.want)
		}
	}
}
