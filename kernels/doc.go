// Package kernels is the contract between the model and the machines that compute it.
//
// Start with [Backend]: an interface of coarse operations on [Tensor]. The comment above each method is its
// mathematics, with shapes; every implementation carries the same comment and passes the same suite,
// kernels/kernelstest. Shape letters, everywhere: T tokens (all sequences of a batch laid end to end), D width,
// F MLP width, H and K query and key-value heads, d head size, V vocabulary, L layers, E experts, R rank,
// S shared rank, C = E·R + S columns of a dense expert bank.
//
// Where a method does not say: tensors lie at any element of a buffer, aligned for their type and no more. Frozen weights, a
// bias, the norms' w and the experts of Experts and Merge are F32, BF16 or F64; lse and Rotary's table are Param, the
// logits of Sample Float or Param. Numbers that do not count (rows without a target, padding, keys that nobody sees, elements
// that are dropped) may be NaN. No tensor is empty.
//
// Caveats. Operations that give gradients of activations overwrite their output; those that give gradients of
// trainable tensors (names that end in Weight, A or B) add to it, so that a step may be made of several batches.
// Unless a method says otherwise an output must not overlap an input. An operation panics when shapes or types
// contradict each other, since that is a mistake in the program; what can go wrong while running (memory, a
// faulting device) comes as an error from Alloc and Sync.
package kernels
