package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"loratrain/model/tokenizer"
	"loratrain/train"
)

type tokenizeFlags struct {
	model                  string
	jsonl, decode, special bool
}

func newTokenizeCommand() *cobra.Command {
	var f tokenizeFlags
	cmd := &cobra.Command{
		Use:   "tokenize [TEXT…]",
		Short: "Turn text into token ids, or ids into text",
		Long: `Tokenize writes the ids of a text on one line. The text is the arguments with a space between them, or else
all of standard input exactly as it is: a newline at its end counts.

With --jsonl, standard input has a JSON string a line and each becomes a line with a JSON array of ids.
With --decode it is the other way round; no newline is added to the text.`,
		Example: `  lora-train tokenize Anna lives in Denby.
  lora-train tokenize --decode 100 200 300
  lora-train tokenize --model SmolLM2-135M-Instruct.gguf --jsonl <texts.jsonl >ids.jsonl`,
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Reset(os.Interrupt, syscall.SIGTERM) // there is nothing to save, and reading does not wait for a context
			return f.run(cmd, args)
		},
	}
	cmd.Flags().StringVar(&f.model, "model", "", "folder of a Hugging Face model, or a .gguf file; none: the embedded model")
	cmd.Flags().BoolVar(&f.jsonl, "jsonl", false, "a JSON string a line in, a JSON array of ids a line out")
	cmd.Flags().BoolVar(&f.decode, "decode", false, "ids in, text out")
	cmd.Flags().BoolVar(&f.special, "special", false, "add the special tokens that the model expects around a text; show them when decoding")
	return cmd
}

func (f *tokenizeFlags) run(cmd *cobra.Command, args []string) error {
	if f.jsonl && len(args) > 0 {
		return usagef("put the JSON into standard input, or leave --jsonl out", "--jsonl reads no arguments")
	}
	base, err := openModel(f.model)
	if err != nil {
		return err
	}
	defer base.Close()
	t, err := base.NeedTokenizer()
	if err != nil {
		return err
	}
	c := converter{tokens: t, special: f.special}
	in := io.Reader(strings.NewReader(strings.Join(args, " ")))
	if len(args) == 0 {
		c.source, in = "standard input", cmd.InOrStdin()
		if !quiet(cmd) && train.IsTerminal(os.Stdin) {
			fmt.Fprintln(cmd.ErrOrStderr(), "reading standard input, to the end of the file (Ctrl-D)")
		}
	}
	out := bufio.NewWriter(cmd.OutOrStdout())
	switch {
	case f.jsonl && f.decode:
		err = c.lines(in, out, c.decodeLine)
	case f.jsonl:
		err = c.lines(in, out, c.encodeLine)
	case f.decode:
		err = c.decode(in, out, train.IsTerminal(os.Stdout))
	default:
		err = c.encode(in, out)
	}
	return errors.Join(err, out.Flush())
}

// converter goes between text and ids.
type converter struct {
	tokens  *tokenizer.Tokenizer
	special bool
	source  string // of the input, for errors; "" for the arguments
}

// encode writes the ids of all that in holds.
func (c converter) encode(in io.Reader, out *bufio.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	for i, id := range c.tokens.Encode(string(text), c.special) {
		if i > 0 {
			out.WriteByte(' ')
		}
		out.WriteString(strconv.Itoa(int(id)))
	}
	return out.WriteByte('\n')
}

// decode writes the text of the ids in in. Only for a person it ends the last line.
func (c converter) decode(in io.Reader, out *bufio.Writer, person bool) error {
	stream, last := c.tokens.Stream(!c.special), "\n"
	write := func(text string) {
		out.WriteString(text)
		if text != "" {
			last = text
		}
	}
	r := bufio.NewReader(in)
	for number := 1; ; number++ {
		line, err := r.ReadString('\n')
		if err != nil && err != io.EOF {
			return err
		}
		for _, word := range strings.FieldsFunc(line, isBetweenIDs) {
			id, bad := c.parseID(word)
			if bad != nil {
				out.WriteString(stream.Flush())
				return c.at(number, bad)
			}
			write(stream.Write(id))
		}
		if err == io.EOF {
			break
		}
	}
	write(stream.Flush())
	if person && !strings.HasSuffix(last, "\n") {
		return out.WriteByte('\n')
	}
	return nil
}

// isBetweenIDs accepts lists as people and programs write them: 1 2 3, [1, 2, 3].
func isBetweenIDs(r rune) bool { return strings.ContainsRune(" \t\r\n,[]", r) }

func (c converter) parseID(word string) (int32, error) {
	id, err := strconv.ParseInt(word, 10, 32)
	if err != nil {
		return 0, failf("write ids as whole numbers with spaces between them", "%q: expected an id", word)
	}
	return int32(id), c.known(int32(id))
}

// known refuses ids that no token has.
func (c converter) known(id int32) error {
	if c.tokens.Token(id) == "" {
		return failf("is this the model that the ids were made with?", "id %d: no token has it, the vocabulary has ids 0 to %d", id, c.tokens.VocabSize()-1)
	}
	return nil
}

// at says in which line an error is.
func (c converter) at(line int, err error) error {
	if c.source == "" {
		return train.UsageError{Err: err}
	}
	if column, ok := errors.AsType[columnError](err); ok {
		return fmt.Errorf("%s:%d:%d: %w", c.source, line, column.column, err)
	}
	return fmt.Errorf("%s:%d: %w", c.source, line, err)
}

// lines converts line by line. A line is written at once where more input has to be waited for.
func (c converter) lines(in io.Reader, out *bufio.Writer, convert func(line []byte) (any, error)) error {
	r := bufio.NewReader(in)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for number := 1; ; number++ {
		line, err := r.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		v, err := convert(bytes.TrimSpace(line))
		if err != nil {
			return c.at(number, err)
		}
		if err := enc.Encode(v); err != nil {
			return err
		}
		if r.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
}

func (c converter) encodeLine(line []byte) (any, error) {
	var text *string
	if err := json.Unmarshal(line, &text); err != nil || text == nil {
		return nil, wrongJSON(line, "a JSON string", err)
	}
	ids := c.tokens.Encode(*text, c.special)
	if ids == nil {
		ids = []int32{}
	}
	return ids, nil
}

func (c converter) decodeLine(line []byte) (any, error) {
	var list []*int32 // pointers tell null from 0
	if err := json.Unmarshal(line, &list); err != nil || list == nil || slices.Contains(list, nil) {
		return nil, wrongJSON(line, "a JSON array of ids", err)
	}
	ids := make([]int32, len(list))
	for i, id := range list {
		if err := c.known(*id); err != nil {
			return nil, err
		}
		ids[i] = *id
	}
	return c.tokens.Decode(ids, !c.special), nil
}

// wrongJSON says what a line should have been.
func wrongJSON(line []byte, want string, err error) error {
	const advice = "each line is one JSON value"
	if len(line) == 0 {
		return failf(advice, "expected %s, got an empty line", want)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return columnError{max(int(syntax.Offset), 1), failf(advice, "expected %s: %s", want, syntax)}
	}
	return failf(advice, "expected %s, got %s", want, strconv.Quote(shorten(string(line), 40)))
}

// columnError is an error at a column, in bytes, of a line.
type columnError struct {
	column int
	error
}

func (e columnError) Unwrap() error { return e.error }

// shorten keeps the first n characters.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
