// Work queued on one stream of one context. Each function makes the context current on the thread that calls it.
#pragma once
#include <cuda.h>

enum { argument_bytes = 4096, argument_count = 64 }; // what a kernel may take

typedef struct {
    CUcontext context;
    CUstream stream;
    unsigned char arguments[argument_bytes]; // of the next launch, laid out as C does
    void *where[argument_count];             // each of them
} queue;

typedef struct {
    unsigned grid[3], block[3], shared;
} launch_shape;

enum { box_bytes = sizeof(CUtensorMap) };
// Writes to `to` how kernels copy a matrix of bf16 with rows `stride` elements apart: by boxes of box_rows rows and 64 columns.
CUresult queue_box(queue *q, void *to, CUdeviceptr at, unsigned rows, unsigned cols, unsigned stride, unsigned box_rows, unsigned box_cols);

CUresult queue_launch(queue *q, CUfunction f, const launch_shape *shape);
CUresult queue_allow_shared(queue *q, CUfunction f, int bytes);
CUresult queue_sync(queue *q);
CUresult queue_copy(queue *q, CUdeviceptr dst, CUdeviceptr src, size_t bytes);
CUresult queue_clear(queue *q, CUdeviceptr dst, size_t bytes);
// Copies from and to pinned memory, and an event after it.
CUresult queue_send(queue *q, CUdeviceptr dst, const void *src, size_t bytes, CUevent done);
CUresult queue_receive(queue *q, void *dst, CUdeviceptr src, size_t bytes, CUevent done);
// Copies to any memory and waits for it.
CUresult queue_read(queue *q, void *dst, CUdeviceptr src, size_t bytes);

CUresult queue_pin(queue *q, void **memory, size_t bytes);
CUresult queue_unpin(queue *q, void *memory);
CUresult queue_new_event(queue *q, CUevent *event, unsigned flags);
CUresult queue_mark(queue *q, CUevent event);
CUresult queue_wait(queue *q, CUevent event);
CUresult queue_elapsed(queue *q, float *milliseconds, CUevent from, CUevent to);
CUresult queue_free_event(queue *q, CUevent event);

CUresult queue_begin_capture(queue *q);
CUresult queue_end_capture(queue *q, CUgraphExec *exec);
CUresult queue_replay(queue *q, CUgraphExec exec);
CUresult queue_free_graph(queue *q, CUgraphExec exec);

const char *error_name(CUresult r);
const char *error_text(CUresult r);

// The arguments of cublasGemmEx, but for the handle.
typedef struct {
    void *handle;
    int transpose_a, transpose_b, m, n, k;
    CUdeviceptr a, b, c;
    int type_a, type_b, type_c, lda, ldb, ldc;
    float alpha, beta;
} gemm;

// Calls cublasGemmEx, which lies at function, and gives its status.
CUresult queue_multiply(queue *q, void *function, const gemm *g, int *status);
// The other functions of cuBLAS that are called.
CUresult queue_open_blas(queue *q, void *create, void *set_stream, void *set_workspace, void *set_math, CUdeviceptr workspace, size_t bytes,
                         void **handle, int *status);
CUresult queue_close_blas(queue *q, void *destroy, void *handle);
