package train

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func toyRun(t *testing.T, dir string) *RunFolder {
	t.Helper()
	cfg, err := Parse("", nil)
	if err != nil {
		t.Fatal(err)
	}
	info := NewRunInfo()
	info.Backend, info.DataDigests = "cpu, two threads", map[string]string{"toy": "sha256:1"}
	r, err := CreateRun(dir, cfg, info)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRunFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs", "a")
	r := toyRun(t, dir)
	if info, err := ReadRunInfo(dir); err != nil || info.State != RunRunning || info.Go != runtime.Version() {
		t.Errorf("run.json at the start: %+v, %v", info, err)
	}
	if !RunLocked(dir) {
		t.Error("not locked")
	}
	if _, err := OpenRun(dir); err == nil || err.Error() != dir+": another process works on this run\nwait for it, stop it, or choose another --out" {
		t.Errorf("opened twice: %v", err)
	}
	r.Info.Results = map[string]any{"acc": 0.5}
	if err := errors.Join(r.Finish(RunFailed, errors.New("loss is NaN\nlower train.lr")), r.Close()); err != nil {
		t.Fatal(err)
	}
	if RunLocked(dir) {
		t.Error("locked after Close")
	}

	again, err := OpenRun(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Config, again.Config); diff != "" {
		t.Errorf("config: -written +read\n%s", diff)
	}
	if diff := cmp.Diff(r.Info, again.Info); diff != "" {
		t.Errorf("run.json: -written +read\n%s", diff)
	}
	before := read(t, r.ConfigPath()) + read(t, filepath.Join(dir, "run.json"))
	changed := again.Config
	changed.Train.Seed = 9
	checkUsagePrefix(t, again.Resume(changed), "train.seed is 9, but the run to be resumed has 0\n")
	if after := read(t, r.ConfigPath()) + read(t, filepath.Join(dir, "run.json")); after != before {
		t.Errorf("a refused resume changed the folder:\n%s", after)
	}
	changed = again.Config
	changed.Threads = 3
	if err := again.Resume(changed); err != nil {
		t.Fatal(err)
	}
	if got, err := Parse("", []byte(read(t, r.ConfigPath()))); err != nil || got.Threads != 3 {
		t.Errorf("config.yaml after Resume: threads %d, %v", got.Threads, err)
	}
	if i := again.Info; i.State != RunRunning || i.Error != "" || i.Finished != "" || len(i.Resumed) != 1 || i.Started == "" {
		t.Errorf("run.json after Resume: %+v", i)
	}
	if err := errors.Join(again.Finish(RunDone, nil), again.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestCreateRunRefuses(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "a")
	if err := toyRun(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultToy()
	checkUsagePrefix(t, second(CreateRun(dir, cfg, NewRunInfo())), dir+": already exists\ncontinue that run with --resume, or choose another --out")
	other := filepath.Join(parent, "other")
	if err := os.Mkdir(other, 0o777); err != nil {
		t.Fatal(err)
	}
	checkUsagePrefix(t, second(CreateRun(other, cfg, NewRunInfo())), other+": already exists; expected a new folder\nchoose another --out, or move it away")
	checkUsagePrefix(t, second(OpenRun(other)), other+": no run to resume: there is no config.yaml\n")
	checkUsagePrefix(t, second(OpenRun(filepath.Join(parent, "nowhere"))), filepath.Join(parent, "nowhere")+": no run to resume: ")

	info := NewRunInfo()
	info.Results = math.NaN() // JSON has none: the folder cannot be written
	if _, err := CreateRun(filepath.Join(parent, "b"), cfg, info); err == nil {
		t.Error("no error for results that cannot be written")
	}
	names, err := filepath.Glob(filepath.Join(parent, "*"))
	hidden, err2 := filepath.Glob(filepath.Join(parent, ".*"))
	if want := []string{dir, other}; err != nil || err2 != nil || !cmp.Equal(append(names, hidden...), want) {
		t.Errorf("in the folder of the runs: %v %v, want %v", names, hidden, want)
	}
}

func TestOpenRunBroken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	r := toyRun(t, dir)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	good := read(t, r.ConfigPath())
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write(r.ConfigPath(), strings.Replace(good, "lr:", "rl:", 1))
	checkUsagePrefix(t, second(OpenRun(dir)), r.ConfigPath()+":")
	write(r.ConfigPath(), good)
	write(filepath.Join(dir, "run.json"), `{"state": 3}`)
	if _, err := OpenRun(dir); err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, "run.json")+": not a run's description: ") {
		t.Errorf("broken run.json: %v", err)
	}
	if RunLocked(dir) {
		t.Error("a run that could not be opened is locked")
	}
	if RunLocked(filepath.Dir(dir)) {
		t.Error("a folder that is no run is locked")
	}
}

func TestRunName(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		path, file string
		tasks      []string
		want       string
	}{
		{"", "", []string{"toy"}, "runs/tiny-toy-20260102-030405"},
		{"/m/SmolLM2.Q4_1.gguf", "", []string{"arc_easy=/x/y.json", "boolq"}, "runs/SmolLM2.Q4_1-arc_easy+boolq-20260102-030405"},
		{"models/llama/", "../my file.jsonl", nil, "runs/llama-my-file-20260102-030405"},
		{"..", "", []string{"../../etc"}, "runs/x-etc-20260102-030405"},
		{"a\x1b[31m$(b)", "/", nil, "runs/a--31m--b-x-20260102-030405"},
		{strings.Repeat("é", 500), "", []string{"t"}, "runs/" + strings.Repeat("é", 60) + "-t-20260102-030405"},
	} {
		cfg := Default()
		cfg.Model.Path, cfg.Data.File, cfg.Data.Tasks = test.path, test.file, test.tasks
		if got := filepath.ToSlash(RunName(cfg, now)); got != test.want {
			t.Errorf("%q, %q, %v: got %q, want %q", test.path, test.file, test.tasks, got, test.want)
		}
	}
}

func TestRunInfoNamesTheMachine(t *testing.T) {
	data, err := json.Marshal(NewRunInfo())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"state":"running"`, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in %s", want, data)
		}
	}
}

func checkUsagePrefix(t *testing.T, err error, want string) {
	t.Helper()
	var u UsageError
	if !errors.As(err, &u) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got  %q\nwant a UsageError %q…", err, want)
	}
}
