// What attention.cu makes kernels of, and attention_sm90.cu where its own do not serve.
#pragma once
#include "attention.cuh"

constexpr float ln2 = 0.6931471805599453f;

// The state of a softmax over some of the keys, for the two rows of each of a lane's M fragments.
template <int M> struct Softmax {
    float most[M][2];   // the largest score, times log₂(e)
    float total[M][2];  // Σ exp(score) relative to it, over this lane's columns
};

// soften turns scores to weights relative to the largest score so far, and what was added up before to the same.
template <int M, int N, int C> __device__ inline void soften(float (&s)[M][N][4], float (&y)[M][C][4], Softmax<M> &state, float scale2) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = s[m][0][2 * h];
#pragma unroll
            for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            most = fmaxf(state.most[m][h], most * scale2);
            float by = most == -INFINITY ? 0.f : most;
            float fade = exp2_fast(state.most[m][h] - by), total = state.total[m][h] * fade;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale2, -by));
                    total += s[m][n][e];
                }
            state.most[m][h] = most;
            state.total[m][h] = total;
#pragma unroll
            for (int n = 0; n < C; n++) y[m][n][2 * h] *= fade, y[m][n][2 * h + 1] *= fade;
        }
}

// any_odd reports whether there is a number that is not finite among those of a tile of n rows that this warp has loaded. Each thread
// looks at what load_tile made it copy, which it need not wait for others to see.
template <int D, int n> __device__ inline bool any_odd(const bf16 *tile) {
    constexpr int sharers = row_sharers<D>, step = attention_threads / sharers;
    int chunk = threadIdx.x % sharers;
    bool odd = false;
    if (chunk < D / 8)
#pragma unroll 4
        for (int row = threadIdx.x / sharers; row < n; row += step) {
            uint4 x = *(const uint4 *)(tile + place<D>(row, chunk));
            odd |= !(both_finite(x.x) && both_finite(x.y) && both_finite(x.z) && both_finite(x.w));
        }
    return __ballot_sync(0xffffffffu, odd) != 0;
}

// add_odd adds to y what is not finite in a tile of n values, where it is seen.
template <int D, int M, int n> __device__ inline void add_odd(float (&y)[M][D / 8][4], const bf16 *v, const int4 *seen, int range, int key) {
    int g = threadIdx.x % 32 / 4;
#pragma unroll 1
    for (int j = 0; j < n; j++) {
        unsigned rows = 0;
        for (int i = 0; i < 2 * M; i++) {
            int4 r = seen[8 * i + g];
            if (range == 0 ? inside(key + j, r.x, r.y) : inside(key + j, r.z, r.w)) rows |= 1u << i;
        }
        add_seen<D, M, D / 8>(y, v, j, 0, rows);
    }
}

// attention does 64·M tokens of a head, 16·M by each of four warps, with tiles of n keys, of which `stages` fit.
template <int D, int M, int n, int stages>
__device__ inline void attention(bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const int *spans, const Heads &s) {
    constexpr int size = n * D, tokens = 64 * M;
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *kv = q_tile + tokens * D;  // stages of a tile of keys and one of values
    int4 *seen = (int4 *)(kv + 2 * stages * size);
    Bounds *parts = (Bounds *)(seen + tokens);
    int *odd = (int *)(parts + 4);  // of each stage and warp
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = warp * 16 * M, head = blockIdx.x;
    int first = (gridDim.y - 1 - blockIdx.y) * tokens;
    long long wide = (long long)s.query * s.dim, narrow = (long long)s.kv * s.dim;
    k += head / (s.query / s.kv) * s.dim;
    v += head / (s.query / s.kv) * s.dim;

    load_tile<D, tokens>(q_tile, q + head * s.dim, wide, first, s.tokens, s);
    int own = mine + lane % (16 * M);
    int4 range = ranges_of(spans, first + own, s);
    seen[own] = range;
    Bounds warps = warp_bounds(bounds_of(range, false)), blocks = block_bounds(warps, parts);
    Walk walk(blocks.some);
    auto load = [&](int stage) {
        load_tile<D, n>(kv + 2 * stage * size, k, narrow, walk.at, walk.end(), s);
        load_tile<D, n>(kv + (2 * stage + 1) * size, v, narrow, walk.at, walk.end(), s);
        copies_commit();
    };
    int stage = 0;
    if (walk.more()) load(0);
    copies_commit();

    Rows<D, M, D <= 64> rows;
    float y[M][D / 8][4] = {};
    Softmax<M> state;
    for (int m = 0; m < M; m++)
        for (int h = 0; h < 2; h++) state.most[m][h] = -INFINITY, state.total[m][h] = 0;
    for (bool begun = false; walk.more(); begun = true) {
        const bf16 *k_tile = kv + 2 * stage * size, *v_tile = k_tile + size;
        Walk now = walk;
        copies_wait<0>();
        if (!now.within(blocks, n)) {
            bool some = any_odd<D, n>(v_tile);
            if (lane == 0) odd[4 * stage + warp] = some;
        }
        __syncthreads();
        walk.next(n);
        if (stages == 2 && walk.more()) load(stage ^ 1);
        if (!begun) rows.load(q_tile, mine);
        if (now.meets(warps, n)) {
            float p[M][n / 8][4];
            scores<D>(p, rows, k_tile);
            bool spoilt = false;
            if (!now.within(warps, n)) {
                hide(p, seen + mine, now.range, now.at);
                int4 marks = *(const int4 *)(odd + 4 * stage);
                spoilt = marks.x | marks.y | marks.z | marks.w;
            }
            soften(p, y, state, s.scale2);
            accumulate<D>(y, p, v_tile, 0, spoilt);
            if (spoilt) add_odd<D, M, n>(y, v_tile, seen + mine, now.range, now.at);
        }
        if (stages == 2) {
            stage ^= 1;
        } else {
            __syncthreads();
            if (walk.more()) load(0);
        }
    }

    // The rest is each warp's own: its rows of q's tile take the result.
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = mine + 16 * m + 8 * h + lane / 4;
            float total = state.total[m][h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            bool blind = !sees_any(seen[row]);
            float by = 1 / total;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) y[m][i][e] = blind ? 0.f : y[m][i][e] * by;
            if (lse && lane % 4 == 0 && first + row < s.tokens)
                lse[(first + row) * (long long)s.query + head] = blind ? -INFINITY : state.most[m][h] * ln2 + logf(total);
        }
    copies_wait<0>();
    __syncthreads();
    put<D>(q_tile, mine, 0, y);
    __syncwarp();
    store_tile<D>(o + (first + mine) * wide + head * s.dim, q_tile, mine, 16 * M, 0, D / 8, wide, s.tokens - first - mine, s);
}
