// Package driver implements [loratrain/kernels/cuda.Device] on NVIDIA GPUs. It is built with the tag gpu; make gpu does that, with or
// without a CUDA toolkit or a GPU on the machine.
//
// Start with Open, or with NewBackend, which makes a backend of what Open gives. gorgonia.org/cu finds the device and keeps its context,
// memory, modules and stream; what it lacks (capture into CUDA graphs, launches on our terms, pinned memory) is in queue.c. cuBLAS is
// opened while the program runs.
//
// Caveats. All work goes to one stream. Every call makes the device's primary context current on the thread that it runs on, so
// that any goroutine may call, though only one at a time. After a fault the card's memory is lost: every call but Close does
// nothing, and Sync reports the fault again. LORA_CUDA_TRACE=1 waits after each launch, which names the kernel of a fault;
// LORA_CUDA_PTX=1 has the driver compile the kernels' PTX instead of taking the code compiled for its card.
package driver
