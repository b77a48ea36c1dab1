// Package kernelstest is the one suite that every [kernels.Backend] must pass.
//
// Start with [Run]. Each operation is compared with the suite's own reference (the files reference_*.go): the
// formula of the contract in plain loops of float64, on inputs chosen to be hard. Beside every number the
// reference keeps a bound on the rounding that a backend may do on the way to it, see number, so that a
// tolerance follows from the types of the backend and the length of each sum, and nothing is tuned by hand.
//
// Inputs are views in the middle of buffers of NaN, so that reading outside spreads; outputs start as NaN and lie
// between guards; every operation runs twice and must give the same bits; inputs must not change; and operands
// that contradict each other must make it panic. Where the contract leaves a case open the suite asks for:
//
//   - tensors at any element of a buffer, aligned for their type and no more;
//   - frozen weights, bias and the experts of Experts and Merge in F32, BF16 and F64, lse and the table of Rotary
//     in Param, logits of Sample in Float;
//   - A and B of an adapter in Param and in Float;
//   - numbers that do not count (rows without a target, tokens of padding, keys that nobody sees, elements that
//     are dropped) may be NaN and still do not count;
//   - Balance of no tokens is zero, and so are its loads;
//   - lse of a token that sees nothing is anything;
//   - a decoding step reads nothing of a sequence that it skips: token and ids may be none that exist, weights NaN;
//   - a sequence may stand still in any step, all of them too, and go on in the next;
//   - a decoding step changes no other rows of the caches than those that it appends;
//   - TopK and Sample order equal logits by id, and probabilities sum to one again after TopK and after TopP.
//
// Caveats. Large tensors are not tried, so an overflow of 32-bit indices is not found, nor is a data race that
// needs many threads.
package kernelstest
