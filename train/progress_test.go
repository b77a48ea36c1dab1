package train

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
)

// play shows three steps of a run that was resumed after step 8, an evaluation and a line.
func play(p Progress, tick func()) {
	for step := 9; step <= 11; step++ {
		p.Step(StepInfo{Step: step, Total: 20, Loss: 2.5, Balance: 1.01, TokensPerSecond: 1234.5})
		tick()
	}
	for done := range 3 {
		p.Eval("arc_easy", done+1, 3)
	}
	p.Log("saved \x1b[31mcheckpoint\r 11\tof \u009b1m")
	p.Close()
}

func TestLineProgress(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	play(&lineProgress{w: &b, clock: clock{now: func() time.Time { return now }}}, func() { now = now.Add(4 * time.Second) })
	const want = `step 9/20  loss 2.5000  balance 1.010  1234 tokens/s
step 10/20  loss 2.5000  balance 1.010  1234 tokens/s  remaining 40s
step 11/20  loss 2.5000  balance 1.010  1234 tokens/s  remaining 36s
evaluated arc_easy: all 3
saved ?[31mcheckpoint? 11?of ?1m
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestProgressWhereNobodyWatches(t *testing.T) {
	var plain, quiet bytes.Buffer
	play(NewProgress(&plain, IsTerminal(&plain), false), func() {})
	if i := strings.IndexFunc(plain.String(), func(r rune) bool { return unicode.IsControl(r) && r != '\n' }); i >= 0 {
		t.Errorf("control character at %d of %q", i, plain.String())
	}
	if got := strings.Count(plain.String(), "\n"); got != 5 {
		t.Errorf("%d lines, want 5:\n%s", got, plain.String())
	}
	play(NewProgress(&quiet, true, true), func() {})
	if quiet.Len() > 0 {
		t.Errorf("quiet wrote %q", quiet.String())
	}
}

func TestBarProgress(t *testing.T) {
	var b bytes.Buffer
	p := NewProgress(&b, true, false)
	play(p, func() { time.Sleep(60 * time.Millisecond) }) // longer than the bar waits between drawings
	for _, want := range []string{
		"step 9/20  loss 2.5000  balance 1.010  1234 tokens/s", "left", "step 11/20", "45%", "eval arc_easy 3/3", "saved ?[31mcheckpoint? 11?of ?1m\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in %q", want, b.String())
		}
	}
	b.Reset()
	for step := 1; step <= 2; step++ {
		p.Step(StepInfo{Step: step, Total: 2})
	}
	p.Close()
	p.Close()
	if got := b.String(); !strings.Contains(got, "100%") || !strings.HasSuffix(got, "\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("at the end: %q", got)
	}
}

func TestIsTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(&bytes.Buffer{}) {
		t.Error("neither the null device nor a buffer is a terminal")
	}
}
