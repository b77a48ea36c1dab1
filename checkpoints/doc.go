// Package checkpoints moves named tensors between memory and disk: the mapped
// safetensors files of a base model, the state that a run resumes from, the
// serving folder that decoders read, and PEFT adapters for Python.
//
// Start with [Open] and [OpenSharded] to read a model's weights, [SaveState]
// and [LatestState] for a run, [WriteServing] and [OpenServing] for an adapter.
// FORMAT.md beside this file describes the serving folder for whoever writes
// another reader.
//
// Caveats:
//   - A tensor of a [File] is a view of a mapped, read-only file: writing to it
//     faults, and so does reading it after Close or after somebody truncated the
//     file. Replace such files by renaming, never by writing into them.
//   - Folders are locked with flock(2) on the folders themselves, which Linux
//     and macOS have on local disks; some network file systems do not.
//   - Sizes in files are hostile until checked; everything here checks them
//     before it allocates or slices, and returns errors that say where.
package checkpoints
