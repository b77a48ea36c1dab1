// Scale is y = factor[0]·x, elementwise; factor (1) of type Param. y may be x.
//
// 8 elements for a thread.
#include "common.cuh"

template <class T> __device__ void scale(T *y, const T *x, const float *factor, long long n) {
    long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (i >= n) return;
    int m = n - i < 8 ? (int)(n - i) : 8;
    float v[8], by = factor[0];
    load8(x + i, m, v);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] *= by;
    store8(y + i, m, v);
}

#define SCALE(T)                                                                                 \
    extern "C" __global__ void scale_##T(T *y, const T *x, const float *factor, long long n) { \
        scale(y, x, factor, n);                                                                  \
    }                                                                                            \
    KERNEL(scale_##T)
SCALE(f32)
SCALE(bf16)
