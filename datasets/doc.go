// Package datasets brings benchmark tasks and a user's own examples to token batches.
//
// Start with [Catalog.Load], which gives a [Task]; [Encoder] renders and tokenizes it, the same way for training
// ([Encoder.Sequences]) and evaluation ([Encoder.Groups]); [Pack] and [PackGroups] lay the result end to end as
// [Batch]es; [Sampler] says which examples a step uses.
//
// Caveats. Files are read whole, as UTF-8, and strictly: an item that is not understood is an error that names file,
// line and item, never a skipped item. Questions and options lose the white space around them; prompts and answers of
// a [Pair] do not. An answer is told apart from its prompt by tokens, see [Sequence].
package datasets
