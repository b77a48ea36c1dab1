package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"loratrain/datasets"
	"loratrain/datasets/toy"
	"loratrain/train"
)

// runFlags are those of the command run.
type runFlags struct {
	set            []string
	out            string
	backend        string
	device         int
	resume, dryRun bool
	float32        bool
}

func newRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [config.yaml]",
		Short: "Train an adapter, measure it beside its base and export it",
		Long: `Run trains a switch adapter as a YAML file says, measures it and its base, and exports it. Without a file it
trains the embedded model on the embedded task. Interrupted, it saves and stops; --resume goes on from there.`,
		Example: `  lora-train run
  lora-train run --set model.path=SmolLM2-135M-Instruct.Q4_1.gguf --set data.tasks=arc_easy --set data.dir=benchmarks
  lora-train run my.yaml --set train.lr=5e-4 --out runs/second-try
  lora-train run my.yaml --out runs/second-try --resume`,
		Args: func(cmd *cobra.Command, args []string) error { return noArguments(cmd, args[min(1, len(args)):]) },
		RunE: func(cmd *cobra.Command, args []string) error {
			f.override(cmd.Flags())
			return f.run(cmd, args)
		},
	}
	cmd.Flags().StringArrayVar(&f.set, "set", nil, "a setting as key=value, above the file's; may be repeated")
	cmd.Flags().StringVar(&f.out, "out", "", "the run's folder; by default runs/<model>-<task>-<time>")
	cmd.Flags().StringVar(&f.backend, "backend", "", "what computes: cpu, cuda or auto; above the setting backend")
	cmd.Flags().IntVar(&f.device, "device", 0, "which GPU, as nvidia-smi counts; above the setting device")
	cmd.Flags().BoolVar(&f.float32, "float32", false, "compute in float32 on a GPU too, for checks; above the setting float32")
	cmd.Flags().BoolVar(&f.resume, "resume", false, "go on with the run in --out")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be trained and the memory it needs, and write nothing")
	return cmd
}

// override turns the flags that were given and are settings too into such.
func (f *runFlags) override(flags *pflag.FlagSet) {
	for _, key := range []string{"backend", "device", "float32"} {
		if flag := flags.Lookup(key); flag.Changed {
			f.set = append(f.set, key+"="+flag.Value.String())
		}
	}
}

// config reads the configuration: the file's, that of the run that goes on, or the defaults.
func (f *runFlags) config(args []string) (train.Config, error) {
	if f.resume && f.out == "" {
		return train.Config{}, usagef("name the run's folder with --out", "--resume: expected a run to go on with")
	}
	name, path := "defaults", ""
	if len(args) > 0 {
		if path = args[0]; path == "" {
			return train.Config{}, usagef("leave it out to train on the embedded model", "the name of the configuration is empty")
		}
	} else if f.resume {
		path = (&train.RunFolder{Dir: f.out}).ConfigPath()
	}
	if path == "" {
		return train.Parse(name, nil, f.set...)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return train.Config{}, usagef("check the name of the file, or of the run", "%w", located(err))
	}
	return train.Parse(path, data, f.set...)
}

// catalog is where tasks are: in a folder of benchmarks, and in this program.
func catalog(dir string) datasets.Catalog {
	return datasets.Catalog{Dir: dir, Embedded: map[string]fs.FS{train.ToyTask: toy.FS()}}
}

func (f *runFlags) run(cmd *cobra.Command, args []string) error {
	cfg, err := f.config(args)
	if err != nil {
		return err
	}
	backend, err := (compute{cfg.Backend, cfg.Threads, cfg.Device, cfg.Float32}).open(cmd)
	if err != nil {
		return err
	}
	defer backend.Close()
	base, err := openModel(cfg.Model.Path)
	if err != nil {
		return err
	}
	defer base.Close()
	progress := &startClock{Progress: train.NewProgress(cmd.ErrOrStderr(), train.IsTerminal(cmd.ErrOrStderr()), quiet(cmd))}
	defer progress.Close()
	prepared, err := train.Prepare(cfg, train.RunOptions{
		Dir: f.out, Resume: f.resume, Base: base, Backend: backend, Catalog: catalog(cfg.Data.Dir), Progress: progress,
	})
	if err != nil {
		return err
	}
	if f.dryRun || !quiet(cmd) {
		text, err := prepared.Describe()
		if err != nil {
			return err
		}
		if f.dryRun {
			return printText(cmd.OutOrStdout(), text)
		}
		fmt.Fprint(cmd.ErrOrStderr(), text)
	}
	out, err := prepared.Run(cmd.Context())
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := printOutcome(&text, out); err != nil {
		return err
	}
	return printText(cmd.OutOrStdout(), text.String())
}

// startClock says when the first step was done.
type startClock struct {
	train.Progress
	stopped bool
}

func (p *startClock) Step(s train.StepInfo) {
	if !p.stopped {
		p.stopped = true
		p.Log(fmt.Sprintf("first step done %.1f s after start", train.SinceStart().Seconds()))
	}
	p.Progress.Step(s)
}

// printText writes an answer, all of which must arrive.
func printText(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return failf("give it a place that can be written", "standard output: %w", pathless(err))
	}
	return nil
}

// pathless is an error of the operating system without the name of the file.
func pathless(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// printOutcome shows how a run ended.
func printOutcome(w io.Writer, o *train.Outcome) error {
	if len(o.Base) > 0 {
		if err := train.WriteTable(w, o.Base, o.Adapter); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if o.Loads != nil {
		shares := make([]string, len(o.Loads))
		for e, f := range o.Loads {
			shares[e] = fmt.Sprintf("%.0f", 100*f)
		}
		fmt.Fprintf(w, "experts   %s %% of the tokens' choices in the last step\n", strings.Join(shares, " "))
	}
	fmt.Fprintf(w, "trained   %s, measured in %.1f s\n", trainedText(o), o.EvalSeconds)
	fmt.Fprintf(w, "exported  step %d to %s\n", o.Exported, o.Export)
	printAgreement(w, o.Agreement)
	fmt.Fprintf(w, "try       lora-train generate --adapter %s --prompt \"…\"\n", o.Dir)
	return nil
}

// trainedText is the steps of a run and the time of those that this process took.
func trainedText(o *train.Outcome) string {
	all := plural(o.Steps, "step")
	switch o.Resumed {
	case 0:
		return fmt.Sprintf("%s in %.1f s", all, o.TrainSeconds)
	case o.Steps:
		return all + ", all of them before"
	default:
		return fmt.Sprintf("%s, the last %s in %.1f s", all, count(o.Steps-o.Resumed), o.TrainSeconds)
	}
}
