// Package graph is the differentiable graph that Gorgonia builds and runs, and the same operations without a graph.
//
// Start with [Exec]: a forward pass is written once, against it. A [Recorder] makes a Gorgonia node of every operation;
// its Gradients method adds the nodes of the backward pass and Compile turns the graph into a [Program] that is run many times.
// [Immediate] runs each operation's kernel at once. The operations themselves, RMSNorm, SwitchLinear and so on, are
// functions over an Exec; each is one [Op]: the shapes of its results, its kernel, and its gradient. Where several uses of a
// value send a gradient back, an operation may take the one before and add it as it computes its own ([Ask]); what is left is
// summed. What is a [Block] may be computed a second time for the backward pass, to save memory.
//
// A Program's memory is planned when it is compiled: every result lies in an [Arena] from the operation that makes it to the
// last that uses it. A backend that can record ([kernels.Capturer]) records its first run, and runs the recording from then
// on, without Gorgonia's machine.
//
// Caveats. What flows through the graph are our own values around kernels.Tensor, never Gorgonia's tensors, so that
// no memory of a device is touched by Go; hence nothing of Gorgonia's that works on values (BindDualValues, solvers,
// WithNaNWatch, native operations) can be mixed in. Every node's hash holds a serial number, so that equal nodes
// are not merged. A Recorder and its Programs belong to one goroutine.
package graph
