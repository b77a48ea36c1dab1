// Experts adds s·Σ_k weights[t, k]·B[i]ᵀ·(A[i]·x[t]), i = ids[t, k], to y[t]. y (T, D_out), x (T, D), a (E, R, D),
// b (E, R, D_out), ids (T, n) i32, weights (T, n).
//
// An id of no expert makes its token's output NaN.
#include "common.cuh"

// hidden[t, k, r] = s·weights[t, k]·(A[i]·x[t])[r], a warp each. Tokens lie along x.
template <class T, class W>
__device__ void experts_down(float *hidden, const T *x, const W *a, const int *ids, const float *weights, int n, int experts, int rank,
                             int width, float scale) {
    int kr = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (kr >= n * rank) return;
    long long token = blockIdx.x;
    int expert = ids[token * n + kr / rank];
    bool valid = expert >= 0 && expert < experts;
    const W *row = a + ((long long)(valid ? expert : 0) * rank + kr % rank) * width;
    float sum = 0;
    for (int d = 8 * lane; d < width; d += 256) {
        float v[8], w[8];
        int m = min(8, width - d);
        load8(x + token * width + d, m, v);
        load8(row + d, m, w);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(v[j], w[j], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) hidden[token * n * rank + kr] = valid ? scale * weights[token * n + kr / rank] * sum : __uint_as_float(0x7fc00000u);
}

// y[t] += Σ hidden[t, k, r]·B[i][r], a thread for 8 columns.
template <class T, class W>
__device__ void experts_up(T *y, const float *hidden, const W *b, const int *ids, int n, int experts, int rank, int out) {
    int column = 8 * (blockIdx.y * blockDim.x + threadIdx.x), m = min(8, out - column);
    if (m <= 0) return;
    long long token = blockIdx.x;
    float sum[8] = {};
    for (int k = 0; k < n; k++) {
        int expert = ids[token * n + k];
        const W *rows = b + (long long)(expert >= 0 && expert < experts ? expert : 0) * rank * out + column;
        const float *h = hidden + (token * n + k) * rank;
#pragma unroll 4
        for (int r = 0; r < rank; r++) {
            float w[8];
            load8(rows + (long long)r * out, m, w);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] = fmaf(h[r], w[j], sum[j]);
        }
    }
    float before[8];
    load8(y + token * out + column, m, before);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += before[j];
    store8(y + token * out + column, m, sum);
}

#define EXPERTS(T, W)                                                                                                             \
    extern "C" __global__ void experts_down_##T##_##W(float *hidden, const T *x, const W *a, const int *ids, const float *weights, \
                                                      int n, int experts, int rank, int width, float scale) {                     \
        experts_down(hidden, x, a, ids, weights, n, experts, rank, width, scale);                                                 \
    }                                                                                                                             \
    KERNEL(experts_down_##T##_##W)                                                                                                \
    extern "C" __global__ void experts_up_##T##_##W(T *y, const float *hidden, const W *b, const int *ids, int n, int experts,    \
                                                    int rank, int out) {                                                          \
        experts_up(y, hidden, b, ids, n, experts, rank, out);                                                                     \
    }                                                                                                                             \
    KERNEL(experts_up_##T##_##W)
EXPERTS(f32, f32)
EXPERTS(f32, bf16)
EXPERTS(f32, f64)
EXPERTS(bf16, f32)
EXPERTS(bf16, bf16)
EXPERTS(bf16, f64)
