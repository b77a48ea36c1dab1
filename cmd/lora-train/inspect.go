package main

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

type inspectFlags struct {
	model                 string
	router, tensors, json bool
}

func newInspectCommand() *cobra.Command {
	var f inspectFlags
	cmd := &cobra.Command{
		Use:   "inspect [PATH]",
		Short: "Say what a model, run, checkpoint, export, adapter or safetensors file is",
		Long: `Inspect prints what lies at PATH: a Hugging Face model folder or a .gguf file, a .safetensors file, a run's folder
or one of its checkpoints, an exported adapter, or an adapter for Python's peft. Without PATH it is the embedded model.

With --router it says of an adapter that routes by token whom its experts serve: how many tokens of the vocabulary
have them first or second, and the tokens that they serve most alone.`,
		Example: `  lora-train inspect
  lora-train inspect SmolLM2-135M-Instruct.gguf --tensors
  lora-train inspect runs/my-run --router`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("give one path at a time", "unexpected argument %q", args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Reset(os.Interrupt, syscall.SIGTERM) // there is nothing to save
			path := ""
			if len(args) > 0 {
				if path = args[0]; path == "" {
					return usagef("leave it out for the embedded model", "PATH is empty")
				}
			}
			return f.run(cmd.OutOrStdout(), path)
		},
	}
	cmd.Flags().BoolVar(&f.router, "router", false, "whom the experts of an adapter serve")
	cmd.Flags().StringVar(&f.model, "model", "", "with --router, the adapter's base, whose tokenizer spells the tokens; none: where it can be found")
	cmd.Flags().BoolVar(&f.tensors, "tensors", false, "list every tensor instead of one line for those alike in all layers")
	cmd.Flags().BoolVar(&f.json, "json", false, "write one JSON object, with every tensor")
	return cmd
}

// report is what inspect found out. Its JSON says at least what print shows.
type report interface {
	print(w io.Writer, allTensors bool)
}

func (f *inspectFlags) run(w io.Writer, path string) error {
	if f.model != "" && !f.router {
		return usagef("add --router, or give the model as PATH", "--model is for --router")
	}
	r, err := f.inspect(path)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(w, r)
	}
	var text bytes.Buffer
	r.print(&text, f.tensors)
	_, err = text.WriteTo(w)
	return err
}

func (f *inspectFlags) inspect(path string) (report, error) {
	kind := kindModel
	if path != "" {
		var err error
		if kind, err = identify(path); err != nil {
			return nil, err
		}
	}
	if f.router {
		if path == "" {
			return nil, usagef("give the folder of a run or of an export as PATH", "--router: the embedded model has no experts")
		}
		return inspectRouter(path, f.model)
	}
	switch kind {
	case kindTensors:
		return inspectTensors(path)
	case kindRun:
		return inspectRun(path)
	case kindCheckpoint:
		return inspectCheckpoint(path)
	case kindExport:
		return inspectExport(path)
	case kindPEFT:
		return inspectPEFT(path)
	case kindPEFTExperts:
		return inspectPEFTExperts(path)
	default:
		return inspectModel(path)
	}
}
