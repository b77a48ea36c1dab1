package train

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// StepInfo is what a person wants to see of a step.
type StepInfo struct {
	Step, Total     int // steps done, including this one, and of the whole run
	Loss, Balance   float64
	TokensPerSecond float64
}

// Progress shows how a run gets on. One goroutine at a time may call it.
type Progress interface {
	// Step is called after each step.
	Step(s StepInfo)
	// Eval is called during an evaluation: done of total items of what is evaluated.
	Eval(what string, done, total int)
	// Log shows a line that stays.
	Log(line string)
	// Close leaves the cursor on a fresh line.
	Close()
}

// NewProgress writes to w: a bar that is drawn again and again if w is a terminal, plain lines if not, nothing if quiet.
func NewProgress(w io.Writer, terminal, quiet bool) Progress {
	switch {
	case quiet:
		return silent{}
	case terminal:
		return &barProgress{w: w, clock: clock{now: time.Now}}
	default:
		return &lineProgress{w: w, clock: clock{now: time.Now}}
	}
}

// IsTerminal says whether somebody may be watching what is written to w.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// clock estimates the remaining time from the steps that it saw, so that a resumed run is no exception.
type clock struct {
	now   func() time.Time
	start time.Time
	first int
}

// remaining is the time left after a step, "" at the first, which has compiled programs and is no measure.
func (c *clock) remaining(s StepInfo) string {
	if c.start.IsZero() {
		c.start, c.first = c.now(), s.Step
		return ""
	}
	done := s.Step - c.first
	if done <= 0 {
		return ""
	}
	each := c.now().Sub(c.start) / time.Duration(done)
	return (each * time.Duration(max(s.Total-s.Step, 0))).Round(time.Second).String()
}

type silent struct{}

func (silent) Step(StepInfo)         {}
func (silent) Eval(string, int, int) {}
func (silent) Log(string)            {}
func (silent) Close()                {}

// lineProgress writes a line a step, for log files: nothing is drawn over, no control character is written.
type lineProgress struct {
	w io.Writer
	clock
}

func (p *lineProgress) Step(s StepInfo) {
	line := fmt.Sprintf("step %d/%d  %s", s.Step, s.Total, describe(s))
	if left := p.remaining(s); left != "" {
		line += "  remaining " + left
	}
	p.Log(line)
}

func (p *lineProgress) Eval(what string, done, total int) {
	if done == total {
		p.Log(fmt.Sprintf("evaluated %s: all %d", what, total))
	}
}

func (p *lineProgress) Log(line string) { fmt.Fprintln(p.w, printable(line)) }
func (p *lineProgress) Close()          {}

func describe(s StepInfo) string {
	return fmt.Sprintf("loss %.4f  balance %.3f  %.0f tokens/s", s.Loss, s.Balance, s.TokensPerSecond)
}

// printable replaces what could move a cursor or change colours; names of files and tasks come from outside.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return '?'
		}
		return r
	}, line)
}

// barProgress draws one bar, that of the steps or of an evaluation.
type barProgress struct {
	w io.Writer
	clock
	bar   *progressbar.ProgressBar
	what  string // what the bar counts
	drawn time.Time
}

func (p *barProgress) Step(s StepInfo) {
	text := describe(s)
	if left := p.remaining(s); left != "" {
		text += "  " + left + " left"
	}
	p.draw("step", s.Step, s.Total, text)
}

func (p *barProgress) Eval(what string, done, total int) {
	p.draw("eval "+what, done, total, "")
	if done == total {
		p.clear()
	}
}

func (p *barProgress) draw(what string, done, total int, text string) {
	text = printable(fmt.Sprintf("%s %d/%d  %s", what, done, total, text))
	if p.bar == nil || p.what != what || p.bar.GetMax() != total {
		p.clear()
		p.what = what
		p.bar = progressbar.NewOptions(max(total, 1), progressbar.OptionSetWriter(p.w), progressbar.OptionSetWidth(20),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetRenderBlankState(false), progressbar.OptionSetDescription(text))
	} else if p.now().Sub(p.drawn) < 50*time.Millisecond && done < total {
		return // a terminal is slower than an evaluation
	}
	p.drawn = p.now()
	_ = p.bar.Set(min(done, total)) // a terminal that went away must not stop the run
	p.bar.Describe(text)
}

// clear removes the bar from the screen.
func (p *barProgress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}

func (p *barProgress) Log(line string) {
	p.clear()
	fmt.Fprintln(p.w, printable(line))
}

func (p *barProgress) Close() {
	if p.bar != nil {
		fmt.Fprintln(p.w)
		p.bar = nil
	}
}
