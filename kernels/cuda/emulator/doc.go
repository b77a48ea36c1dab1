// Package emulator is a [cuda.Device] that runs the kernels' own source, the .cu files of package cuda, on the
// processor: for tests, where no GPU is.
//
// Start with [ForTest] or [Open]. The compiler g++, or what $CXX names, makes a library of each .cu file and of the
// folder runtime; they are kept in the user's cache until a source changes. The threads of a block are fibers that run
// one after another, each until it waits for others. Shared memory starts as NaN in every block, targets of
// asynchronous copies are NaN until waited for, a product with Beta 0 does not read C, and memory lies between pages
// that cannot be touched.
//
// Found and reported by Sync, with the kernel's name: accesses outside of memory or not aligned for their type, indices
// outside of arrays, barriers and warp operations that some threads never reach, division by zero, shifts by too much,
// asynchronous copies that nobody waits for, launches of unknown kernels or with other arguments, too many threads or
// too much shared memory. A missing barrier shows as a result that depends on the order of the threads, which [Options]
// sets.
//
// To test one operation, or all, or all in another order:
//
//	go test ./kernels/cuda -run 'TestContract/.*/Sum'
//	go test ./kernels/cuda
//	LORA_EMULATOR_ORDER=backward go test ./kernels/cuda
//	LORA_EMULATOR_ORDER=late go test ./kernels/cuda
//	LORA_EMULATOR_ORDER=12345 go test ./kernels/cuda
//
// Without a compiler these tests are skipped; LORA_EMULATOR=require makes them fail instead. To debug a kernel call
// printf in it: the .cu files see stdio.h when EMULATED is defined.
//
// Caveats. Linux on amd64 and arm64 only. Of the kernels for Hopper alone, in files NAME_sm90.cu, there are only those
// that need neither wgmma nor clusters, if [Options] ask for them. A file that does not compile is reported when a
// kernel is launched that no other file has. A kernel may not have the name of a template. Loops without end hang. Blocks
// run to their end, four at a time: more that wait for each other hang, and a race between blocks shows rarely. Not found:
// what depends on a GPU's memory model, races that every order hides, accesses outside of a static array through a
// pointer. Products and mma sum in order; a GPU does not.
package emulator
