// Package budget says what each operation of a step must move and compute, how long the machine needs for that at best, and
// how long it took.
//
// Start with [New]: a Meter is a backend that passes every call on and keeps a [Row] for each operation of the contract.
// Flops are those of matrix products, two for a multiplication and its addition; elementwise arithmetic is not counted, since
// moving its operands takes longer. Bytes are each input read once and each output written once, a tensor that is added to
// both; rows that are gathered count, the rest of their table does not.
//
// Caveats. What an operation keeps for itself, such as a chunk of the logits, is not in its budget: a kernel that does
// not move it at all is possible. Operations run one at a time while they are measured, each to its end; of a backend that can
// tell of its launches, Together takes their times in a step that runs as a whole.
package budget
