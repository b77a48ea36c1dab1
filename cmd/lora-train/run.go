package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/datasets"
	"loratrain/datasets/toy"
	"loratrain/train"
)

// runFlags are those of the command run.
type runFlags struct {
	set            []string
	out            string
	backend        string
	resume, dryRun bool
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
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	cmd.Flags().StringArrayVar(&f.set, "set", nil, "a setting as key=value, above the file's; may be repeated")
	cmd.Flags().StringVar(&f.out, "out", "", "the run's folder; by default runs/<model>-<task>-<time>")
	cmd.Flags().StringVar(&f.backend, "backend", "", "what computes: cpu, cuda or auto; above the setting backend")
	cmd.Flags().BoolVar(&f.resume, "resume", false, "go on with the run in --out")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be trained and the memory it needs, and write nothing")
	return cmd
}

// config reads the configuration: the file's, that of the run that goes on, or the defaults.
func (f *runFlags) config(args []string) (train.Config, error) {
	if f.backend != "" {
		f.set = append(f.set, "backend="+f.backend)
	}
	if f.resume && f.out == "" {
		return train.Config{}, usagef("name the run's folder with --out", "--resume: expected a run to go on with")
	}
	name, path := "defaults", ""
	if len(args) > 0 {
		path = args[0]
	} else if f.resume {
		path = (&train.RunFolder{Dir: f.out}).ConfigPath()
	}
	if path == "" {
		return train.Parse(name, nil, f.set...)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return train.Config{}, usagef("check the name of the file, or of the run", "%w", err)
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
	backend, err := openBackend(cfg.Backend, cfg.Threads)
	if err != nil {
		return err
	}
	defer backend.Close()
	base, err := openModel(cfg.Model.Path)
	if err != nil {
		return err
	}
	defer base.Close()
	progress := train.NewProgress(cmd.ErrOrStderr(), train.IsTerminal(cmd.ErrOrStderr()), quiet(cmd))
	defer progress.Close()
	prepared, err := train.Prepare(cfg, train.RunOptions{
		Dir: f.out, Resume: f.resume, Base: base, Backend: backend, Catalog: catalog(cfg.Data.Dir), Progress: progress,
	})
	if err != nil {
		return err
	}
	if f.dryRun {
		return prepared.Describe(cmd.OutOrStdout())
	}
	if !quiet(cmd) {
		if err := prepared.Describe(cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	out, err := prepared.Run(cmd.Context())
	if err != nil {
		return err
	}
	return printOutcome(cmd.OutOrStdout(), out)
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
	fmt.Fprintf(w, "trained   %s in %.1f s, measured in %.1f s\n", plural(o.Steps, "step"), o.TrainSeconds, o.EvalSeconds)
	fmt.Fprintf(w, "exported  step %d to %s\n", o.Exported, o.Export)
	printAgreement(w, o.Agreement)
	fmt.Fprintf(w, "try       lora-train generate --adapter %s --prompt \"…\"\n", o.Dir)
	return nil
}
