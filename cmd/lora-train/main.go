// Command lora-train trains, evaluates, exports and decodes switch adapters: token-wise mixtures of LoRA experts on a
// frozen Llama.
//
// Start with newRoot, which names the commands; each has a file of its own. Answers go to standard output, progress
// and advice to standard error. The exit status is 0 when all was done, 1 when something failed, and 2 when the
// command line or a configuration was not understood.
package main

import "os"

func main() { os.Exit(execute(os.Args[1:])) }
