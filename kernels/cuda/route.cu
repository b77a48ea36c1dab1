// Route is logits = h·routerᵀ. logits (T, E), h (T, D), router (E, D).
//
// RouteGradInput is dh = dlogits·router. dh (T, D), dlogits (T, E), router (E, D).
//
// RouteGradWeight adds dlogitsᵀ·h to dr. dr (E, D), dlogits (T, E), h (T, D).
//
// The router stays float32: rounding it would move decisions that are nearly ties.
#include "common.cuh"

// A warp computes the logits of 4 tokens for 8 experts, its lanes 8 columns apart. Blocks along y take the experts.
template <class T> __device__ void route(float *logits, const T *h, const float *router, int tokens, int experts, int width) {
    int lane = threadIdx.x % 32;
    int t0 = 4 * (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), e0 = 8 * blockIdx.y;
    if (t0 >= tokens) return;
    float sums[32] = {}; // token, expert
    for (int d = 8 * lane; d < width; d += 256) {
        int m = min(8, width - d);
        float x[4][8];
#pragma unroll
        for (int t = 0; t < 4; t++) load8(h + (long long)min(t0 + t, tokens - 1) * width + d, m, x[t]);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float r[8];
            load8(router + (long long)min(e0 + e, experts - 1) * width + d, m, r);
#pragma unroll
            for (int t = 0; t < 4; t++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[8 * t + e] = fmaf(x[t][j], r[j], sums[8 * t + e]);
        }
    }
    // Each step halves the sums that a lane is responsible for; in the end lane l has the total of sums[l].
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        bool upper = lane & d;
#pragma unroll
        for (int i = 0; i < d; i++) {
            float give = upper ? sums[i] : sums[i + d], keep = upper ? sums[i + d] : sums[i];
            sums[i] = keep + __shfl_xor_sync(0xffffffffu, give, d);
        }
    }
    int t = t0 + lane / 8, e = e0 + lane % 8;
    if (t < tokens && e < experts) logits[(long long)t * experts + e] = sums[0];
}

// A block computes 16 tokens by 256 columns of dh, a thread 4 tokens by 8 columns.
template <class T> __device__ void route_grad_input(T *dh, const float *dlogits, const float *router, int tokens, int experts, int width) {
    const int slab = 32;
    __shared__ float d[slab][16];
    int t0 = 16 * blockIdx.y, own = 4 * (threadIdx.x / 32), column = 256 * blockIdx.x + 8 * (threadIdx.x % 32);
    int m = max(0, min(8, width - column));
    float sums[4][8] = {};
    for (int e0 = 0; e0 < experts; e0 += slab) {
        for (int i = threadIdx.x; i < slab * 16; i += blockDim.x) {
            int t = i / slab, e = i % slab;
            bool valid = t0 + t < tokens && e0 + e < experts;
            d[e][t] = valid ? dlogits[(long long)(t0 + t) * experts + e0 + e] : 0.f;
        }
        __syncthreads();
        for (int e = 0; m > 0 && e < min(slab, experts - e0); e++) {
            float r[8];
            load8(router + (long long)(e0 + e) * width + column, m, r);
#pragma unroll
            for (int t = 0; t < 4; t++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[t][j] = fmaf(d[e][own + t], r[j], sums[t][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
        int token = t0 + own + t;
        if (token < tokens && m > 0) store8(dh + (long long)token * width + column, m, sums[t]);
    }
}

// A warp sums 8 experts by 256 columns over the tokens of one part; the warps of a block share the columns, blocks along y are the
// parts. Each part has an (E, D) of its own in parts, or there is one part and it is added to parts at once.
template <class T>
__device__ void route_grad_weight(float *parts, const float *dlogits, const T *h, int tokens, int experts, int width, int part, int add) {
    int column = 256 * blockIdx.x + 8 * (threadIdx.x % 32);
    int e0 = 8 * (blockIdx.z * (blockDim.x / 32) + threadIdx.x / 32);
    int m = min(8, width - column), count = min(8, experts - e0);
    if (m <= 0 || count <= 0) return;
    float sums[8][8] = {};
    int from = blockIdx.y * part, to = min(tokens, from + part);
#pragma unroll 2
    for (int t = from; t < to; t++) {
        float x[8];
        load8(h + (long long)t * width + column, m, x);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float d = dlogits[(long long)t * experts + e0 + min(e, count - 1)];
#pragma unroll
            for (int j = 0; j < 8; j++) sums[e][j] = fmaf(d, x[j], sums[e][j]);
        }
    }
    float *to_part = parts + (long long)blockIdx.y * experts * width;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (e >= count) break;
        float *row = to_part + (long long)(e0 + e) * width + column;
        if (add) {
            float before[8];
            load8(row, m, before);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[e][j] += before[j];
        }
        store8(row, m, sums[e]);
    }
}

// dr += Σ parts, in their order.
extern "C" __global__ void routegradweight_sum(float *dr, const float *parts, int count, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float s = 0;
#pragma unroll 8
    for (int k = 0; k < count; k++) s += parts[k * n + i];
    dr[i] += s;
}
KERNEL(routegradweight_sum)

#define ROUTE(T)                                                                                                                      \
    extern "C" __global__ void route_##T(float *logits, const T *h, const float *router, int tokens, int experts, int width) {        \
        route(logits, h, router, tokens, experts, width);                                                                             \
    }                                                                                                                                 \
    KERNEL(route_##T)                                                                                                                 \
    extern "C" __global__ void routegradinput_##T(T *dh, const float *dlogits, const float *router, int tokens, int experts,          \
                                                  int width) {                                                                        \
        route_grad_input(dh, dlogits, router, tokens, experts, width);                                                                \
    }                                                                                                                                 \
    KERNEL(routegradinput_##T)                                                                                                        \
    extern "C" __global__ void routegradweight_##T(float *parts, const float *dlogits, const T *h, int tokens, int experts, int width, \
                                                   int part, int add) {                                                               \
        route_grad_weight(parts, dlogits, h, tokens, experts, width, part, add);                                                      \
    }                                                                                                                                 \
    KERNEL(routegradweight_##T)
ROUTE(f32)
ROUTE(bf16)
