package train

// Config is everything that a user may choose about a run: one YAML file. config_fields.go says of each key what it
// means and which values it takes, in the words that a run's config.yaml has too. Paths are relative to the working
// directory. Make one with [Default], [DefaultToy] or [Parse].
type Config struct {
	Model   ModelConfig
	Data    DataConfig
	Adapter AdapterConfig
	Train   OptimConfig
	Eval    EvalConfig
	Backend string
	Threads int
	Device  int  // of the GPUs
	Float32 bool // on a GPU
}

// ModelConfig is the section "model".
type ModelConfig struct {
	Path string
}

// DataConfig is the section "data".
type DataConfig struct {
	Tasks     []string // "name" or "name=file"
	Dir       string
	Template  string
	File      string
	EvalFile  string
	EOS       string
	MaxLength int // tokens
	Limit     int // items
}

// AdapterConfig is the section "adapter".
type AdapterConfig struct {
	Granularity string
	Experts     int // E
	Rank        int // R
	SharedRank  int
	Alpha       float64
	Targets     []string
	Balance     float64
	Dropout     float64
}

// OptimConfig is the section "train".
type OptimConfig struct {
	Epochs      int
	MaxSteps    int
	Batch       int // sequences a step
	MicroTokens int
	Recompute   bool
	LR          float64
	WarmupRatio float64
	Schedule    string
	WeightDecay float64
	Clip        float64
	Beta1       float64
	Beta2       float64
	Eps         float64
	Seed        int
	EvalEvery   int // steps
	SaveEvery   int // steps
	Patience    int // evaluations
	Metric      string
}

// EvalConfig is the section "eval".
type EvalConfig struct {
	Tasks       []string // as DataConfig.Tasks
	Limit       int      // items
	BatchTokens int
}

// Words that a Config has in more than one place.
const (
	auto = "auto"

	// ToyTask is the name of the embedded task, which needs no file.
	ToyTask = "toy"
	// GranularityNone is plain LoRA: one expert, no gate.
	GranularityNone = "none"

	// MetricAcc, MetricAccNorm and MetricLoss are what the best checkpoint is the best by.
	MetricAcc     = "acc"
	MetricAccNorm = "acc_norm"
	MetricLoss    = "loss"

	templateCloze  = "cloze"
	templateChoice = "choice"
)

// Default is the recommended configuration for a real model. It names neither a model nor data.
func Default() Config {
	return Config{
		Data: DataConfig{Template: templateCloze, EOS: auto, MaxLength: 512},
		Adapter: AdapterConfig{
			Granularity: "token", Experts: 8, Rank: 8, Alpha: 16, Balance: 1e-3,
			Targets: targetNames(),
		},
		Train: OptimConfig{
			Epochs: 1, Batch: 32, MicroTokens: 1024, LR: 1e-3, WarmupRatio: 0.1, Schedule: ScheduleLinear,
			Clip: 1, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, SaveEvery: 50, Metric: auto,
		},
		Eval:    EvalConfig{BatchTokens: 2048},
		Backend: auto,
	}
}

// DefaultToy is the recommended configuration for the embedded model, which learns the embedded task unless another
// is named.
func DefaultToy() Config {
	cfg := Default()
	cfg.Data.MaxLength = 128
	cfg.Adapter.Balance = 0.03 // few words make up most of the questions
	cfg.Train.LR = 2e-3
	return cfg
}

// Resolve fills in what follows from other keys: the tasks of the embedded model and of the evaluation, and what
// "auto" stands for, but for the backend, which depends on the machine. Resolving twice changes nothing. [Parse] does it.
func (c *Config) Resolve() {
	d := &c.Data
	if len(d.Tasks) == 0 && d.File == "" && c.Model.Path == "" {
		d.Tasks = []string{ToyTask}
	}
	if len(c.Eval.Tasks) == 0 {
		c.Eval.Tasks = testSplits(d.Tasks, d.Dir)
	}
	if c.Adapter.Granularity == GranularityNone {
		c.Adapter.Experts = 1
	}
	if d.EOS == auto {
		d.EOS = "false"
		if d.File != "" {
			d.EOS = "true"
		}
	}
	if c.Train.Metric == auto {
		switch {
		case len(c.Eval.Tasks) == 0:
			c.Train.Metric = MetricLoss
		case d.Template == templateCloze:
			c.Train.Metric = MetricAccNorm
		default:
			c.Train.Metric = MetricAcc
		}
	}
}

// LearnEOS says whether the end of the sequence is learned after the answers. The config must be resolved.
func (c *Config) LearnEOS() bool { return c.Data.EOS == "true" }

// testSplits are the tasks whose test split can be found: a file that was named for training says nothing about where
// the test items are, the folder of the benchmarks does.
func testSplits(tasks []string, dir string) []string {
	var out []string
	for _, task := range tasks {
		name, file := splitTask(task)
		if file == "" || dir != "" {
			out = append(out, name)
		}
	}
	return out
}
