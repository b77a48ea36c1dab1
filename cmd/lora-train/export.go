package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/model"
	"loratrain/train"
)

func newExportCommand() *cobra.Command {
	var flags computeFlags
	var out, format, modelPath string
	cmd := &cobra.Command{
		Use:   "export RUN --out DIR",
		Short: "Write a run's adapter for serving, or for Python's peft",
		Long: `Export writes the adapter of a run, the best checkpoint if the run was measured while it trained and else the
newest. The folder is read back and every way of decoding is compared on real prompts; what does not agree is deleted.`,
		Example: `  lora-train export runs/my-run --out my-adapter
  lora-train export runs/my-run --out my-adapter-peft --format peft`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name it: lora-train export runs/my-run --out my-adapter", "the run's folder is missing")
			}
			return noArguments(cmd, args[1:])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return export(cmd, args[0], out, format, modelPath, flags)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the new folder")
	cmd.Flags().StringVar(&format, "format", train.FormatSwitch, "switch: for serving; peft: an adapter of Python's peft for each expert")
	cmd.Flags().StringVar(&modelPath, "model", "", "the run's base, if it is not where the run's config.yaml says")
	flags.register(cmd)
	return cmd
}

func export(cmd *cobra.Command, run, out, format, modelPath string, flags computeFlags) error {
	if out == "" {
		return usagef("name a new folder: --out my-adapter", "--out is missing")
	}
	if format != train.FormatSwitch && format != train.FormatPEFT {
		return usagef(fmt.Sprintf("use %s or %s", train.FormatSwitch, train.FormatPEFT), "unknown format %q", format)
	}
	if exists(out) {
		return usagef("choose another --out, or move it away", "%s: already exists; expected a new folder", out)
	}
	if kind, err := identify(run); err != nil {
		return err
	} else if kind != kindRun {
		return failf("give a run's folder, as lora-train run makes it", "%s: %s, expected a run", run, kind)
	}
	path := filepath.Join(run, "config.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		return failf("restore the file from a backup: it says what the adapter is made of", "%w", located(err))
	}
	cfg, err := train.Parse(path, data)
	if err != nil {
		return err
	}
	backend, err := flags.open(cmd)
	if err != nil {
		return err
	}
	defer backend.Close()
	if modelPath == "" {
		modelPath = cfg.Model.Path
	}
	base, err := openModel(modelPath)
	if err != nil {
		return err
	}
	defer base.Close()
	progress := train.NewProgress(cmd.ErrOrStderr(), train.IsTerminal(cmd.ErrOrStderr()), quiet(cmd))
	defer progress.Close()
	e, err := train.Export(cfg, train.RunOptions{
		Dir: run, Base: base, Backend: backend, Catalog: catalog(cfg.Data.Dir), Progress: progress,
	}, out, format)
	if err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "exported  step %d to %s\n", e.Step, out)
	if format == train.FormatSwitch {
		printAgreement(&text, e.Agreement)
	}
	return printText(cmd.OutOrStdout(), text.String())
}

// printAgreement says what the verification of an export found.
func printAgreement(w io.Writer, a model.Agreement) {
	fmt.Fprintf(w, "verified  on %s: ", plural(a.Prompts, "prompt"))
	if n := len(a.Modes); n > 1 {
		names := make([]string, n)
		for i, m := range a.Modes {
			names[i] = string(m)
		}
		fmt.Fprintf(w, "modes %s and %s agree to %.1g in the logits; ", strings.Join(names[:n-1], ", "), names[n-1], a.Between)
	}
	fmt.Fprintf(w, "rounding to bf16 changes them by up to %.1g\n", a.Rounding)
}
