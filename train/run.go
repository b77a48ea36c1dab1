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
	Steps        int             `json:"steps"`                       // of the whole run
	Resumed      int             `json:"resumed_from_step,omitempty"` // the steps that earlier processes took
	TrainSeconds float64         `json:"train_seconds"`               // of this process, with the evaluations on the way
	EvalSeconds  float64         `json:"eval_seconds"`                // of base and adapter at the end
	Exported     int             `json:"exported_step"`               // the checkpoint that was measured and exported
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
	state   progressState // its step is the one launched last
	began   int           // the step that this process began after
	saved   []byte        // the meta of the checkpoint written or read last
	loads   []float64
	memory  memory // planned

	pending  *launched // the last step, until its result was read
	reported time.Time // when the result of a step was read last
}

// Prepared is a run that could start: everything is read and placed, nothing is written.
type Prepared struct{ r *run }

// Prepare reads what cfg names and checks it against the base.
func Prepare(cfg Config, o RunOptions) (*Prepared, error) {
	if err := o.refuse(); err != nil {
		return nil, err
	}
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
	if err := r.checkWeights(); err != nil {
		return nil, err
	}
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
		Recompute: cfg.Train.Recompute,
	})
	return &Prepared{r}, err
}

// refuse is the error of a folder that the run cannot have, before anything is computed for it.
func (o RunOptions) refuse() error {
	if o.Resume {
		if was, err := ReadRunInfo(o.Dir); err == nil { // what is wrong with it otherwise is seen when it is opened
			return refuseDone(o.Dir, was)
		}
		return nil
	}
	if o.Dir != "" {
		if _, err := os.Lstat(o.Dir); err == nil {
			return refuseExistingRun(o.Dir)
		}
	}
	return nil
}

func refuseDone(dir string, was RunInfo) error {
	if was.State == RunDone {
		return usage(dir, "this run is complete", "start another with a new --out, and to train longer with --set train.epochs=…")
	}
	return nil
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
	if err := r.reserve(); err != nil {
		return nil, err
	}
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
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		err = errors.Join(fmt.Errorf("stopped at step %d of %d; %s is saved\ngo on with lora-train run --resume --out %s", r.state.Step, r.total, r.folder.Dir, r.folder.Dir),
			r.folder.Finish(RunInterrupted, nil))
	default:
		// The cause matters more than that it could not be noted down.
		_ = r.folder.Finish(RunFailed, err)
	}
	return out, err
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
	out.TrainSeconds, out.Stopped, out.Resumed = trained, stopped, r.began
	return out, nil
}

// open makes the run's folder, or takes up the one that is there.
func (r *run) open() (err error) {
	info := NewRunInfo()
	info.Backend, info.Model, info.ModelDigest, info.DataDigests = r.Backend.String(), r.Base.Name, r.Base.Digest(), r.data.digests
	if r.Dir == "" {
		r.Dir = RunName(r.cfg, time.Now())
	}
	if r.Resume {
		err = r.reopen(info)
	} else {
		r.folder, err = CreateRun(r.Dir, r.cfg, info)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.folder.Close() //nolint:errcheck // the first error tells more
		}
	}()
	if r.metrics, err = OpenMetrics(r.folder.MetricsPath(), r.state.Step, r.state.Measured == r.state.Step); err != nil {
		if !r.Resume {
			err = errors.Join(err, r.folder.Finish(RunFailed, err))
		}
		return err
	}
	if !r.Resume {
		return nil
	}
	if err := r.folder.Resume(r.cfg); err != nil {
		return errors.Join(err, r.metrics.Close())
	}
	// What an export that was interrupted later left is made again.
	return os.RemoveAll(r.folder.ExportDir())
}

// reopen takes up a run where its last checkpoint left it, if model, data and settings are still those it began with. It changes
// nothing in the folder.
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
	if err := refuseDone(r.Dir, was); err != nil {
		return err
	}
	if err := CheckResume(r.folder.Config, r.cfg); err != nil {
		return err
	}
	if err := (inputs{ModelDigest: was.ModelDigest, DataDigests: was.DataDigests}).check(r.Dir, r.inputs(), now.Model); err != nil {
		return err
	}
	return r.load()
}
