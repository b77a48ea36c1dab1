// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y or none.
//
// SwitchGradHidden is, with v = s·dy·Bᵀ (T, C): du = v ⊙ Ĝ, and dg[t, e] = Σ v[t, c]·u[t, c] over the columns
// c of expert e; dg none if E = 0. du, u (T, C), dg (T, E), dy (T, D_out).
//
// What a token's C hidden numbers take, on tensor cores. These kernels are bound by reading z and dy once.
#include "switch.cuh"
#include "thin.cuh"

// u = z·A and p = s·(u ⊙ Ĝ).
template <int COLS>
__device__ void switch_hidden(bf16 *u, bf16 *p, const bf16 *z, const bf16 *a, Gates g, int tokens, int width, int cols, float *parts,
                              unsigned *counters) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (!thin_product<COLS, false, true>(shared, z, a, tokens, width, cols, parts, counters, AsItIs())) return;
    const float *tile = (const float *)shared;
    for (int i = threadIdx.x; i < thin_rows * COLS / 8; i += thin_threads) {
        int row = i / (COLS / 8), col = i % (COLS / 8) * 8;
        long long t = blockIdx.x * thin_rows + row;
        if (t >= tokens || col >= cols) continue;
        float x[8];
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = tile[row * Thin<COLS>::stride + col + j];
        store8(u + t * cols + col, 8, x);
        // The gradient of B knows u as it was stored, so that is what B is multiplied with.
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = g.scale * gate(g, t, col + j) * to_float(to_bf16(x[j]));
        store8(p + t * cols + col, 8, x);
    }
}

// du = v ⊙ Ĝ and dg from v = s·dy·Bᵀ.
template <int COLS>
__device__ void switch_grad_hidden(bf16 *du, float *dg, const bf16 *dy, const bf16 *b, const bf16 *u, Gates g, int tokens, int width,
                                   int cols, float *parts, unsigned *counters) {
    constexpr int stride = Thin<COLS>::stride;
    DYNAMIC_SHARED(unsigned char, shared);
    if (!thin_product<COLS, false, false>(shared, dy, b, tokens, width, cols, parts, counters, AsItIs())) return;
    float *tile = (float *)shared;
    for (int i = threadIdx.x; i < thin_rows * COLS / 8; i += thin_threads) {
        int row = i / (COLS / 8), col = i % (COLS / 8) * 8;
        long long t = blockIdx.x * thin_rows + row;
        if (t >= tokens || col >= cols) continue;
        float *at = tile + row * stride + col, x[8], hidden[8];
        load8(u + t * cols + col, 8, hidden);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float v = g.scale * at[j];
            x[j] = v * gate(g, t, col + j);
            at[j] = v * hidden[j];
        }
        store8(du + t * cols + col, 8, x);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < thin_rows * g.experts; i += thin_threads) {
        int row = i / g.experts, e = i % g.experts;
        long long t = blockIdx.x * thin_rows + row;
        if (t >= tokens) break;
        float s = 0;
        for (int r = 0; r < g.rank; r++) s += tile[row * stride + e * g.rank + r];
        dg[t * g.experts + e] = s;
    }
}

#define HIDDEN(COLS)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(thin_threads, Thin<COLS>::blocks)                                                   \
        switch_hidden_##COLS(bf16 *u, bf16 *p, const bf16 *z, const bf16 *a, Gates g, int tokens, int width, int cols, float *parts, \
                             unsigned *counters) {                                                                                   \
        switch_hidden<COLS>(u, p, z, a, g, tokens, width, cols, parts, counters);                                                    \
    }                                                                                                                                \
    KERNEL(switch_hidden_##COLS)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(thin_threads, Thin<COLS>::blocks)                                                   \
        switch_grad_hidden_##COLS(bf16 *du, float *dg, const bf16 *dy, const bf16 *b, const bf16 *u, Gates g, int tokens, int width, \
                                  int cols, float *parts, unsigned *counters) {                                                      \
        switch_grad_hidden<COLS>(du, dg, dy, b, u, g, tokens, width, cols, parts, counters);                                         \
    }                                                                                                                                \
    KERNEL(switch_grad_hidden_##COLS)
HIDDEN(32)
HIDDEN(64)
HIDDEN(128)
HIDDEN(256)
