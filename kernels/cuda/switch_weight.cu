// SwitchGradA adds zᵀ·du to da. da (D, C), z (T, D), du (T, C).
//
// SwitchGradB adds s·(u ⊙ Ĝ)ᵀ·dy to db. db (C, D_out), u (T, C), dy (T, D_out).
//
// On tensor cores, a block for 64 of D or D_out. These kernels are bound by reading z and dy once.
#include "switch.cuh"
#include "thin.cuh"

template <int COLS>
__device__ void switch_grad_a(float *da, const bf16 *z, const bf16 *du, int width, int tokens, int cols, float *parts, unsigned *counters) {
    constexpr int quads = COLS / 4;
    DYNAMIC_SHARED(unsigned char, shared);
    if (!thin_product<COLS, true, true>(shared, z, du, width, tokens, cols, parts, counters, AsItIs())) return;
    const float *tile = (const float *)shared;
    for (int i = threadIdx.x; i < thin_rows * quads; i += thin_threads) {
        int row = i / quads, col = i % quads * 4;
        long long d = blockIdx.x * thin_rows + row;
        if (d >= width || col >= cols) continue;
        float4 *to = (float4 *)(da + d * cols + col), s = *to;
        add4(s, *(const float4 *)(tile + row * Thin<COLS>::stride + col));
        *to = s;
    }
}

// Makes s·(u ⊙ Ĝ) of u in shared memory. The ranks are multiples of 8, so that the 8 columns of a chunk have one gate.
template <int COLS> struct Gated {
    static constexpr int most = 16; // experts
    static constexpr int size = thin_depth * most * 2, ahead = 1;
    Gates g;
    int tokens;
    int row, first;                    // of the 4 gates of a stage that this thread copies
    int expert[Thin<COLS>::panels];    // of this thread's chunks; -1: of none

    __device__ Gated(Gates g, int tokens) : g(g), tokens(tokens) {
        row = threadIdx.x / (g.experts / 4), first = threadIdx.x % (g.experts / 4) * 4;
#pragma unroll
        for (int p = 0; p < Thin<COLS>::panels; p++) {
            int e = (64 * p + threadIdx.x % 8 * 8) / g.rank;
            expert[p] = e < g.experts ? e : -1;
        }
    }

    __device__ void load(bf16 *to, int t) const {
        if (row >= thin_depth) return;
        bool inside = t + row < tokens;
        copy_async((float *)to + row * g.experts + first, g.at + (inside ? (long long)(t + row) * g.experts + first : 0), inside);
    }

    __device__ void apply(bf16 *panels, const bf16 *from) const {
        const float *gates = (const float *)from;
#pragma unroll
        for (int p = 0; p < Thin<COLS>::panels; p++)
#pragma unroll
            for (int i = 0; i < panel_size / 8 / thin_threads; i++) {
                int at = threadIdx.x + i * thin_threads, t = at / 8;
                uint4 *u = (uint4 *)(panels + p * panel_size + panel_at(t, at % 8));
                *u = scaled(*u, expert[p] < 0 ? g.scale : g.scale * gates[t * g.experts + expert[p]]);
            }
    }

    __device__ static uint4 scaled(uint4 x, float by) {
        return make_uint4(scaled(x.x, by), scaled(x.y, by), scaled(x.z, by), scaled(x.w, by));
    }
    __device__ static unsigned scaled(unsigned x, float by) {
        return pack(by * __uint_as_float(x << 16), by * __uint_as_float(x & 0xffff0000u));
    }
};

// y is s·(u ⊙ Ĝ), or what change makes of it.
template <int COLS, class Change>
__device__ void switch_grad_b(float *db, const bf16 *dy, const bf16 *y, int width, int tokens, int cols, float *parts, unsigned *counters,
                              Change change) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (!thin_product<COLS, true, true>(shared, dy, y, width, tokens, cols, parts, counters, change)) return;
    const float *tile = (const float *)shared;
    for (int i = threadIdx.x; i < thin_rows * COLS / 4; i += thin_threads) {
        int row = i % thin_rows, col = i / thin_rows * 4;
        long long d = blockIdx.x * thin_rows + row;
        if (d >= width || col >= cols) continue;
        float4 s = *(const float4 *)(tile + row * Thin<COLS>::stride + col);
        float *to = db + (long long)col * width + d;
        to[0] += s.x, to[width] += s.y, to[2ll * width] += s.z, to[3ll * width] += s.w;
    }
}

#define WEIGHT(COLS)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(thin_threads, Thin<COLS>::blocks)                                     \
        switch_grad_a_##COLS(float *da, const bf16 *z, const bf16 *du, int width, int tokens, int cols, float *parts,  \
                             unsigned *counters) {                                                                     \
        switch_grad_a<COLS>(da, z, du, width, tokens, cols, parts, counters);                                          \
    }                                                                                                                  \
    KERNEL(switch_grad_a_##COLS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(thin_threads, Thin<COLS>::blocks)                                     \
        switch_grad_b_##COLS(float *db, const bf16 *dy, const bf16 *p, int width, int tokens, int cols, float *parts,  \
                             unsigned *counters) {                                                                     \
        switch_grad_b<COLS>(db, dy, p, width, tokens, cols, parts, counters, AsItIs());                                \
    }                                                                                                                  \
    KERNEL(switch_grad_b_##COLS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(thin_threads, Thin<COLS>::blocks)                                     \
        switch_grad_b_gated_##COLS(float *db, const bf16 *dy, const bf16 *u, Gates g, int width, int tokens, int cols, \
                                   float *parts, unsigned *counters) {                                                 \
        switch_grad_b<COLS>(db, dy, u, width, tokens, cols, parts, counters, Gated<COLS>(g, tokens));                  \
    }                                                                                                                  \
    KERNEL(switch_grad_b_gated_##COLS)
WEIGHT(32)
WEIGHT(64)
WEIGHT(128)
WEIGHT(256)
