package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/router"
	"loratrain/train"
)

type generateFlags struct {
	computeFlags
	model, adapter, prompt, mode string
	batch                        string
	batchSize                    int
	maxTokens, context           int
	rule                         kernels.Sampling
	seed                         uint64
	json, special                bool
}

func newGenerateCommand() *cobra.Command {
	var f generateFlags
	cmd := &cobra.Command{
		Use:   "generate --prompt TEXT | --batch FILE.jsonl",
		Short: "Continue a text, or many",
		Long: `Generate writes what a model, with an adapter if there is one, makes of a prompt. It stops at the end of the
text, at --max-tokens or where the context is full.

With --batch the prompts are the lines of a file, {"prompt": "…"}, if you like with an "id", or only the text as a JSON
string; - is standard input. They are computed --batch-size at a time, and what each becomes is a JSON object on a line
of standard output, in the order of the file. A prompt's text does not depend on the others.

The text is chosen greedily unless --temperature is above 0, and then by --seed: the same seed gives the same
text. Without --model the adapter's base is looked for: in the run that it belongs to, else in the program.`,
		Example: `  lora-train generate --prompt "Anna lives in"
  lora-train generate --adapter runs/my-run --prompt $'Question: Where does Anna live?\nAnswer:'
  lora-train generate --adapter runs/my-run --batch prompts.jsonl > texts.jsonl
  lora-train generate --model SmolLM2-135M-Instruct.gguf --prompt "Once upon a time" --temperature 0.8 --top-p 0.95`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("put the whole prompt in quotes, after --prompt", "unexpected argument %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.model, "model", "", "folder of a Hugging Face model, or a .gguf file; none: the adapter's base, else the embedded model")
	flags.StringVar(&f.adapter, "adapter", "", "folder of a run or of an export; none: the model alone")
	flags.StringVar(&f.prompt, "prompt", "", "the text to continue")
	flags.StringVar(&f.batch, "batch", "", "a file of prompts to continue, a JSON object or string on each line")
	flags.IntVar(&f.batchSize, "batch-size", defaultBatchSize, "how many prompts of --batch are computed at once")
	flags.StringVar(&f.mode, "mode", "", "how experts are applied: fused, merged or layerwise; none: the fastest that the adapter allows")
	flags.IntVar(&f.maxTokens, "max-tokens", 128, "the most tokens to generate")
	flags.Float64Var(&f.rule.Temperature, "temperature", 0, "0 always takes the likeliest token, 1 follows the model's probabilities")
	flags.IntVar(&f.rule.TopK, "top-k", 0, "choose among so many likeliest tokens; 0: all")
	flags.Float64Var(&f.rule.TopP, "top-p", 1, "choose among the likeliest tokens that together have this probability")
	flags.Uint64Var(&f.seed, "seed", 0, "decides what chance decides")
	flags.IntVar(&f.context, "context", 0, "the most tokens of prompt and text together; 0: what they need, up to the model's limit")
	flags.BoolVar(&f.json, "json", false, "write one JSON object when all is done; --batch always writes JSON")
	flags.BoolVar(&f.special, "special", false, "show special tokens in the text")
	f.register(cmd)
	return cmd
}

func (f *generateFlags) check(given func(flag string) bool) error {
	switch t := f.rule.Temperature; {
	case given("prompt") && given("batch"):
		return usagef("give one of them", "--prompt and --batch")
	case given("batch") && f.batch == "":
		return usagef("give the path of a file with a prompt on each line", "--batch is empty")
	case given("adapter") && f.adapter == "":
		return usagef("give a run's folder or an export, or leave it out for the model alone", "--adapter is empty")
	case given("batch-size") && !given("batch"):
		return usagef("give --batch too, or leave it out", "--batch-size %d: there is one prompt", f.batchSize)
	case f.batchSize < 1 || f.batchSize > model.MaxSequences:
		return usagef("it is how many prompts are computed at once", "--batch-size %d: expected 1 to %d", f.batchSize, model.MaxSequences)
	case !given("batch") && !given("prompt"):
		return usagef(`for example --prompt "Anna lives in"`, "no --prompt")
	case !given("batch") && f.prompt == "":
		return usagef("the model continues a text: give it one", "--prompt is empty")
	case f.maxTokens < 1:
		return usagef("give how many tokens to generate at most", "--max-tokens %d: expected 1 or more", f.maxTokens)
	case !(t >= 0) || math.IsInf(t, 0):
		return usagef("0 always takes the likeliest token, 1 follows the model's probabilities", "--temperature %v: expected 0 or more", t)
	case f.rule.TopK < 0:
		return usagef("0 chooses among all tokens", "--top-k %d: expected 0 or more", f.rule.TopK)
	case !(f.rule.TopP > 0 && f.rule.TopP <= 1):
		return usagef("1 chooses among all tokens", "--top-p %v: expected more than 0, up to 1", f.rule.TopP)
	case f.context < 0:
		return usagef("leave it out to have room for prompt and text", "--context %d: expected 1 or more", f.context)
	case f.mode != "" && !slices.Contains(model.Modes(router.Token), model.Mode(f.mode)):
		return usagef(fmt.Sprintf("use one of %v", model.Modes(router.Token)), "unknown mode %q", f.mode)
	case f.mode != "" && f.adapter == "":
		return usagef("give --adapter too, or leave --mode out", "--mode %s: a model without an adapter has no experts to apply", f.mode)
	}
	return nil
}

func (f *generateFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd.Flags().Changed); err != nil {
		return err
	}
	var prompts []filePrompt
	if f.batch != "" {
		var err error
		if prompts, err = readPrompts(f.batch, cmd.InOrStdin()); err != nil {
			return err
		}
	}
	b, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer b.Close()
	a, err := openAdapted(f.model, f.adapter)
	if err != nil {
		return err
	}
	defer a.Close()
	tokens, err := a.base.NeedTokenizer()
	if err != nil {
		return err
	}
	g := generator{
		tokens: tokens, rule: f.rule, most: f.maxTokens, seed: f.seed, special: f.special, report: f.json && f.batch == "",
		about: generated{Model: a.base.Name, Adapter: f.adapter, Backend: b.String()},
	}
	if f.batch != "" {
		return f.runBatch(cmd, &g, b, a, prompts)
	}
	return f.runOne(cmd, &g, b, a)
}

// runOne continues --prompt.
func (f *generateFlags) runOne(cmd *cobra.Command, g *generator, b kernels.Backend, a adapted) error {
	one := generation{generator: g, text: cmd.OutOrStdout(), prompt: f.prompt, ids: g.tokens.Encode(f.prompt, true)}
	if f.json {
		one.text = io.Discard
	}
	room, advice, err := f.roomIn(a.base.Arch.Context)
	if err != nil {
		return err
	}
	n := len(one.ids)
	if err := fits(n, room, advice, fmt.Sprintf("--prompt %q: ", f.prompt)); err != nil {
		return train.UsageError{Err: err}
	}
	closeDecoder, err := g.prepare(b, a, f.mode, positions(n, room, f.maxTokens), 1)
	if err != nil {
		return err
	}
	defer closeDecoder()
	err = one.run(cmd.Context())
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if !quiet(cmd) {
		if train.IsTerminal(cmd.ErrOrStderr()) {
			fmt.Fprintln(cmd.ErrOrStderr()) // apart from the text
		}
		one.result.summarise(cmd.ErrOrStderr())
	}
	if f.json {
		return errors.Join(err, printJSON(cmd.OutOrStdout(), one.result))
	}
	return err
}

// roomIn is how many tokens a prompt and its text may have together, and what to do about a prompt that has more.
func (f *generateFlags) roomIn(limit int) (room int, advice string, err error) {
	if f.context > limit {
		return 0, "", usagef(fmt.Sprintf("leave it out, or give up to %d", limit), "--context %d: the model was made for %s", f.context, plural(limit, "token"))
	}
	if f.context > 0 && f.context < limit {
		return f.context, fmt.Sprintf("shorten the prompt, or raise --context, up to %d", limit), nil
	}
	return limit, "shorten the prompt: the model was made for no more", nil
}

// fits refuses a prompt of n tokens that there is no room for; what says which one an empty one is.
func fits(n, room int, advice, what string) error {
	if n == 0 {
		return failf("the model continues a text: give it another one", "%sno token of the model spells any of it", what)
	}
	if n > room {
		return failf(advice, "the prompt has %s, the context %d", plural(n, "token"), room)
	}
	return nil
}

// positions is how many tokens there has to be room for behind a prompt of n and with it.
func positions(n, room, most int) int { return min(room-n, most) + n }
