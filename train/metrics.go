package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// StepMetrics is a step's line in metrics.jsonl. Losses are means over the whole step.
type StepMetrics struct {
	Step            int       `json:"step"`  // steps done, from 1
	Epoch           float64   `json:"epoch"` // passes over the data so far
	Loss            float64   `json:"loss"`  // CE + weight · Balance: what is minimised
	CE              float64   `json:"ce"`    // cross-entropy a target token, nats
	Balance         float64   `json:"balance"`
	GradNorm        float64   `json:"grad_norm"` // before clipping
	LR              float64   `json:"lr"`
	Tokens          int       `json:"tokens"`          // without padding
	Targets         int       `json:"targets"`         // tokens that were learned
	Loads           []float64 `json:"loads,omitempty"` // (E) share of the top-2 places, mean over routers; they sum to 1
	Seconds         float64   `json:"seconds"`
	TokensPerSecond float64   `json:"tokens_per_second"`
}

// MetricsLine is one line of metrics.jsonl: a step, or an evaluation after so many steps.
type MetricsLine struct {
	StepMetrics
	Eval json.RawMessage `json:"eval,omitempty"` // what was given to WriteEval; Step is the only other field then
}

// MetricsWriter appends to metrics.jsonl. Each line is written by one call of the system, so that a killed process
// loses none that it wrote and leaves at most one torn line, the last.
type MetricsWriter struct{ f *os.File }

// OpenMetrics opens the metrics of a run that continues after the given step, 0 for a run from the start: lines of
// later steps and a torn last line are cut off, so that in the end the file is that of a run without interruption.
// measured says whether the run had evaluated after that step; if not it will, and a line of that is cut off too.
func OpenMetrics(path string, step int, measured bool) (*MetricsWriter, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	keep := 0
	err = eachLine(path, data, func(line MetricsLine, end int) bool {
		if line.Step > step || line.Step == step && line.Eval != nil && !measured {
			return false
		}
		keep = end
		return true
	})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(keep)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &MetricsWriter{f}, nil
}

// WriteStep appends a step. A number that is not finite is an error: JSON has none.
func (w *MetricsWriter) WriteStep(m StepMetrics) error { return w.write(m.Step, m) }

// WriteEval appends the result of an evaluation after so many steps.
func (w *MetricsWriter) WriteEval(step int, result any) error {
	return w.write(step, struct {
		Step int `json:"step"`
		Eval any `json:"eval"`
	}{step, result})
}

func (w *MetricsWriter) write(step int, line any) error {
	data, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("%s: metrics of step %d: %w", w.f.Name(), step, err)
	}
	if _, err = w.f.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("%w\nfree space or mend the disk, then resume", err)
	}
	return nil
}

// Close closes the file.
func (w *MetricsWriter) Close() error { return w.f.Close() }

// ReadMetrics reads metrics.jsonl, also of a run that is under way: a torn last line is left out.
func ReadMetrics(path string) ([]MetricsLine, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var lines []MetricsLine
	err = eachLine(path, data, func(line MetricsLine, _ int) bool {
		lines = append(lines, line)
		return true
	})
	return lines, err
}

// eachLine calls visit with each complete line and the offset of its end, until it returns false.
func eachLine(path string, data []byte, visit func(line MetricsLine, end int) bool) error {
	start := 0
	for number := 1; ; number++ {
		length := bytes.IndexByte(data[start:], '\n')
		if length < 0 {
			return nil
		}
		var line MetricsLine
		if err := json.Unmarshal(data[start:start+length], &line); err != nil || line.Step < 0 {
			if err == nil {
				err = fmt.Errorf("step %d", line.Step)
			}
			return fmt.Errorf("%s:%d: not a line of metrics: %w\ndelete the line, or restore the file", path, number, err)
		}
		start += length + 1
		if !visit(line, start) {
			return nil
		}
	}
}
