// Merge is dst = src + s·Σ_k weights[k]·B[i]ᵀ·A[i], i = ids[k], for every layer in one call. ids (n) i32,
// weights (n).
//
// An id of no expert makes the weights NaN.
#include "common.cuh"

// A layer's part; types are kernels.Type.
struct Layer {
    void *dst;
    const void *src, *a, *b;
    int experts, rank, width, out;
    int src_type, a_type, b_type, unused;
};

// load8 of a type that only the table knows.
__device__ inline void load8_of(int type, const void *p, long long i, int m, float x[8]) {
    switch (type) {
    case 1: load8((const float *)p + i, m, x); break;
    case 2: load8((const double *)p + i, m, x); break;
    default: load8((const bf16 *)p + i, m, x);
    }
}

// A block computes 64 rows by 128 columns of the layer blockIdx.y, a thread 4 by 8 of them.
template <class T> __device__ void merge(const Layer *layers, const int *ids, const float *weights, int n, float scale) {
    const int depth = 16;
    __shared__ __align__(16) float up[depth][64], down[depth][128];
    Layer l = layers[blockIdx.y];
    int across = (l.width + 127) / 128;
    int row0 = 64 * (blockIdx.x / across), column0 = 128 * (blockIdx.x % across);
    if (row0 >= l.out) return;
    int row = 4 * (threadIdx.x / 16), column = 8 * (threadIdx.x % 16);
    float sum[4][8] = {};
    for (int first = 0; first < n * l.rank; first += depth) {
        // Every thread fetches 8 elements of down, half of them 8 of up. What is missing is zero in both.
        {
            int kr = first + threadIdx.x / 16, k = kr / l.rank;
            int expert = kr < n * l.rank ? ids[k] : -1;
            bool valid = expert >= 0 && expert < l.experts;
            int m = valid ? max(0, min(8, l.width - column0 - column)) : 0;
            float x[8];
            load8_of(l.a_type, l.a, ((long long)(valid ? expert : 0) * l.rank + kr % l.rank) * l.width + column0 + column, m, x);
            for (int j = 0; j < 8; j++) down[threadIdx.x / 16][column + j] = x[j];
        }
        if (threadIdx.x < 128) {
            int kr = first + threadIdx.x / 8, k = kr / l.rank, r = 8 * (threadIdx.x % 8);
            bool asked = kr < n * l.rank;
            int expert = asked ? ids[k] : -1;
            bool valid = expert >= 0 && expert < l.experts;
            int m = valid ? max(0, min(8, l.out - row0 - r)) : 0;
            float x[8], factor = valid ? scale * weights[k] : 0;
            load8_of(l.b_type, l.b, ((long long)(valid ? expert : 0) * l.rank + kr % l.rank) * l.out + row0 + r, m, x);
            for (int j = 0; j < 8; j++) up[threadIdx.x / 8][r + j] = asked && !valid ? __uint_as_float(0x7fc00000u) : factor * x[j];
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < depth; d++) {
            float4 u = *(const float4 *)&up[d][row], v = *(const float4 *)&down[d][column], w = *(const float4 *)&down[d][column + 4];
            float us[4] = {u.x, u.y, u.z, u.w}, vs[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][j] = fmaf(us[i], vs[j], sum[i][j]);
        }
        __syncthreads();
    }
    int m = min(8, l.width - column0 - column);
    if (m <= 0) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row0 + row + i >= l.out) break;
        long long at = (long long)(row0 + row + i) * l.width + column0 + column;
        float x[8];
        load8_of(l.src_type, l.src, at, m, x);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[i][j] += x[j];
        store8((T *)l.dst + at, m, sum[i]);
    }
}

#define MERGE(T)                                                                                                                      \
    extern "C" __global__ void merge_##T(const Layer *layers, const int *ids, const float *weights, int n, float scale) {             \
        merge<T>(layers, ids, weights, n, scale);                                                                                     \
    }                                                                                                                                 \
    KERNEL(merge_##T)
MERGE(f32)
MERGE(bf16)
