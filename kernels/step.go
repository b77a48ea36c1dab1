package kernels

// Targets is the number of linear layers of a transformer block: the projections to queries, keys and values, that of attention's output, and of
// the MLP gate, up and down, in this order.
const Targets = 7

// StepLayer is one transformer block.
type StepLayer struct {
	InputNorm, PostNorm Tensor          // (D)
	QNorm, KNorm        Tensor          // (d), or none
	W                   [Targets]Tensor // (D_out, D_in)
	Bias                [Targets]Tensor // (D_out), or none
	A, B                [Targets]Tensor // (E, R, D_in) and (E, R, D_out), or none
	Keys, Values        Tensor          // the cache (S·P, K·d): sequence s has the rows from s·P on
}

// StepModel is a whole model as a [Step] runs it.
type StepModel struct {
	Layers      []StepLayer
	Embed, Head Tensor // (V, D)
	Norm        Tensor // (D)
	Rope        Tensor // as Rotary's table, (P or more, d)
	Heads       Heads
	Eps         float64
	Window      int     // keys that a token sees, itself among them; 0: all before it
	Scale       float64 // of experts
	Chosen      int     // experts of a token; 0: the model has none
	Sequences   int     // S
	Positions   int     // P
}

// Stepper is a backend that runs decoding steps as one operation.
type Stepper interface {
	// NewStep prepares decoding steps of a model, whose tensors must stay as long as it is used. The error says what of the model
	// this backend has no such step for.
	NewStep(m StepModel) (Step, error)
}

// Step is a model's decoding step.
type Step interface {
	// Run is logits[s] of the token that follows tokens[s], at position pos[s] of sequence s, and appends its keys and values to the cache: one
	// decoding step of a whole model. Sequences with pos[s] < 0 are skipped, their logits are left as they are. In every linear layer that has
	// experts, those of ids[s] are added with weights[s], as Experts does. logits (S, V) of type Param, tokens, pos (S) i32, ids (S, n) i32,
	// weights (S, n); ids and weights none if the model has no experts.
	Run(logits, tokens, pos, ids, weights Tensor)
	// Close gives memory back.
	Close()
}
