//go:build gpu

#include "queue.h"

#include <string.h>

#define TRY(call)                          \
    do {                                   \
        CUresult tried = (call);           \
        if (tried != CUDA_SUCCESS) return tried; \
    } while (0)

#define IN(q) TRY(cuCtxSetCurrent((q)->context))

// One by one, not as a buffer: that must lie as the driver wants it where an argument is aligned to more than 16 bytes.
CUresult queue_launch(queue *q, CUfunction f, const launch_shape *s) {
    IN(q);
    return cuLaunchKernel(f, s->grid[0], s->grid[1], s->grid[2], s->block[0], s->block[1], s->block[2], s->shared, q->stream, q->where, NULL);
}

CUresult queue_box(queue *q, void *to, CUdeviceptr at, unsigned rows, unsigned cols, unsigned stride, unsigned box_rows, unsigned box_cols) {
    IN(q);
    CUtensorMap map; // aligned as it must be
    cuuint64_t size[] = {cols, rows}, pitch[] = {2ull * stride};
    cuuint32_t box[] = {box_cols ? box_cols : 64, box_rows}, every[] = {1, 1};
    CUresult r = cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)at, size, pitch, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                        box_cols ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    memcpy(to, &map, sizeof map);
    return r;
}

CUresult queue_allow_shared(queue *q, CUfunction f, int bytes) {
    IN(q);
    return cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
}

CUresult queue_sync(queue *q) {
    IN(q);
    return cuStreamSynchronize(q->stream);
}

CUresult queue_copy(queue *q, CUdeviceptr dst, CUdeviceptr src, size_t bytes) {
    IN(q);
    return cuMemcpyDtoDAsync(dst, src, bytes, q->stream);
}

CUresult queue_clear(queue *q, CUdeviceptr dst, size_t bytes) {
    IN(q);
    return cuMemsetD8Async(dst, 0, bytes, q->stream);
}

CUresult queue_send(queue *q, CUdeviceptr dst, const void *src, size_t bytes, CUevent done) {
    IN(q);
    TRY(cuMemcpyHtoDAsync(dst, src, bytes, q->stream));
    return cuEventRecord(done, q->stream);
}

CUresult queue_receive(queue *q, void *dst, CUdeviceptr src, size_t bytes, CUevent done) {
    IN(q);
    TRY(cuMemcpyDtoHAsync(dst, src, bytes, q->stream));
    return cuEventRecord(done, q->stream);
}

CUresult queue_read(queue *q, void *dst, CUdeviceptr src, size_t bytes) {
    IN(q);
    TRY(cuMemcpyDtoHAsync(dst, src, bytes, q->stream));
    return cuStreamSynchronize(q->stream);
}

CUresult queue_pin(queue *q, void **memory, size_t bytes) {
    IN(q);
    return cuMemHostAlloc(memory, bytes, 0);
}

CUresult queue_unpin(queue *q, void *memory) {
    IN(q);
    return cuMemFreeHost(memory);
}

CUresult queue_new_event(queue *q, CUevent *event, unsigned flags) {
    IN(q);
    return cuEventCreate(event, flags);
}

CUresult queue_mark(queue *q, CUevent event) {
    IN(q);
    return cuEventRecord(event, q->stream);
}

CUresult queue_wait(queue *q, CUevent event) {
    IN(q);
    return cuEventSynchronize(event);
}

CUresult queue_elapsed(queue *q, float *milliseconds, CUevent from, CUevent to) {
    IN(q);
    return cuEventElapsedTime(milliseconds, from, to);
}

CUresult queue_free_event(queue *q, CUevent event) {
    IN(q);
    return cuEventDestroy(event);
}

// Relaxed, because the calls of one capture come from several threads.
CUresult queue_begin_capture(queue *q) {
    IN(q);
    return cuStreamBeginCapture(q->stream, CU_STREAM_CAPTURE_MODE_RELAXED);
}

CUresult queue_end_capture(queue *q, CUgraphExec *exec) {
    IN(q);
    CUgraph graph = NULL;
    TRY(cuStreamEndCapture(q->stream, &graph));
    CUresult r = cuGraphInstantiateWithFlags(exec, graph, 0);
    cuGraphDestroy(graph);
    return r == CUDA_SUCCESS ? cuGraphUpload(*exec, q->stream) : r;
}

CUresult queue_replay(queue *q, CUgraphExec exec) {
    IN(q);
    return cuGraphLaunch(exec, q->stream);
}

CUresult queue_free_graph(queue *q, CUgraphExec exec) {
    IN(q);
    return cuGraphExecDestroy(exec);
}

const char *error_name(CUresult r) {
    const char *s = NULL;
    return cuGetErrorName(r, &s) == CUDA_SUCCESS && s ? s : "CUDA_ERROR";
}

const char *error_text(CUresult r) {
    const char *s = NULL;
    return cuGetErrorString(r, &s) == CUDA_SUCCESS && s ? s : "unknown error";
}
