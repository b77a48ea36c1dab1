/* Stands before CUDA's own header. The Go package gorgonia.org/cu is written for CUDA 12; since CUDA 13 five names of
   cuda.h mean newer functions with other parameters, and cuEventElapsedTime one that drivers of CUDA 12.0 lack. Every driver has the
   older ones: declare them, and let the names mean them. */
#ifndef LORA_CUDA_H
#define LORA_CUDA_H
#ifndef __ASSEMBLER__
#include_next <cuda.h>

#if CUDA_VERSION >= 13000
#undef cuCtxCreate
#undef cuMemAdvise
#undef cuMemPrefetchAsync
#undef cuGraphGetEdges
#undef cuGraphAddDependencies
#undef cuEventElapsedTime
#define cuCtxCreate cuCtxCreate_v2

CUresult CUDAAPI cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device);
CUresult CUDAAPI cuMemAdvise(CUdeviceptr at, size_t bytes, CUmem_advise advice, CUdevice device);
CUresult CUDAAPI cuMemPrefetchAsync(CUdeviceptr at, size_t bytes, CUdevice device, CUstream stream);
CUresult CUDAAPI cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, size_t *count);
CUresult CUDAAPI cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t count);
CUresult CUDAAPI cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to);
#endif

#endif
#endif
