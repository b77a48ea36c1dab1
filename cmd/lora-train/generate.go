package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/kernels"
	"loratrain/model"
	"loratrain/model/tokenizer"
	"loratrain/router"
	"loratrain/train"
)

type generateFlags struct {
	computeFlags
	model, adapter, prompt, mode string
	maxTokens, context           int
	rule                         kernels.Sampling
	seed                         uint64
	json, special                bool
}

func newGenerateCommand() *cobra.Command {
	var f generateFlags
	cmd := &cobra.Command{
		Use:   "generate --prompt TEXT",
		Short: "Continue a text, a token at a time",
		Long: `Generate writes what a model, with an adapter if there is one, makes of a prompt. It stops at the end of the
text, at --max-tokens or where the context is full.

The text is chosen greedily unless --temperature is above 0, and then by --seed: the same seed gives the same
text. Without --model the adapter's base is looked for: in the run that it belongs to, else in the program.`,
		Example: `  lora-train generate --prompt "Anna lives in"
  lora-train generate --adapter runs/my-run --prompt $'Question: Where does Anna live?\nAnswer:'
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
	flags.StringVar(&f.mode, "mode", "", "how experts are applied: fused, merged or layerwise; none: the fastest that the adapter allows")
	flags.IntVar(&f.maxTokens, "max-tokens", 128, "the most tokens to generate")
	flags.Float64Var(&f.rule.Temperature, "temperature", 0, "0 always takes the likeliest token, 1 follows the model's probabilities")
	flags.IntVar(&f.rule.TopK, "top-k", 0, "choose among so many likeliest tokens; 0: all")
	flags.Float64Var(&f.rule.TopP, "top-p", 1, "choose among the likeliest tokens that together have this probability")
	flags.Uint64Var(&f.seed, "seed", 0, "decides what chance decides")
	flags.IntVar(&f.context, "context", 0, "the most tokens of prompt and text together; 0: what they need, up to the model's limit")
	flags.BoolVar(&f.json, "json", false, "write one JSON object when all is done")
	flags.BoolVar(&f.special, "special", false, "show special tokens in the text")
	f.register(cmd)
	return cmd
}

func (f *generateFlags) check(given func(flag string) bool) error {
	switch t := f.rule.Temperature; {
	case !given("prompt"):
		return usagef(`for example --prompt "Anna lives in"`, "no --prompt")
	case f.prompt == "":
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
	case f.mode != "" && f.adapter == "":
		return usagef("give --adapter too, or leave --mode out", "--mode %s: a model without an adapter has no experts to apply", f.mode)
	}
	return nil
}

func (f *generateFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd.Flags().Changed); err != nil {
		return err
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
	g := generation{
		tokens: tokens, rule: f.rule, most: f.maxTokens, seed: f.seed, special: f.special, text: cmd.OutOrStdout(),
		report: f.json,
		result: generated{Model: a.base.Name, Adapter: f.adapter, Backend: b.String(), Prompt: f.prompt},
	}
	if f.json {
		g.text = io.Discard
	}
	g.result.PromptIDs = tokens.Encode(f.prompt, true)
	positions, err := f.positions(a.base.Arch.Context, len(g.result.PromptIDs))
	if err != nil {
		return err
	}
	closeDecoder, err := g.prepare(b, a, f.mode, positions)
	if err != nil {
		return err
	}
	defer closeDecoder()
	err = g.run(cmd.Context())
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if !quiet(cmd) {
		if train.IsTerminal(cmd.ErrOrStderr()) {
			fmt.Fprintln(cmd.ErrOrStderr()) // apart from the text
		}
		g.result.summarise(cmd.ErrOrStderr())
	}
	if f.json {
		return errors.Join(err, printJSON(cmd.OutOrStdout(), g.result))
	}
	return err
}

// positions is how many tokens there has to be room for.
func (f *generateFlags) positions(limit, prompt int) (int, error) {
	if f.context > limit {
		return 0, usagef(fmt.Sprintf("leave it out, or give up to %d", limit), "--context %d: the model was made for %s", f.context, plural(limit, "token"))
	}
	if prompt == 0 {
		return 0, usagef("the model continues a text: give it another one", "--prompt %q: no token of the model spells any of it", f.prompt)
	}
	room, advice := limit, "shorten the prompt: the model was made for no more"
	if f.context > 0 && f.context < limit {
		room, advice = f.context, fmt.Sprintf("shorten the prompt, or raise --context, up to %d", limit)
	}
	if prompt > room {
		return 0, usagef(advice, "the prompt has %s, the context %d", plural(prompt, "token"), room)
	}
	return min(room-prompt, f.maxTokens) + prompt, nil
}

// generated is what came of a prompt, for --json.
type generated struct {
	Model        string     `json:"model"`
	Adapter      string     `json:"adapter,omitempty"`
	Mode         model.Mode `json:"mode,omitempty"` // how experts were applied; none without an adapter
	Backend      string     `json:"backend"`
	Prompt       string     `json:"prompt"`
	Text         string     `json:"text"`
	IDs          []int32    `json:"ids"` // of the text
	Stop         stopReason `json:"stop"`
	PromptTokens int        `json:"prompt_tokens"`
	Tokens       int        `json:"tokens"`
	Seconds      struct {
		Prefill float64 `json:"prefill"`
		Decode  float64 `json:"decode"`
	} `json:"seconds"`
	TokensPerSecond float64 `json:"tokens_per_second"` // of decoding

	PromptIDs []int32 `json:"prompt_ids"`
	// PromptExperts, only where they are a matter of the token alone, and Experts: for each token its pairs of experts, one
	// for each router, the larger gate first. The text's last token is not fed, so that Experts has one less.
	PromptExperts [][][]int32 `json:"prompt_experts,omitempty"`
	Experts       [][][]int32 `json:"experts,omitempty"`
}

// stopReason is why a text ends.
type stopReason string

const (
	stopEnd         stopReason = "end_of_text"
	stopMax         stopReason = "max_tokens"
	stopContext     stopReason = "context"
	stopInterrupted stopReason = "interrupted"
)

// summarise says for people what was done and how fast.
func (r *generated) summarise(w io.Writer) {
	with := ""
	if r.Adapter != "" {
		with = fmt.Sprintf(" with %s, %s", r.Adapter, r.Mode)
	}
	why := map[stopReason]string{
		stopEnd: "the text ended", stopMax: "stopped at --max-tokens", stopContext: "stopped: the context is full", stopInterrupted: "interrupted",
	}[r.Stop]
	fmt.Fprintf(w, "%s%s, on %s\n", r.Model, with, r.Backend)
	fmt.Fprintf(w, "prompt: %s in %s; text: %s in %s, %s; %s\n", plural(r.PromptTokens, "token"), seconds(r.Seconds.Prefill),
		plural(r.Tokens, "token"), seconds(r.Seconds.Decode), perSecond(r.TokensPerSecond), why)
}

func seconds(s float64) string {
	if s < 0.9995 {
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

func perSecond(rate float64) string {
	if rate < 10 {
		return fmt.Sprintf("%.1f tokens/s", rate)
	}
	return count(int(math.Round(rate))) + " tokens/s"
}

// generation is one prompt on its way.
type generation struct {
	tokens  *tokenizer.Tokenizer
	decoder *model.Decoder
	served  *model.Served // nil: no adapter
	ends    []int32
	rule    kernels.Sampling
	most    int
	seed    uint64
	special bool
	text    io.Writer // where it goes as it comes
	report  bool      // note the experts of every token, which the decoder must be asked for

	result generated
	all    strings.Builder
	fed    int // tokens decoded: a text's last one is not
}

// prepare makes the decoder. The function it returns gives its memory back.
func (g *generation) prepare(b kernels.Backend, a adapted, mode string, positions int) (func(), error) {
	placed, err := model.Place(b, a.base.Arch, a.base.Weights, positions)
	if err != nil {
		return nil, err
	}
	chosen, release := model.Fused, func() {}
	if a.export != nil {
		granularity := router.Granularity(a.export.Config.Granularity)
		if chosen = model.Modes(granularity)[0]; mode != "" {
			if chosen, err = model.ParseMode(mode, granularity); err != nil {
				return nil, train.UsageError{Err: err}
			}
		}
		if g.served, err = model.Serve(placed, a.export); err != nil {
			return nil, err
		}
		g.result.Mode, release = chosen, g.served.Close
	}
	if g.decoder, err = model.NewDecoder(placed, g.served, chosen, positions); err != nil {
		release()
		return nil, err
	}
	g.ends = append(g.tokens.EOS(), a.base.EOS...)
	return func() { g.decoder.Close(); release() }, nil
}
