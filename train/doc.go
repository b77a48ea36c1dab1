// Package train fits an adapter to data and measures it.
//
// Start with [Config], what a run is made of, and [Prepare], whose result trains, evaluates, checkpoints and exports. A [Stepper] is one
// optimizer step as Gorgonia's graph computes it; an [Evaluator] is the log-likelihoods of a task's options.
// Configuration stops here: the packages below take plain numbers.
package train
