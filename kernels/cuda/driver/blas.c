//go:build gpu

#include "queue.h"

// From cublas_api.h.
enum { compute_32f = 68, algorithm_default = -1, no_reduced_precision_reduction = 16 };

typedef int (*gemm_ex)(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                       const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int algorithm);

CUresult queue_multiply(queue *q, void *function, const gemm *g, int *status) {
    CUresult r = cuCtxSetCurrent(q->context);
    if (r != CUDA_SUCCESS) return r;
    *status = ((gemm_ex)function)(g->handle, g->transpose_a, g->transpose_b, g->m, g->n, g->k, &g->alpha, (const void *)g->a, g->type_a, g->lda,
                                  (const void *)g->b, g->type_b, g->ldb, &g->beta, (void *)g->c, g->type_c, g->ldc, compute_32f, algorithm_default);
    return CUDA_SUCCESS;
}

CUresult queue_open_blas(queue *q, void *create, void *set_stream, void *set_workspace, void *set_math, CUdeviceptr workspace, size_t bytes,
                         void **handle, int *status) {
    CUresult r = cuCtxSetCurrent(q->context);
    if (r != CUDA_SUCCESS) return r;
    *status = ((int (*)(void **))create)(handle);
    if (*status == 0) *status = ((int (*)(void *, CUstream))set_stream)(*handle, q->stream);
    // After the stream, which sets it back: without a workspace of its own the library would allocate, which a capture forbids.
    if (*status == 0) *status = ((int (*)(void *, void *, size_t))set_workspace)(*handle, (void *)workspace, bytes);
    if (*status == 0) *status = ((int (*)(void *, int))set_math)(*handle, no_reduced_precision_reduction);
    return CUDA_SUCCESS;
}

CUresult queue_close_blas(queue *q, void *destroy, void *handle) {
    CUresult r = cuCtxSetCurrent(q->context);
    if (r != CUDA_SUCCESS) return r;
    ((int (*)(void *))destroy)(handle);
    return CUDA_SUCCESS;
}
