package main

import (
	"strings"
	"testing"

	"loratrain/train"
)

// TestOutcomeOfResumedRun tells the steps of this process, which the seconds belong to, from those before.
func TestOutcomeOfResumedRun(t *testing.T) {
	for _, c := range []struct {
		resumed int
		want    string
	}{
		{0, "trained   1,200 steps in 2.5 s, measured in 0.0 s\n"},
		{1100, "trained   1,200 steps, the last 100 in 2.5 s, measured in 0.0 s\n"},
		{1200, "trained   1,200 steps, all of them before, measured in 0.0 s\n"},
	} {
		var text strings.Builder
		if err := printOutcome(&text, &train.Outcome{Steps: 1200, Resumed: c.resumed, TrainSeconds: 2.5}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text.String(), c.want) {
			t.Errorf("resumed after %d: got\n%swant %s", c.resumed, text.String(), c.want)
		}
	}
}
