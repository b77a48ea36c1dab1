package main

import (
	"fmt"
	"io"

	"loratrain/model"
)

// generated is what came of a prompt, for --json.
type generated struct {
	Model   string     `json:"model"`
	Adapter string     `json:"adapter,omitempty"`
	Mode    model.Mode `json:"mode,omitempty"` // how experts were applied; none without an adapter
	Backend string     `json:"backend"`
	continued
	Seconds struct {
		Prefill float64 `json:"prefill"`
		Decode  float64 `json:"decode"`
	} `json:"seconds"`
	TokensPerSecond float64 `json:"tokens_per_second,omitempty"` // of decoding; none if no token was fed

	PromptIDs []int32 `json:"prompt_ids"`
	// PromptExperts, only where they are a matter of the token alone, and Experts: for each token its pairs of experts, one
	// for each router, the larger gate first. The text's last token is not fed, so that Experts has one less.
	PromptExperts [][][]int32 `json:"prompt_experts,omitempty"`
	Experts       [][][]int32 `json:"experts,omitempty"`
}

// continued is a prompt and its text.
type continued struct {
	Prompt       string     `json:"prompt"`
	Text         string     `json:"text"`
	IDs          []int32    `json:"ids"` // of the text
	Stop         stopReason `json:"stop"`
	PromptTokens int        `json:"prompt_tokens"`
	Tokens       int        `json:"tokens"`
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
	rate := ""
	if r.TokensPerSecond > 0 {
		rate = ", " + perSecond(r.TokensPerSecond)
	}
	fmt.Fprintf(w, "prompt: %s in %s; text: %s in %s%s; %s\n", plural(r.PromptTokens, "token"), seconds(r.Seconds.Prefill),
		plural(r.Tokens, "token"), seconds(r.Seconds.Decode), rate, why)
}

func seconds(s float64) string {
	if s < 0.9995 {
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

func perSecond(rate float64) string { return threeDigits(rate) + " tokens/s" }
