package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// printError shows an error: its first line after the program's name, the others, which advise, below it.
func printError(w io.Writer, err error) {
	text := err.Error()
	if text == context.Canceled.Error() { // a command that says more is left to say it
		text = "interrupted"
	}
	text = strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ")
	fmt.Fprintf(w, "lora-train: %s\n", text)
}

// printJSON writes v for machines, on one line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable writes rows in columns. A cell that begins with a tab is put to the right of its column.
func printTable(w io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(strings.TrimPrefix(cell, "\t")))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			text, right := strings.CutPrefix(cell, "\t")
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if right {
				text, space = space+text, ""
			}
			line.WriteString("  " + text + space)
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// count writes a number with its thousands apart: 134,515,008.
func count(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// threeDigits writes a number with three digits, or with all those before the point if there are more.
func threeDigits(x float64) string {
	if x < 100 {
		return fmt.Sprintf("%.3g", x)
	}
	return count(int(math.Round(x)))
}

// bytesText writes a size in the unit that suits it, of powers of 1000.
func bytesText(n int64) string {
	if n < 1000 {
		return plural(int(n), "byte")
	}
	x, unit := float64(n), 0
	for ; x >= 999.95 && unit < 5; unit++ { // which one decimal would make 1000
		x /= 1000
	}
	decimals := 2
	if x >= 9.995 {
		decimals = 1
	}
	return fmt.Sprintf("%.*f %cB", decimals, x, " kMGTP"[unit])
}

// plural is n and a word, which gets an s unless n is 1.
func plural(n int, word string) string {
	if n != 1 {
		word += "s"
	}
	return count(n) + " " + word
}

// located is an error of the operating system with its path in front, as in our own.
func located(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", p.Path, p.Err)
	}
	return err
}
