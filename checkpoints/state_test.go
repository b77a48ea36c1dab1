package checkpoints

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func stateAt(step int) State {
	fill := byte(step)
	return State{
		Step: step,
		Tensors: []Tensor{
			{Name: "adapter", Type: F32, Shape: []int{3, 5}, Data: bytes.Repeat([]byte{fill}, 60)},
			{Name: "moment", Type: F64, Shape: []int{7, 2}, Data: bytes.Repeat([]byte{fill + 1}, 112)},
		},
		Meta: fmt.Appendf(nil, `{"step":%d,"seed":18446744073709551615,"text":"<é\u2028>"}`, step),
	}
}

func save(t *testing.T, dir string, steps ...int) {
	t.Helper()
	for _, step := range steps {
		if err := SaveState(dir, stateAt(step)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantState(t *testing.T, got State, step int) {
	t.Helper()
	want := stateAt(step)
	if got.Step != step {
		t.Errorf("step: got %d, want %d", got.Step, step)
	}
	if !bytes.Equal(got.Meta, want.Meta) {
		t.Errorf("meta: got %s, want %s", got.Meta, want.Meta)
	}
	sameTensors(t, got.Tensors, want.Tensors)
}

func TestStateRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "checkpoints")
	if l, err := LatestState(dir); !errors.Is(err, ErrNoState) {
		t.Errorf("no folder: got %+v, %v; want ErrNoState", l, err)
	}
	save(t, dir, 0, 9, 10)
	l, err := LatestState(dir)
	if err != nil || len(l.Skipped) > 0 || l.Path != filepath.Join(dir, "step-10") {
		t.Fatalf("got %s, skipped %v, %v; want step-10", l.Path, l.Skipped, err)
	}
	wantState(t, l.State, 10)
	s, err := LoadState(filepath.Join(dir, "step-9"))
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 9)
	if err := SaveState(dir, stateAt(9)); !errors.Is(err, ErrExists) {
		t.Errorf("step-9 again: got %v, want ErrExists", err)
	}
	wantNames(t, "at the end", dir, "step-0", "step-10", "step-9")
}

func TestStateMetaMayBeAnyJSON(t *testing.T) {
	for _, meta := range []string{"null", "1e400", `"<&>"`, "[]", `{"a":{"b":[1,{"c":null}]}}`} {
		dir := t.TempDir()
		s := stateAt(1)
		s.Meta = json.RawMessage(meta)
		if err := SaveState(dir, s); err != nil {
			t.Fatalf("%s: %v", meta, err)
		}
		if l, err := LatestState(dir); err != nil || string(l.Meta) != meta {
			t.Errorf("meta %s came back as %s, %v", meta, l.Meta, err)
		}
	}
}

func TestSaveStateRefusesAndLeavesNothing(t *testing.T) {
	for name, change := range map[string]func(*State){
		"negative step": func(s *State) { s.Step = -1 },
		"no tensors":    func(s *State) { s.Tensors = nil },
		"bytes missing": func(s *State) { s.Tensors[0].Data = nil },
		"no JSON":       func(s *State) { s.Meta = json.RawMessage("{") },
	} {
		dir, s := t.TempDir(), stateAt(1)
		change(&s)
		if err := SaveState(dir, s); err == nil {
			t.Errorf("%s: saved", name)
		}
		wantNames(t, name, dir)
	}
}

func TestLatestStateSkipsDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(step string) error
		want   string
	}{
		"tensors missing":  {func(d string) error { return os.Remove(filepath.Join(d, stateTensors)) }, "state.safetensors: no such file"},
		"header missing":   {func(d string) error { return os.Remove(filepath.Join(d, stateJSON)) }, "state.json: no such file"},
		"tensors cut":      {func(d string) error { return os.Truncate(filepath.Join(d, stateTensors), 100) }, "damaged: its 100 bytes"},
		"tensors empty":    {func(d string) error { return os.Truncate(filepath.Join(d, stateTensors), 0) }, "damaged: its 0 bytes"},
		"header empty":     {func(d string) error { return os.Truncate(filepath.Join(d, stateJSON), 0) }, "state.json:1:1: unexpected end"},
		"a bit of tensors": {flip(stateTensors, -1), "another checksum than state.json says"},
		"other meta":       {swap(stateJSON, `"seed": 1`, `"seed": 2`), "its meta has another checksum"},
		"other version":    {swap(stateJSON, `"version": 1`, `"version": 2`), `format "lora-train-state" version 2, this program reads format "lora-train-state" version 1`},
		"other format":     {swap(stateJSON, `"lora-train-state"`, `"else"`), `format "else" version 1`},
		"unknown key":      {swap(stateJSON, `"version": 1`, `"version": 1, "x": 1`), `unknown key "x"`},
		"key missing":      {swap(stateJSON, `"meta_sha256"`, `"meta_sha"`), `unknown key "meta_sha"`},
		"key twice":        {swap(stateJSON, `"step": 7,`, `"step": 7, "step": 7,`), `key "step" is there twice`},
		"other step":       {swap(stateJSON, `"step": 7,`, `"step": 8,`), "holds step 8"},
		"negative step":    {swap(stateJSON, `"step": 7,`, `"step": -7,`), "step is -7"},
		"another tensor":   {swap(stateJSON, `"adapter"`, `"adapted"`), "its tensors are not those that state.json names"},
	} {
		dir := t.TempDir()
		save(t, dir, 5, 7)
		if err := c.damage(filepath.Join(dir, "step-7")); err != nil {
			t.Fatal(err)
		}
		l, err := LatestState(dir)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantState(t, l.State, 5)
		if len(l.Skipped) != 1 || !strings.Contains(l.Skipped[0].Error(), c.want) || !strings.Contains(l.Skipped[0].Error(), "step-7") {
			t.Errorf("%s: skipped %v, want step-7 and %q", name, l.Skipped, c.want)
		}
		if name == "other step" {
			continue // complete in itself, so it is not ours to replace
		}
		save(t, dir, 7) // the resumed run comes by again
		if l, err := LatestState(dir); err != nil || len(l.Skipped) > 0 || l.Step != 7 {
			t.Errorf("%s: saved again: step %d, skipped %v, %v", name, l.Step, l.Skipped, err)
		}
		wantNames(t, name, dir, "step-5", "step-7")
	}
}

func flip(file string, at int) func(string) error {
	return func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		data[(at+len(data))%len(data)] ^= 1
		return os.WriteFile(filepath.Join(dir, file), data, 0o666)
	}
}

func swap(file, from, to string) func(string) error {
	return func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if !bytes.Contains(data, []byte(from)) {
			return fmt.Errorf("%s has no %s:\n%s", file, from, data)
		}
		return os.WriteFile(filepath.Join(dir, file), bytes.Replace(data, []byte(from), []byte(to), 1), 0o666)
	}
}

// No single flipped byte of a checkpoint goes unnoticed, wherever it is.
func TestEveryFlippedByteIsSeen(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, 3)
	step := filepath.Join(dir, "step-3")
	for _, file := range []string{stateTensors, stateJSON} {
		path := filepath.Join(step, file)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range whole {
			if file == stateJSON && (b == ' ' || b == '\n') {
				continue // white space may be any
			}
			damaged := slices.Clone(whole)
			damaged[i] ^= 1
			if err := os.WriteFile(path, damaged, 0o666); err != nil {
				t.Fatal(err)
			}
			s, err := LoadState(step)
			if err == nil && s.Step == 3 { // another step is seen by LatestState
				t.Errorf("%s: byte %d (%q) flipped and loaded", file, i, b)
			}
		}
		if err := os.WriteFile(path, whole, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLatestStateWithNoneComplete(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"step-1", "step-2", "step-03", "step--4", "step-", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	_, err := LatestState(dir)
	if err == nil || errors.Is(err, ErrNoState) {
		t.Fatalf("got %v, want an error that is not ErrNoState: a run was there", err)
	}
	for _, want := range []string{"none of 2 checkpoints is complete", "step-1: ", "step-2: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q in it", err, want)
		}
	}
}

func TestReapKeeps(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, 1, 2, 3, 4)
	if err := Reap(dir, 4, 2, 99); err != nil {
		t.Fatal(err)
	}
	wantNames(t, "after Reap", dir, "step-2", "step-4")
	if err := Reap(filepath.Join(dir, "absent")); err == nil {
		t.Error("reaping a folder that is not there succeeded")
	}
}
