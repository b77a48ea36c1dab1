package train

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// WriteTable prints scores of a base and of an adapter on the same tasks; either may be nil.
func WriteTable(w io.Writer, base, adapter []Score) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	header := []string{"task", "items", "metric", "chance", "majority"}
	if base != nil {
		header = append(header, "base")
	}
	if adapter != nil {
		header = append(header, "adapter")
	}
	fmt.Fprintln(t, strings.Join(header, "\t")+"\t")
	either := base
	if either == nil {
		either = adapter
	}
	for i, s := range either {
		for _, m := range s.metrics() {
			row := []string{s.Task, fmt.Sprint(s.Items), m.name, "", ""}
			if !s.Pairs() {
				row[3], row[4] = percent(s.Chance), percent(s.Majority)
			}
			for _, list := range [][]Score{base, adapter} {
				if list != nil {
					row = append(row, m.show(list[i]))
				}
			}
			fmt.Fprintln(t, strings.Join(row, "\t")+"\t")
		}
	}
	return t.Flush()
}

// metric is one figure of a score.
type metric struct {
	name string
	show func(Score) string
}

func (s Score) metrics() []metric {
	if s.Pairs() {
		return []metric{
			{"loss", func(s Score) string { return fmt.Sprintf("%.4f", s.Loss) }},
			{"perplexity", func(s Score) string { return fmt.Sprintf("%.2f", math.Exp(s.Loss)) }},
		}
	}
	return []metric{
		{"acc", func(s Score) string { return percent(s.Acc) + " ± " + percent(s.AccErr) }},
		{"acc_norm", func(s Score) string { return percent(s.AccNorm) + " ± " + percent(s.AccNormErr) }},
	}
}

// summary is a score in one line.
func (s Score) summary() string {
	var parts []string
	for _, m := range s.metrics() {
		parts = append(parts, m.name+" "+m.show(s))
	}
	return s.Task + ": " + strings.Join(parts, ", ")
}

func percent(x float64) string { return fmt.Sprintf("%.1f", 100*x) }
