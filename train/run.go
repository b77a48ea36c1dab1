package train

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"loratrain/datasets"
	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
)

// RunOptions is what a run needs besides its configuration.
type RunOptions struct {
	Dir      string // the run's folder; empty: a name made of model, task and time
	Resume   bool   // go on with the run in Dir
	Base     *model.Base
	Backend  kernels.Backend
	Catalog  datasets.Catalog
	Progress Progress
}

// Outcome is what a run came to.
type Outcome struct {
	Dir          string          `json:"dir"`
	Steps        int             `json:"steps"`
	TrainSeconds float64         `json:"train_seconds"` // of this process
	EvalSeconds  float64         `json:"eval_seconds"`
	Exported     int             `json:"exported_step"` // the checkpoint that was measured and exported
	Stopped      bool            `json:"stopped_early,omitempty"`
	Base         []Score         `json:"base"`
	Adapter      []Score         `json:"adapter"`
	Loads        []float64       `json:"loads,omitempty"` // of the last step
	Agreement    model.Agreement `json:"agreement"`
	Export       string          `json:"export"`
}

// run is a run under way.
type run struct {
	RunOptions
	cfg     Config
	data    *runData
	sampler *datasets.Sampler
	total   int // steps
	bank    *model.Bank
	placed  *model.Placed
	stepper *Stepper
	folder  *RunFolder
	metrics *MetricsWriter
	state   progressState
	loads   []float64
}

// Prepared is a run that could start: everything is read and placed, nothing is written.
type Prepared struct{ r *run }

// Prepare reads what cfg names and checks it against the base.
func Prepare(cfg Config, o RunOptions) (*Prepared, error) {
	cfg.Backend = o.Backend.Name()
	r := &run{RunOptions: o, cfg: cfg}
	var err error
	if r.data, err = loadData(cfg, o.Base, o.Catalog); err != nil {
		return nil, err
	}
	if r.sampler, err = datasets.NewSampler(len(r.data.seqs), cfg.Train.Batch, uint64(cfg.Train.Seed)); err != nil {
		return nil, err
	}
	r.total = cfg.Train.MaxSteps
	if r.total == 0 {
		r.total = cfg.Train.Epochs * r.sampler.StepsPerEpoch()
	}
	spec, err := adapterSpec(cfg.Adapter)
	if err != nil {
		return nil, err
	}
	r.bank = model.NewBank(o.Base.Arch, spec)
	r.placed, err = model.Place(o.Backend, o.Base.Arch, o.Base.Weights, r.data.encoder.MaxLength)
	if err != nil {
		return nil, err
	}
	start := kernels.NewHost(o.Backend.Param(), r.bank.Size())
	r.bank.Init(start, uint64(cfg.Train.Seed))
	r.stepper, err = NewStepper(r.placed, r.bank, start, Objective{
		Balance: cfg.Adapter.Balance, Dropout: cfg.Adapter.Dropout, Seed: int32(cfg.Train.Seed),
		AdamW: kernels.AdamW{
			Beta1: cfg.Train.Beta1, Beta2: cfg.Train.Beta2, Eps: cfg.Train.Eps, Decay: cfg.Train.WeightDecay, Clip: cfg.Train.Clip,
		},
	})
	return &Prepared{r}, err
}

// adapterSpec is what the configuration asks for, in the model's terms.
func adapterSpec(c AdapterConfig) (model.AdapterSpec, error) {
	g, err := router.Parse(c.Granularity)
	s := model.AdapterSpec{Granularity: g, Experts: c.Experts, Rank: c.Rank, Shared: c.SharedRank, Alpha: c.Alpha}
	for _, name := range c.Targets {
		t, bad := model.ParseTarget(name)
		if err = errors.Join(err, bad); err == nil {
			s.Targets = append(s.Targets, t)
		}
	}
	return s, err
}

// Run trains, measures and exports. A context that ends makes it save and stop with the context's error.
func (p *Prepared) Run(ctx context.Context) (*Outcome, error) {
	r := p.r
	if err := r.open(); err != nil {
		return nil, err
	}
	defer r.folder.Close()  //nolint:errcheck // closing a lock
	defer r.metrics.Close() //nolint:errcheck // every line is written when it is made
	out, err := r.run(ctx)
	switch {
	case err == nil:
		r.folder.Info.Results = out
		err = r.folder.Finish(RunDone, nil)
	case ctx.Err() != nil:
		err = errors.Join(fmt.Errorf("stopped at step %d of %d; %s is saved\ngo on with --resume --out %s", r.state.Step, r.total, r.folder.Dir, r.folder.Dir),
			r.folder.Finish(RunInterrupted, nil))
	default:
		// The cause matters more than that it could not be noted down.
		_ = r.folder.Finish(RunFailed, err)
	}
	return out, err
}

// Dir is the run's folder once it runs.
func (p *Prepared) Dir() string {
	if p.r.folder == nil {
		return ""
	}
	return p.r.folder.Dir
}

func (r *run) run(ctx context.Context) (*Outcome, error) {
	started := time.Now()
	stopped, err := r.train(ctx)
	if err != nil {
		return nil, err
	}
	trained := time.Since(started).Seconds()
	out, err := r.finish(ctx)
	if err != nil {
		return nil, err
	}
	out.TrainSeconds, out.Stopped = trained, stopped
	return out, nil
}

// open makes the run's folder, or takes up the one that is there.
func (r *run) open() (err error) {
	info := NewRunInfo()
	info.Backend, info.Model, info.ModelDigest, info.DataDigests = r.Backend.String(), r.Base.Name, r.Base.Digest(), r.data.digests
	if r.Dir == "" {
		r.Dir = RunName(r.cfg, time.Now())
	}
	if !r.Resume {
		if r.folder, err = CreateRun(r.Dir, r.cfg, info); err != nil {
			return err
		}
	} else if err = r.reopen(info); err != nil {
		return err
	}
	r.metrics, err = OpenMetrics(r.folder.MetricsPath(), r.state.Step, r.state.Measured == r.state.Step)
	return err
}

// reopen takes up a run where its last checkpoint left it, if model, data and settings are still those it began with.
func (r *run) reopen(now RunInfo) (err error) {
	if r.folder, err = OpenRun(r.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.folder.Close() //nolint:errcheck // the first error tells more
		}
	}()
	was := r.folder.Info
	if was.State == RunDone {
		return usage(r.Dir, "this run is complete", "start another with a new --out; to train longer, raise train.epochs there")
	}
	if err := CheckResume(r.folder.Config, r.cfg); err != nil {
		return err
	}
	if was.ModelDigest != now.ModelDigest {
		return fmt.Errorf("%s: was trained on %s (%s), this is %s (%s)\nname the same model, or start another run", r.Dir,
			was.Model, was.ModelDigest, now.Model, now.ModelDigest)
	}
	for name, digest := range now.DataDigests {
		if was.DataDigests[name] != digest {
			return fmt.Errorf("%s: the items of %q are not those that the run began with\nbring the file back, or start another run", r.Dir, name)
		}
	}
	if err := r.folder.Resume(r.cfg); err != nil {
		return err
	}
	if err := r.load(); err != nil {
		return err
	}
	// What an export that was interrupted later left is made again.
	return os.RemoveAll(r.folder.ExportDir())
}
