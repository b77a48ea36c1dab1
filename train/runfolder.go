package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"github.com/gofrs/flock"

	"loratrain/checkpoints"
)

// RunState is how far a run got.
type RunState string

// A run that was killed still says running; that nobody holds its lock tells it from one under way.
const (
	RunRunning     RunState = "running"
	RunDone        RunState = "done"
	RunFailed      RunState = "failed"
	RunInterrupted RunState = "interrupted" // stopped by a signal, after saving
)

// RunInfo is run.json: what ran, on what, and how it ended.
type RunInfo struct {
	State    RunState `json:"state"`
	Error    string   `json:"error,omitempty"` // why it failed
	Started  string   `json:"started"`         // RFC 3339
	Resumed  []string `json:"resumed,omitempty"`
	Finished string   `json:"finished,omitempty"`

	Program  string `json:"program"` // version and revision
	Go       string `json:"go"`
	Platform string `json:"platform"` // operating system/architecture
	CPUs     int    `json:"cpus"`
	Backend  string `json:"backend"` // what computed, for people

	Model       string            `json:"model"`        // path, or the embedded model's name
	ModelDigest string            `json:"model_digest"` // as checkpoints and exports have it
	DataDigests map[string]string `json:"data_digests"` // by file or task

	Results any `json:"results,omitempty"` // of the last evaluation
}

// NewRunInfo describes this program and machine, and a run that begins now.
func NewRunInfo() RunInfo {
	return RunInfo{
		State: RunRunning, Started: timestamp(), Program: programVersion(), Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(),
	}
}

func timestamp() string { return time.Now().Format(time.RFC3339) }

func programVersion() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := build.Main.Version
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision" && !strings.Contains(version, s.Value[:min(12, len(s.Value))]):
			version += " " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true" && !strings.Contains(version, "dirty"):
			version += " (modified)"
		}
	}
	return version
}

// RunFolder is the folder of a run that this process works on; no other process does.
type RunFolder struct {
	Dir    string
	Config Config  // config.yaml
	Info   RunInfo // run.json; change it, then call SaveInfo
	lock   *flock.Flock
}

// The layout of a run's folder.
const (
	configFile = "config.yaml"
	infoFile   = "run.json"
	lockFile   = "run.lock"
)

// ConfigPath, MetricsPath, CheckpointsDir and ExportDir are where things are in a run's folder.
func (r *RunFolder) ConfigPath() string     { return filepath.Join(r.Dir, configFile) }
func (r *RunFolder) MetricsPath() string    { return filepath.Join(r.Dir, "metrics.jsonl") }
func (r *RunFolder) CheckpointsDir() string { return filepath.Join(r.Dir, "checkpoints") }
func (r *RunFolder) ExportDir() string      { return filepath.Join(r.Dir, "export") }

// RunName is a folder for a run without a name: runs/<model>-<task>-<time>. Characters that a shell or a file system
// could take for something else become "-". An empty model is the embedded one.
func RunName(cfg Config, now time.Time) string {
	modelName := strings.TrimSuffix(filepath.Base(filepath.Clean(cfg.Model.Path)), ".gguf")
	if cfg.Model.Path == "" {
		modelName = "tiny"
	}
	var tasks []string
	for _, task := range cfg.Data.Tasks {
		name, _ := splitTask(task)
		tasks = append(tasks, name)
	}
	if f := cfg.Data.File; f != "" {
		tasks = append(tasks, strings.TrimSuffix(filepath.Base(f), filepath.Ext(f)))
	}
	return filepath.Join("runs", fmt.Sprintf("%s-%s-%s",
		safeName(modelName), safeName(strings.Join(tasks, "+")), now.Format("20060102-150405")))
}

func safeName(s string) string {
	const most = 60
	s = strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._+", r) {
			return r
		}
		return '-'
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most])
	}
	if s = strings.Trim(s, "-."); s == "" {
		return "x"
	}
	return s
}

// CreateRun makes a run's folder with config.yaml and run.json, complete or not at all, and locks it. A folder that
// is there already is refused with a UsageError.
func CreateRun(dir string, cfg Config, info RunInfo) (*RunFolder, error) {
	folder, err := checkpoints.NewFolder(dir)
	if errors.Is(err, checkpoints.ErrExists) {
		return nil, refuseExistingRun(dir)
	}
	if err != nil {
		return nil, err
	}
	defer folder.Abort() //nolint:errcheck // does nothing after Commit; before it there is another error to report
	data, err := info.encode()
	if err != nil {
		return nil, err
	}
	// Locked before it appears under its name, where another process could resume it.
	lock, err := lockRun(folder.Path())
	if err != nil {
		return nil, err
	}
	err = errors.Join(folder.WriteFile(configFile, cfg.Marshal()), folder.WriteFile(infoFile, data))
	if err == nil {
		err = folder.Commit()
	}
	if errors.Is(err, checkpoints.ErrExists) {
		err = refuseExistingRun(dir)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &RunFolder{Dir: dir, Config: cfg, Info: info, lock: lock}, nil
}

func refuseExistingRun(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, configFile)); err != nil {
		return usage(dir, "already exists; expected a new folder", "choose another --out, or move it away")
	}
	return usage(dir, "already exists", "continue that run with --resume, or choose another --out")
}

// OpenRun opens and locks the folder of a run that is to be resumed, with its config. It changes nothing.
func OpenRun(dir string) (*RunFolder, error) {
	r := &RunFolder{Dir: dir}
	data, err := os.ReadFile(r.ConfigPath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, usage(dir, "no run to resume: there is no "+configFile, "check the folder's name, or start without --resume")
	case err != nil:
		return nil, err
	}
	if r.Config, err = Parse(r.ConfigPath(), data); err != nil {
		return nil, err
	}
	if r.Info, err = ReadRunInfo(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w\nrestore the file, or start another run", filepath.Join(dir, infoFile), fs.ErrNotExist)
	} else if err != nil {
		return nil, err
	}
	if r.lock, err = lockRun(dir); err != nil {
		return nil, err
	}
	return r, nil
}

// Resume takes cfg, which may differ from r.Config in what CheckResume allows, and notes in run.json that the run goes
// on.
func (r *RunFolder) Resume(cfg Config) error {
	if err := CheckResume(r.Config, cfg); err != nil {
		return err
	}
	if err := checkpoints.WriteFile(r.ConfigPath(), cfg.Marshal()); err != nil {
		return err
	}
	r.Config = cfg
	r.Info.State, r.Info.Error, r.Info.Finished = RunRunning, "", ""
	r.Info.Resumed = append(r.Info.Resumed, timestamp())
	return r.SaveInfo()
}

// Finish writes to run.json how the run ended: done without an error, else failed or interrupted.
func (r *RunFolder) Finish(state RunState, cause error) error {
	r.Info.State, r.Info.Error, r.Info.Finished = state, "", timestamp()
	if cause != nil {
		r.Info.Error = cause.Error()
	}
	return r.SaveInfo()
}

// SaveInfo replaces run.json by r.Info.
func (r *RunFolder) SaveInfo() error {
	data, err := r.Info.encode()
	if err != nil {
		return err
	}
	return checkpoints.WriteFile(filepath.Join(r.Dir, infoFile), data)
}

// Close lets other processes have the run.
func (r *RunFolder) Close() error { return r.lock.Close() }

func (i RunInfo) encode() ([]byte, error) {
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", infoFile, err)
	}
	return append(data, '\n'), nil
}

// ReadRunInfo reads the run.json of a run, also of one under way.
func ReadRunInfo(dir string) (RunInfo, error) {
	path := filepath.Join(dir, infoFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return RunInfo{}, err
	}
	var info RunInfo
	if err := json.Unmarshal(data, &info); err != nil {
		return RunInfo{}, fmt.Errorf("%s: not a run's description: %w\nrestore the file, or start another run", path, err)
	}
	return info, nil
}

// RunLocked says whether a process works on the run in dir.
func RunLocked(dir string) bool {
	lock := flock.New(filepath.Join(dir, lockFile), flock.SetFlag(os.O_RDONLY)) // looking makes no file
	free, err := lock.TryRLock()
	_ = lock.Close()
	return err == nil && !free
}

func lockRun(dir string) (*flock.Flock, error) {
	lock := flock.New(filepath.Join(dir, lockFile))
	switch free, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("%s: cannot be locked: %w\nis the folder writable, and on a file system with locks?", dir, err)
	case !free:
		return nil, fmt.Errorf("%s: another process works on this run\nwait for it, stop it, or choose another --out", dir)
	}
	return lock, nil
}
