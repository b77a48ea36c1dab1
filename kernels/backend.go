package kernels

import "fmt"

// Backend computes. One goroutine at a time may use a Backend; its operations run in the order of the calls and
// may still be under way when a call returns: Read and Sync wait.
//
// Float is the element type of activations, Param that of trainable tensors, their gradients, the optimizer's
// state, router logits, gates, losses and scalars. Frozen weights are F32, BF16 or F64, whatever Float is.
//
// An operand called plus is an addend: a tensor like the result that it is added to, in other memory, or none.
type Backend interface {
	Storage
	Network
	Gradients
	Optimizer
	Decoding
}

// Storage is a backend's memory.
type Storage interface {
	// Name is what a user types to choose the backend: "cpu" or "cuda".
	Name() string
	// String says in one line what computes, for people.
	String() string
	Float() Type
	Param() Type

	// Alloc is a tensor of zeros. The error says how much was asked for and how much there is.
	Alloc(t Type, shape ...int) (Tensor, error)
	// Free gives back what Alloc gave.
	Free(t Tensor)
	// Place is host brought to where the operations can read it: a copy, or host itself.
	Place(host Tensor) (Tensor, error)
	// Write copies host to t, which has its type and length.
	Write(t, host Tensor)
	// Read copies t to host, which has its type and length, when all operations before it are done.
	Read(host, t Tensor)
	// Fetch is Read that does not wait: host holds the elements when the function that it returns has returned.
	Fetch(host, t Tensor) (wait func())
	// Copy copies src to dst, which has its type and length.
	Copy(dst, src Tensor)
	// Zero clears t.
	Zero(t Tensor)
	// Sync waits for all operations and reports the first that failed since the last call.
	Sync() error
	Close() error
}

// Heads is how attention divides a row: H query heads and K key-value heads of size Dim; query head h reads
// key-value head h/(H/K).
type Heads struct {
	Query, KV, Dim int
}

func (h Heads) String() string { return fmt.Sprintf("%d/%d heads of %d", h.Query, h.KV, h.Dim) }

// Switch is the adapter of one linear layer in dense form: E experts of rank R, and S columns that every token
// uses, side by side. Plain LoRA is E = 0.
type Switch struct {
	A     Tensor  // (D, C), C = E·R + S, of type Param or Float
	B     Tensor  // (C, D_out), of the type of A
	Gates Tensor  // (T, E); none if E = 0
	Rank  int     // R
	Scale float64 // s = alpha / rank
}

// Network is the operations of a forward pass.
type Network interface {
	// Embed gathers rows: y[t] = table[ids[t]]. y (T, D), table (V, D), ids (T) i32.
	Embed(y, table, ids Tensor)

	// RMSNorm normalises pieces of len(w) elements: y = x / √(mean(x²) + eps) · w. y, x of the same shape, w (D) or,
	// for the heads' norms, (d).
	RMSNorm(y, x, w Tensor, eps float64)

	// Linear is y = plus + x·wᵀ + bias. y (T, D_out), of type Float or, with neither bias nor plus, Param, x (T, D), w (D_out, D), bias (D_out)
	// or none, plus as y or none.
	Linear(y, x, w, bias, plus Tensor)

	// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
	// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y
	// or none.
	SwitchLinear(y, u, x, z, w, bias, plus Tensor, sw Switch)

	// Rotary turns each head's pairs (x[i], x[i+d/2]) by the angle of its position p = pos[t]: with c and n the
	// cosines and sines table[p, :d/2] and table[p, d/2:], y[i] = x[i]·c[i] - x[i+d/2]·n[i] and
	// y[i+d/2] = x[i+d/2]·c[i] + x[i]·n[i]; backwards turns by the opposite angle, which is the gradient.
	// y, x (T, H·d), table (P, d), pos (T) i32.
	Rotary(y, x, table, pos Tensor, backwards bool)

	// Attention is o[t] = Σ_j softmax_j(q[t]·k[j]/√d)·v[j] for each head, over the keys j that token t sees:
	// spans[t] = (a, b, c, e) makes them the rows [a, b) and [c, e) of k and v, two ranges that do not meet. A
	// token that sees nothing gets zeros. lse[t, h] is the logarithm of the softmax's denominator, kept for the
	// gradient, or none. o, q (T, H·d), k, v (N, K·d), spans (T, 4) i32, lse (T, H).
	//
	// Rows of k and v are the batch's own tokens in training, where one range is the token's sequence up to
	// itself and the other a prompt shared by several continuations; or a cache that holds them.
	Attention(o, lse, q, k, v, spans Tensor, heads Heads)

	// SwiGLU is y = g·σ(g)·u, elementwise. y, g, u (T, F).
	SwiGLU(y, g, u Tensor)

	// Sum is y = Σ xs, elementwise.
	Sum(y Tensor, xs ...Tensor)

	// Scale is y = factor[0]·x, elementwise; factor (1) of type Param. y may be x.
	Scale(y, x, factor Tensor)

	// Dropout zeroes elements with probability rate and divides the others by 1 - rate. Element i is zeroed if
	// the upper 24 bits of [Random](key[0], key[1], site).At(i) are below rate·2²⁴, so that the same call on a
	// gradient is its gradient. y, x of the same shape, key (2) i32: a seed and the step.
	Dropout(y, x, key Tensor, site int, rate float64)

	// Route is logits = h·routerᵀ. logits (T, E), h (T, D), router (E, D).
	Route(logits, h, router Tensor)

	// Gate is, in each row, softmax over the two largest logits, zero elsewhere; ties go to the lower expert.
	// gates, logits (T, E).
	Gate(gates, logits Tensor)

	// Balance is loss = E·Σ_e f_e·p_e over the tokens with seq ≥ 0, where f_e is the share of the top-2 places
	// that e holds (a place counts if its gate is above 0) and p_e its mean softmax probability: 1 if all experts
	// are used alike. It also writes f to loads. loss (1), loads (E), logits, gates (T, E), seq (T) i32.
	Balance(loss, loads, logits, gates, seq Tensor)

	// CrossEntropy is loss = Σ_t log Σ_v exp(h[t]·w[v]) - h[t]·w[targets[t]] over the tokens with a target ≥ 0,
	// and, unless dh is none, its gradient towards h, zero in the other rows. Never more than a chunk of the
	// logits is in memory. loss (1), dh, h (T, D), w (V, D), targets (T) i32.
	CrossEntropy(loss, dh, h, w, targets Tensor)

	// LogProb is lp[t] = h[t]·w[targets[t]] - log Σ_v exp(h[t]·w[v]) for the tokens with a target ≥ 0, zero for
	// the others. lp (T), otherwise as CrossEntropy.
	LogProb(lp, h, w, targets Tensor)
}

// Gradients is the gradients of [Network], named after its operations.
type Gradients interface {
	// RMSNormGrad is dx = plus + r·(w ⊙ dy) - x·r³·mean(w ⊙ dy ⊙ x), r = 1/√(mean(x²) + eps). plus as dx or none.
	RMSNormGrad(dx, x, w, dy, plus Tensor, eps float64)

	// LinearGrad is dx = plus + dy·w. dx (T, D), dy (T, D_out), w (D_out, D), plus as dx or none.
	LinearGrad(dx, dy, w, plus Tensor)

	// SwitchGradHidden is, with v = s·dy·Bᵀ (T, C): du = v ⊙ Ĝ, and dg[t, e] = Σ v[t, c]·u[t, c] over the columns
	// c of expert e; dg none if E = 0. du, u (T, C), dg (T, E), dy (T, D_out).
	SwitchGradHidden(du, dg, dy, u Tensor, sw Switch)

	// SwitchGradInput is dx = plus + dy·w + du·Aᵀ. dx (T, D), dy (T, D_out), w (D_out, D), du (T, C), a (D, C) of type
	// Param or Float, plus as dx or none.
	SwitchGradInput(dx, dy, w, du, a, plus Tensor)

	// SwitchGradA adds zᵀ·du to da. da (D, C), z (T, D), du (T, C).
	SwitchGradA(da, z, du Tensor)

	// SwitchGradB adds s·(u ⊙ Ĝ)ᵀ·dy to db. db (C, D_out), u (T, C), dy (T, D_out).
	SwitchGradB(db, u, dy Tensor, sw Switch)

	// AttentionGrad is the gradient of Attention, given its inputs and outputs. dq as q, dk and dv as k and v.
	AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans Tensor, heads Heads)

	// SwiGLUGrad is dg = dy·u·σ(g)·(1 + g·(1-σ(g))) and du = dy·g·σ(g).
	SwiGLUGrad(dg, du, g, u, dy Tensor)

	// RouteGradInput is dh = dlogits·router. dh (T, D), dlogits (T, E), router (E, D).
	RouteGradInput(dh, dlogits, router Tensor)

	// RouteGradWeight adds dlogitsᵀ·h to dr. dr (E, D), dlogits (T, E), h (T, D).
	RouteGradWeight(dr, dlogits, h Tensor)

	// GateGrad is dlogits = g ⊙ (dg - Σ_e g_e·dg_e), row by row.
	GateGrad(dlogits, gates, dg Tensor)

	// BalanceGrad is dlogits[t] = dloss·E/N·p[t] ⊙ (f - Σ_e f_e·p[t, e]) for the N tokens with seq ≥ 0, where p[t] is
	// the softmax of a row and f = loads; zero for the others. dloss (1).
	BalanceGrad(dlogits, dloss, logits, loads, seq Tensor)
}

// AdamW holds the constants of the optimizer of that name (Loshchilov and Hutter, arXiv 1711.05101).
type AdamW struct {
	Beta1, Beta2, Eps float64
	Decay             float64 // decoupled: parameters shrink by lr·Decay
	Clip              float64 // gradients are scaled to this norm if theirs is larger; 0: never
}

// Optimizer works on the buffer that holds all trainable tensors end to end.
type Optimizer interface {
	// Norm is norm = √(Σ g²). norm (1), g (n).
	Norm(norm, g Tensor)

	// Step is one AdamW step, n = hyper[1] counted from 1 and learning rate lr = hyper[0]:
	//	g ← g·min(1, Clip/(norm + 1e-6))
	//	m ← Beta1·m + (1-Beta1)·g,  v ← Beta2·v + (1-Beta2)·g²
	//	p ← p·(1 - lr·Decay) - lr·(m/(1-Beta1ⁿ)) / (√(v/(1-Beta2ⁿ)) + Eps)
	// g itself is left as it is. Nothing moves if norm is not finite. p, g, m, v (n), norm (1), hyper (2).
	Step(p, g, m, v, norm, hyper Tensor, c AdamW)

	// Round is dst = src, each element the nearest that dst's type has. dst, src of one length, each F32, BF16 or F64.
	Round(dst, src Tensor)
}

// Capturer is a backend that can record what a function asks for and do it again at little cost.
type Capturer interface {
	// Capture records the operations that f calls, without running them. They must not allocate, Write, Read or Fetch, and the
	// tensors they use must stay where they are as long as the recording is used.
	Capture(f func()) (Recording, error)
}

// Recording is operations that run as one.
type Recording interface {
	// Run queues them all.
	Run()
	Close()
}

// Merge is one layer's part of [Decoding.Merge].
type Merge struct {
	Dst Tensor // (D_out, D), type Float
	Src Tensor // (D_out, D): the pristine weight
	A   Tensor // (E, R, D)
	B   Tensor // (E, R, D_out)
}

// Merging is layers that are prepared for [Decoding.Merge]. It belongs to the backend that made it.
type Merging interface {
	// Layers is what was prepared.
	Layers() []Merge
	// Close gives back what preparing them took, and leaves their tensors.
	Close()
}

// Sampling is how the next token is chosen among the logits.
type Sampling struct {
	Temperature float64 // 0: the largest logit, the lowest id among equals
	TopK        int     // only the K largest; 0: all
	TopP        float64 // only the most probable ones until their sum reaches TopP; 0 or 1: all
}

// Sequences is where S sequences that are decoded together stand, each with room for P tokens in the rows [s·P, (s+1)·P) of a
// cache, and what a pass over one token of each needs, which [Decoding.Advance] finds out.
type Sequences struct {
	Tokens Tensor // (S) i32: the token of each that is run next
	Length Tensor // (S) i32: the tokens before it; below 0: the sequence is stopped
	Keys   Tensor // (S, 2) i32: of its random numbers
	Room   int    // P
	Window int    // W: the positions that a token sees, itself one of them; 0: all

	Pos, Live, Rows  Tensor // (S) i32
	Spans            Tensor // (S, 4) i32, see Attention
	U                Tensor // (S), see Sample
	Experts, Weights Tensor // (S, n) i32 and (S, n), or none
}

// Decoding is what generating text needs beyond [Network]: experts as an export holds them, and a cache.
type Decoding interface {
	// Top2 is Gate in short form: ids of the two largest logits, the larger first, and their softmax. Ties go to the
	// lower expert. ids (T, 2) i32, weights (T, 2), logits (T, E).
	Top2(ids, weights, logits Tensor)

	// Experts adds s·Σ_k weights[t, k]·B[i]ᵀ·(A[i]·x[t]), i = ids[t, k], to y[t]. y (T, D_out), x (T, D), a (E, R, D),
	// b (E, R, D_out), ids (T, n) i32, weights (T, n).
	Experts(y, x, a, b, ids, weights Tensor, scale float64)

	// Spread is gates[t, e] = Σ_k weights[t, k] over the k with ids[t, k] = e: a token's experts as SwitchLinear takes them. gates (T, E),
	// ids (T, n) i32, weights (T, n).
	Spread(gates, ids, weights Tensor)

	// Transpose is y[d, c] = x[c, d], bit for bit. y (D, C), x (C, D) of one type: F32, BF16 or F64.
	Transpose(y, x Tensor)

	// PrepareMerge is the layers, of any shapes, as Merge takes them. Their tensors must stay where they are until it is
	// closed, and no Dst may overlap another. The error says how much memory was asked for and how much there is.
	PrepareMerge(layers []Merge) (Merging, error)

	// Merge is dst = src + s·Σ_k weights[k]·B[i]ᵀ·A[i], i = ids[k], for every layer of m in one call, unless force says
	// that this is what they hold. ids (n) i32, weights (n), force (2n) i32 or none: the ids that were merged last with
	// this m and scale and, behind them, the bits of their weights as float32. The call compares it with ids and weights,
	// and leaves it as they are. An id below 0 and a weight that float32 does not hold are never in force; so a force of
	// -1 throughout says that nothing was merged yet.
	Merge(m Merging, ids, weights, force Tensor, scale float64)

	// Append is cache[at[t]] = x[t], where at[t] ≥ 0. cache (P, K·d), x (T, K·d), at (T) i32.
	Append(cache, x, at Tensor)

	// Advance puts each sequence's token behind those before it. With p = length[s], if 0 ≤ p < P: pos[s] = live[s] = p, rows[s] = s·P + p,
	// spans[s] = (0, 0, s·P + f, s·P + p+1) with f = max(0, p+1-W), or 0 if W is 0, u[s] = ⌊Random(keys[s, 0], keys[s, 1], 0).At(p)/2⁴⁰⌋/2²⁴,
	// experts[s] = ids[tokens[s]] and weights[s] = gates[tokens[s]], if there is a routing table, and length[s] becomes p+1. A sequence that
	// is stopped or full does no harm: rows[s] and live[s] are -1, all else is 0, and length[s] stays. ids (V, n) i32, gates (V, n) of type Param.
	Advance(q Sequences, ids, gates Tensor)

	// Sample chooses a token for each row of logits: the temperature divides the logits, TopK and then TopP leave
	// some of them, and the token is the first whose cumulative probability, largest first, exceeds u[t], which is
	// uniform in [0, 1). ids (T) i32, logits (T, V) of type Float or Param, u (T) of type Param. A NaN is never chosen; a
	// row of nothing else gives 0. Equal logits are in the order of their ids.
	Sample(ids, logits, u Tensor, rule Sampling)
}
