// SwiGLU is y = g·σ(g)·u, elementwise. y, g, u (T, F).
//
// SwiGLUGrad is dg = dy·u·σ(g)·(1 + g·(1-σ(g))) and du = dy·g·σ(g).
//
// 8 elements for a thread. Where exp(-g) overflows, σ(g) is zero, as it should be.
#include "common.cuh"

template <bool fast, class T> __device__ void swiglu8(T *y, const T *g, const T *u, int m) {
    float a[8], b[8];
    get8<fast>(g, m, a);
    get8<fast>(u, m, b);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] = a[j] / (1.f + expf(-a[j])) * b[j];
    put8<fast>(y, m, a);
}

template <class T> __device__ void swiglu(T *y, const T *g, const T *u, long long n) {
    long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (i >= n) return;
    y += i, g += i, u += i;
    int m = n - i < 8 ? (int)(n - i) : 8;
    if (m == 8 && aligned16(y) && aligned16(g) && aligned16(u))
        swiglu8<true>(y, g, u, m);
    else
        swiglu8<false>(y, g, u, m);
}

template <bool fast, class T>
__device__ void swiglu_grad8(T *dg, T *du, const T *g, const T *u, const T *dy, int m) {
    float a[8], b[8], c[8];
    get8<fast>(g, m, a);
    get8<fast>(u, m, b);
    get8<fast>(dy, m, c);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float s = 1.f / (1.f + expf(-a[j]));
        b[j] = c[j] * b[j] * s * (1.f + a[j] * (1.f - s));
        a[j] = c[j] * (a[j] * s);
    }
    put8<fast>(dg, m, b);
    put8<fast>(du, m, a);
}

template <class T> __device__ void swiglu_grad(T *dg, T *du, const T *g, const T *u, const T *dy, long long n) {
    long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (i >= n) return;
    dg += i, du += i, g += i, u += i, dy += i;
    int m = n - i < 8 ? (int)(n - i) : 8;
    if (m == 8 && aligned16(dg) && aligned16(du) && aligned16(g) && aligned16(u) && aligned16(dy))
        swiglu_grad8<true>(dg, du, g, u, dy, m);
    else
        swiglu_grad8<false>(dg, du, g, u, dy, m);
}

#define SWIGLU(T)                                                                                                       \
    extern "C" __global__ void swiglu_##T(T *y, const T *g, const T *u, long long n) { swiglu(y, g, u, n); }            \
    KERNEL(swiglu_##T)                                                                                                  \
    extern "C" __global__ void swiglu_grad_##T(T *dg, T *du, const T *g, const T *u, const T *dy, long long n) {        \
        swiglu_grad(dg, du, g, u, dy, n);                                                                               \
    }                                                                                                                   \
    KERNEL(swiglu_grad_##T)
SWIGLU(f32)
SWIGLU(bf16)
