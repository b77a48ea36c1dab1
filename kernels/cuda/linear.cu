// Linear is y = plus + x·wᵀ + bias. y (T, D_out), of type Float or, with neither bias nor plus, Param, x (T, D), w (D_out, D), bias (D_out)
// or none, plus as y or none.
//
// Here y = plus + bias in every row, to which the product is added in float32.
#include "common.cuh"

// y (n / width, width), plus the same or null; a thread writes 8 elements of a row.
template <class T, class B> __device__ void bias(T *y, const B *b, const T *plus, int width, long long n) {
    int pieces = (width + 7) / 8;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n / width * pieces) return;
    int col = (int)(i % pieces) * 8, m = width - col < 8 ? width - col : 8;
    long long at = i / pieces * width + col;
    float x[8];
    load8(b + col, m, x);
    if (plus) {
        float p[8];
        load8(plus + at, m, p);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] += p[j];
    }
    store8(y + at, m, x);
}

#define BIAS(T, B)                                                                                          \
    extern "C" __global__ void bias_##T##_##B(T *y, const B *b, const T *plus, int width, long long n) {     \
        bias(y, b, plus, width, n);                                                                          \
    }                                                                                                       \
    KERNEL(bias_##T##_##B)
BIAS(f32, f32)
BIAS(f32, bf16)
BIAS(f32, f64)
BIAS(bf16, f32)
BIAS(bf16, bf16)
BIAS(bf16, f64)
