// Package tiny embeds the default base model: a Llama of 0.8 million weights that knows a toy world and nothing else.
//
// Start with [FS]. The model is a demonstration, there so that the whole program runs from training to decoding in a
// minute with no download; it has no use beyond that. It was pretrained on plain statements about the world ("Anna
// lives in Denby.", "A robin is a bird.") and has never read a question, so that it answers the task of package
// datasets/toy hardly better than chance until an adapter teaches it to.
//
// Two layers of width 128, MLP width 384, 4 query and 2 key-value heads of 32, a byte-level BPE vocabulary of 3165 in
// which every word of the world is one token, tied embeddings, bfloat16. scripts/tinybase/make.py made all three files
// from nothing and makes them again: the tokenizer exactly, the weights with small differences from machine to machine.
// World, tokenizer and weights are this project's own work, under this project's licence.
package tiny

import (
	"embed"
	"io/fs"
)

//go:embed config.json model.safetensors tokenizer.json
var files embed.FS

// FS holds config.json, model.safetensors and tokenizer.json, as a folder of a Hugging Face model does. Read with
// [fs.ReadFile]: it gives a copy that the caller owns, in memory aligned for the tensors.
func FS() fs.FS { return files }
