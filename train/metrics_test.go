package train

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeRun writes what steps after from up to to write: an evaluation every second step.
func writeRun(t *testing.T, path string, from, to int) {
	t.Helper()
	w, err := OpenMetrics(path, from, true)
	if err != nil {
		t.Fatal(err)
	}
	for step := from + 1; step <= to; step++ {
		if err := w.WriteStep(StepMetrics{Step: step, Loss: 1 / float64(step), Loads: []float64{0.5, 0.5}}); err != nil {
			t.Fatal(err)
		}
		if step%2 == 0 {
			if err := w.WriteEval(step, map[string]int{"items": step}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMetricsLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.jsonl")
	w, err := OpenMetrics(path, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	m := StepMetrics{1, 0.5, 2.001, 2, 1, 0.25, 1e-3, 100, 7, []float64{0.75, 0.25}, 2, 50}
	if err := w.WriteStep(m); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteEval(1, []string{"x"}); err != nil {
		t.Fatal(err)
	}
	const want = `{"step":1,"epoch":0.5,"loss":2.001,"ce":2,"balance":1,"grad_norm":0.25,"lr":0.001,"tokens":100,"targets":7,` +
		`"loads":[0.75,0.25],"seconds":2,"tokens_per_second":50}` + "\n" + `{"step":1,"eval":["x"]}` + "\n"
	if got := read(t, path); got != want { // before Close: nothing waits in a buffer
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m.Step, m.GradNorm = 2, math.Inf(1)
	if err := w.WriteStep(m); err == nil || !strings.Contains(err.Error(), "step 2") {
		t.Errorf("infinite norm: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lines, err := ReadMetrics(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) != 2 || lines[0].CE != 2 || lines[0].Eval != nil || lines[1].Step != 1 || string(lines[1].Eval) != `["x"]` {
		t.Errorf("read back %+v", lines)
	}
}

// A run that is killed after any byte and resumed from any step that it completed leaves the same file.
func TestMetricsAfterAnyInterruption(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "whole.jsonl")
	writeRun(t, path, 0, 4)
	whole := read(t, path)
	ends := []int{0} // where a step's last line ends
	for step := 1; step <= 4; step++ {
		part := filepath.Join(dir, "part.jsonl")
		if err := os.RemoveAll(part); err != nil {
			t.Fatal(err)
		}
		writeRun(t, part, 0, step)
		ends = append(ends, len(read(t, part)))
	}
	for cut := range len(whole) + 1 {
		for step, end := range ends {
			if end > cut {
				break
			}
			path := filepath.Join(dir, "cut.jsonl")
			if err := os.WriteFile(path, []byte(whole[:cut]), 0o666); err != nil {
				t.Fatal(err)
			}
			writeRun(t, path, step, 4)
			if got := read(t, path); got != whole {
				t.Fatalf("killed after %d bytes, resumed after step %d: got\n%s\nwant\n%s", cut, step, got, whole)
			}
		}
	}
}

func TestMetricsTornAndBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.jsonl")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write("{\"step\":1}\n{\"step\":2}\n{\"st")
	if lines, err := ReadMetrics(path); err != nil || len(lines) != 2 {
		t.Errorf("torn last line: got %v, %v", lines, err)
	}
	for _, broken := range []string{"{\"step\":1}\n{\"st\n{\"step\":2}\n", "{\"step\":1}\n{\"step\":-1}\n", "{\"step\":1}\n\n"} {
		write(broken)
		if _, err := ReadMetrics(path); err == nil || !strings.HasPrefix(err.Error(), path+":2: not a line of metrics: ") {
			t.Errorf("reading %q: %v", broken, err)
		}
		if _, err := OpenMetrics(path, 9, true); err == nil {
			t.Errorf("no error opening %q", broken)
		}
		if got := read(t, path); got != broken {
			t.Errorf("a file that was refused was changed to %q", got)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
