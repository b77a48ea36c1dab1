// Package model is a base of the Llama family with its banks of experts: reading it, running it forwards, decoding.
//
// Start with [Open], which reads a Hugging Face folder or a GGUF file into a [Base], and [Hidden], the forward pass,
// which is written once: over a graph that is being recorded it makes the nodes of a training step, over kernels it
// computes at once.
package model
