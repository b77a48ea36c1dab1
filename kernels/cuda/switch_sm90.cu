// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y or none.
//
// SwitchGradHidden is, with v = s·dy·Bᵀ (T, C): du = v ⊙ Ĝ, and dg[t, e] = Σ v[t, c]·u[t, c] over the columns
// c of expert e; dg none if E = 0. du, u (T, C), dg (T, E), dy (T, D_out).
//
// SwitchGradA adds zᵀ·du to da. da (D, C), z (T, D), du (T, C).
//
// SwitchGradB adds s·(u ⊙ Ĝ)ᵀ·dy to db. db (C, D_out), u (T, C), dy (T, D_out).
//
// What switch_hidden.cu and switch_weight.cu compute, on Hopper and for C ≤ 64; bound by reading z and dy once. What a tile's end takes
// from memory is asked for at its start.
#include "thin_sm90.cuh"

__device__ inline uint2 pack4(float4 x) { return make_uint2(pack(x.x, x.y), pack(x.z, x.w)); }
__device__ inline float4 unpack4(uint2 x) {
    return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y << 16),
                       __uint_as_float(x.y & 0xffff0000u));
}
__device__ inline float4 times(float a, float4 x) { return make_float4(a * x.x, a * x.y, a * x.z, a * x.w); }
__device__ inline float4 times(float4 a, float4 x) { return make_float4(a.x * x.x, a.y * x.y, a.z * x.z, a.w * x.w); }
__device__ inline float4 plus(float4 a, float4 x) { return make_float4(a.x + x.x, a.y + x.y, a.z + x.z, a.w + x.w); }

// The gates of 4 columns.
struct Gates4 {
    Gates g;
    int expert[4]; // -1: of none

    __device__ Gates4(Gates g, int col) : g(g) {
        int e = g.rank > 0 ? col / g.rank : g.experts, r = col - e * g.rank;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            expert[j] = e < g.experts ? e : -1;
            if (++r == g.rank) r = 0, e++;
        }
    }
    __device__ float4 of(long long t) const {
        const float *at = g.at + t * g.experts;
        return make_float4(expert[0] < 0 ? 1.f : at[expert[0]], expert[1] < 0 ? 1.f : at[expert[1]], expert[2] < 0 ? 1.f : at[expert[2]],
                           expert[3] < 0 ? 1.f : at[expert[3]]);
    }
};

// u = z·A and p = s·(u ⊙ Ĝ).
template <int S>
__device__ void switch_hidden(bf16 *u, bf16 *p, const bf16 *z, const bf16 *a, Gates g, int tokens, int width, int cols, int stages) {
    typedef TallTile<64, S, false> Tile;
    DYNAMIC_SHARED(unsigned char, shared);
    Tile tile;
    int token = blockIdx.x * 64;
    Gates4 gates(g, tile.col);
    float4 by[Tile::passes], sums[Tile::passes];
#pragma unroll
    for (int j = 0; j < Tile::passes; j++) {
        int t = token + tile.row(j);
        if (tile.row(j) < tile.end && t < tokens && tile.col < cols) by[j] = gates.of(t);
    }
    float acc[32];
    tall_product<64, S, true, false, false>(acc, shared, stages, a, z, cols, tokens, width, token, g);
    tile.sum(sums, (float *)shared, acc);
#pragma unroll
    for (int j = 0; j < Tile::passes; j++) {
        long long t = token + tile.row(j), at = t * cols + tile.col;
        if (tile.row(j) >= tile.end || t >= tokens || tile.col >= cols) continue;
        uint2 x = pack4(sums[j]);
        *(uint2 *)(u + at) = x;
        // The gradient of B knows u as it was stored, so that is what B is multiplied with.
        *(uint2 *)(p + at) = pack4(times(times(g.scale, by[j]), unpack4(x)));
    }
    tile.finish();
}

// du = v ⊙ Ĝ and dg from v = s·dy·Bᵀ.
template <int S>
__device__ void switch_grad_hidden(bf16 *du, float *dg, const bf16 *dy, const bf16 *b, const bf16 *u, Gates g, int tokens, int width,
                                   int cols, int stages) {
    typedef TallTile<64, S, false> Tile;
    DYNAMIC_SHARED(unsigned char, shared);
    Tile tile;
    int token = blockIdx.x * 64;
    Gates4 gates(g, tile.col);
    float4 by[Tile::passes], sums[Tile::passes];
    uint2 hidden[Tile::passes];
#pragma unroll
    for (int j = 0; j < Tile::passes; j++) {
        long long t = token + tile.row(j);
        hidden[j] = make_uint2(0, 0);
        if (tile.row(j) < tile.end && t < tokens && tile.col < cols)
            by[j] = gates.of(t), hidden[j] = *(const uint2 *)(u + t * cols + tile.col);
    }
    float acc[32];
    tall_product<64, S, false, false, false>(acc, shared, stages, b, dy, cols, tokens, width, token, g);
    tile.sum(sums, (float *)shared, acc);
    float *products = (float *)shared + Tile::rows * Tile::stride; // v ⊙ u, behind what other blocks still read
#pragma unroll
    for (int j = 0; j < Tile::passes; j++) {
        if (tile.row(j) >= tile.end) continue;
        long long t = token + tile.row(j);
        float4 v = times(g.scale, sums[j]);
        *(float4 *)(products + (tile.row(j) - tile.first) * Tile::stride + tile.col) = times(v, unpack4(hidden[j]));
        if (t < tokens && tile.col < cols) *(uint2 *)(du + t * cols + tile.col) = pack4(times(v, by[j]));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (tile.end - tile.first) * g.experts; i += tall_threads) {
        int row = i / g.experts, e = i - row * g.experts;
        long long t = token + tile.first + row;
        if (t >= tokens) break;
        const float *x = products + row * Tile::stride + e * g.rank;
        float s = 0;
        if (g.rank % 4 == 0)
            for (int r = 0; r < g.rank; r += 4) {
                float4 v = *(const float4 *)(x + r);
                s += v.x, s += v.y, s += v.z, s += v.w;
            }
        else
            for (int r = 0; r < g.rank; r++) s += x[r];
        dg[t * g.experts + e] = s;
    }
    tile.finish();
}

template <int S> __device__ void switch_grad_a(float *da, const bf16 *z, const bf16 *du, int width, int tokens, int cols, int stages) {
    typedef TallTile<64, S, false> Tile;
    DYNAMIC_SHARED(unsigned char, shared);
    Tile tile;
    int first = blockIdx.x * 64;
    float4 before[Tile::passes], sums[Tile::passes];
#pragma unroll
    for (int j = 0; j < Tile::passes; j++) {
        long long d = first + tile.row(j);
        if (tile.row(j) < tile.end && d < width && tile.col < cols) before[j] = *(const float4 *)(da + d * cols + tile.col);
    }
    float acc[32];
    tall_product<64, S, true, true, false>(acc, shared, stages, du, z, cols, width, tokens, first, Gates());
    tile.sum(sums, (float *)shared, acc);
#pragma unroll
    for (int j = 0; j < Tile::passes; j++) {
        long long d = first + tile.row(j);
        if (tile.row(j) < tile.end && d < width && tile.col < cols) *(float4 *)(da + d * cols + tile.col) = plus(before[j], sums[j]);
    }
    tile.finish();
}

template <int N, int S>
__device__ void switch_grad_b(float *db, const bf16 *dy, const bf16 *u, Gates g, int width, int tokens, int cols, int stages) {
    typedef TallTile<N, S, true> Tile;
    DYNAMIC_SHARED(unsigned char, shared);
    Tile tile;
    int first = blockIdx.x * N;
    // Registers are scarce here: db comes as far as the cache.
    constexpr int line = 128 / sizeof(float);
    for (int i = threadIdx.x; i < (tile.end - tile.first) * (N / line); i += tall_threads) {
        int c = tile.first + i / (N / line), d = first + i % (N / line) * line;
        if (c < cols && d < width) prefetch(db + (long long)c * width + d);
    }
    float acc[N / 2];
    tall_product<N, S, true, true, true>(acc, shared, stages, u, dy, cols, width, tokens, first, g);
    float4 before[Tile::passes], sums[Tile::passes];
    float *at = db + first + tile.col;
#pragma unroll
    for (int j = 0; j < Tile::passes; j++)
        if (tile.row(j) < tile.end && tile.row(j) < cols && first + tile.col < width)
            before[j] = *(const float4 *)(at + (long long)tile.row(j) * width);
    tile.sum(sums, (float *)shared, acc);
#pragma unroll
    for (int j = 0; j < Tile::passes; j++)
        if (tile.row(j) < tile.end && tile.row(j) < cols && first + tile.col < width)
            *(float4 *)(at + (long long)tile.row(j) * width) = plus(before[j], sums[j]);
    tile.finish();
}

#define BLOCKS(S) extern "C" __global__ void __cluster_dims__(1, S, 1) __launch_bounds__(tall_threads, 2)

#define SWITCH_GRAD_B(N, S)                                                                                                \
    BLOCKS(S) switch_grad_b_tile##N##_cluster##S(float *db, const bf16 *dy, const bf16 *u, Gates g, int width, int tokens, \
                                                 int cols, int stages) {                                                   \
        switch_grad_b<N, S>(db, dy, u, g, width, tokens, cols, stages);                                                    \
    }
#define SWITCH(S)                                                                                                              \
    BLOCKS(S) switch_hidden_tile64_cluster##S(bf16 *u, bf16 *p, const bf16 *z, const bf16 *a, Gates g, int tokens, int width,  \
                                              int cols, int stages) {                                                          \
        switch_hidden<S>(u, p, z, a, g, tokens, width, cols, stages);                                                          \
    }                                                                                                                          \
    BLOCKS(S) switch_grad_hidden_tile64_cluster##S(bf16 *du, float *dg, const bf16 *dy, const bf16 *b, const bf16 *u, Gates g, \
                                                   int tokens, int width, int cols, int stages) {                              \
        switch_grad_hidden<S>(du, dg, dy, b, u, g, tokens, width, cols, stages);                                               \
    }                                                                                                                          \
    BLOCKS(S) switch_grad_a_tile64_cluster##S(float *da, const bf16 *z, const bf16 *du, int width, int tokens, int cols,       \
                                              int stages) {                                                                    \
        switch_grad_a<S>(da, z, du, width, tokens, cols, stages);                                                              \
    }                                                                                                                          \
    SWITCH_GRAD_B(64, S)                                                                                                       \
    SWITCH_GRAD_B(128, S)
SWITCH(1)
SWITCH(2)
SWITCH(3)
SWITCH(4)
SWITCH(8)
