// What attention_grad.cu makes kernels of, and attention_grad_sm90.cu where its own do not serve.
#pragma once
#include "attention.cuh"

// What attention_prepare leaves for the others, or on Hopper attention_grad_queries_hopper for the keys. Tokens are rounded up to whole tiles.
struct Prepared {
    float2 *rows;  // (H, tokens): lse·log₂(e), on Hopper ∞ for a token that sees nothing, and Σ do·o
    int4 *seen;    // (tokens): as ranges_of gives them
    Bounds *tiles; // of 64 tokens
};

__device__ inline int rounded(const Heads &s) { return (s.tokens + attention_tile - 1) / attention_tile * attention_tile; }

// One block for each tile and head; 8 lanes share a token.
template <class T> __device__ inline void prepare(const Prepared &to, const T *dout, const T *o, const float *lse, const int *spans, const Heads &s) {
    int tile = blockIdx.y, head = blockIdx.x, lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 8; row < attention_tile; row += blockDim.x / 8) {
        int t = tile * attention_tile + row;
        long long at = t * (long long)s.query + head;
        float sum = 0;
        for (int i = threadIdx.x % 8 * 8; i < s.dim && t < s.tokens; i += 64) {
            float x[8], y[8];
            load8(dout + at * s.dim + i, lesser(8, s.dim - i), x);
            load8(o + at * s.dim + i, lesser(8, s.dim - i), y);
#pragma unroll
            for (int j = 0; j < 8; j++) sum = fmaf(x[j], y[j], sum);
        }
        for (int d = 4; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (threadIdx.x % 8 == 0)
            to.rows[head * (long long)rounded(s) + t] = t < s.tokens ? make_float2(lse[at] * log2e, sum) : make_float2(0, 0);
    }
    if (head > 0 || threadIdx.x >= 32) return;
    int t = tile * attention_tile + lane;
    int4 a = ranges_of(spans, t, s), b = ranges_of(spans, t + 32, s);
    to.seen[t] = a, to.seen[t + 32] = b;
    Bounds all = warp_bounds(join(bounds_of(a, true), bounds_of(b, true)));
    if (lane == 0) to.tiles[tile] = all;
}

// Tiles goes through the tiles of n queries, for one query head after the other, of which some see the keys [from, to).
template <int n> struct Tiles {
    const Bounds *tiles;
    int count, heads, from, to;
    int begin, end;       // of those with such a query; begin is a multiple of 32
    int head, at;         // the current one: at counts tiles
    unsigned some, whole; // of the 32 tiles that at belongs to, from at on: those with a query that sees, with only queries that see all

    __device__ Tiles(const Bounds *tiles_, const Heads &s, int head_, int from_, int to_)
        : tiles(tiles_), count((s.tokens + n - 1) / n), heads(head_ + s.query / s.kv), from(from_), to(to_), head(head_) {
        begin = count, end = 0;
#pragma unroll 4
        for (int i = threadIdx.x % 32; i < count; i += 32)
            if (meets(tiles[i * n / attention_tile].some)) begin = lesser(begin, i), end = i + 1;
#pragma unroll
        for (int d = 16; d > 0; d >>= 1) {
            begin = lesser(begin, __shfl_xor_sync(0xffffffffu, begin, d));
            end = greater(end, __shfl_xor_sync(0xffffffffu, end, d));
        }
        begin = begin / 32 * 32, at = begin;
        if (end == 0) head = heads;
        look();
        settle();
    }
    __device__ bool meets(int4 some) const { return some.x < to && from < some.y || some.z < to && from < some.w; }
    __device__ bool more() const { return head < heads; }
    __device__ bool all() const { return whole & 1; }
    __device__ void next() {
        step();
        settle();
    }
    __device__ void step() {
        at++, some >>= 1, whole >>= 1;
        if (at >= end) at = begin, head++;
        if (at % 32 == 0) look();
    }
    __device__ void settle() {
        while (more() && !(some & 1)) {
            if (some == 0) { // none of these tiles is left
                at |= 31;
                step();
            } else {
                int skip = __ffs(some) - 1;
                at += skip, some >>= skip, whole >>= skip;
            }
        }
    }
    __device__ void look() {
        int i = at + threadIdx.x % 32;
        bool met = false, within = false;
        if (i < count) {
            Bounds b = tiles[i * n / attention_tile];
            met = meets(b.some);
            within = b.all.x <= from && to <= b.all.y || b.all.z <= from && to <= b.all.w;
        }
        some = __ballot_sync(0xffffffffu, met);
        whole = __ballot_sync(0xffffffffu, within);
    }
};

// hide_keys makes the transposed scores, of keys from key on as rows and queries as columns, -∞ where a query does not see the
// key, and reports whether one of them or its dp was not finite.
template <int M, int N> __device__ inline bool hide_keys(float (&s)[M][N][4], const float (&dp)[M][N][4], const int4 *seen, int key) {
    int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    bool odd = false;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int4 r = seen[8 * n + 2 * c + e];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = e; i < 4; i += 2) {
                    if (sees(r, key + 16 * m + i / 2 * 8 + g)) continue;
                    odd |= !is_finite(s[m][n][i]) || !is_finite(dp[m][n][i]);
                    s[m][n][i] = -INFINITY;
                }
        }
    return odd;
}

// weigh turns transposed scores to weights and dP to dS.
template <int M, int N> __device__ inline void weigh(float (&s)[M][N][4], float (&dp)[M][N][4], const float2 *rows, float scale2) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        float4 two = *(const float4 *)(rows + 8 * n + 2 * (threadIdx.x % 4));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool hidden = s[m][n][i] == -INFINITY;
                float p = exp2_fast(fmaf(s[m][n][i], scale2, -(i % 2 ? two.z : two.x)));
                s[m][n][i] = hidden ? 0 : p;
                dp[m][n][i] = hidden ? 0 : p * (dp[m][n][i] - (i % 2 ? two.w : two.y));
            }
    }
}

// grad_keys does 64·M keys of a key-value head, 16·M by each of four warps, with tiles of n queries, of which `stages` fit. It
// writes C chunks of 8 columns.
template <int D, int M, int n, int stages, int C>
__device__ inline void grad_keys(bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v,
                                 const Prepared &from, const Heads &s) {
    constexpr int keys = 64 * M, size = n * D;
    DYNAMIC_SHARED(bf16, k_tile);
    bf16 *v_tile = k_tile + keys * D, *q_tiles = v_tile + keys * D; // stages of a tile of queries and one of gradients
    int4 *seen_tiles = (int4 *)(q_tiles + 2 * stages * size);
    float2 *row_tiles = (float2 *)(seen_tiles + stages * n);
    int warp = threadIdx.x / 32, mine = warp * 16 * M, kv = blockIdx.x, first = blockIdx.y * keys, part = blockIdx.z * C;
    long long wide = (long long)s.query * s.dim, narrow = (long long)s.kv * s.dim;

    Tiles<n> walk(from.tiles, s, kv * (s.query / s.kv), first, first + keys);
    auto load = [&](int stage) {
        int t = walk.at * n, i = threadIdx.x;
        load_tile<D, n>(q_tiles + 2 * stage * size, q + walk.head * s.dim, wide, t, s.tokens, s);
        load_tile<D, n>(q_tiles + (2 * stage + 1) * size, dout + walk.head * s.dim, wide, t, s.tokens, s);
        const float2 *rows = from.rows + walk.head * (long long)rounded(s) + t;
        if (i < n) {
            copy_async(seen_tiles + stage * n + i, from.seen + t + i, true);
        } else if (i < n + n / 2) {
            copy_async(row_tiles + stage * n + 2 * (i - n), rows + 2 * (i - n), true);
        }
        copies_commit();
    };
    load_tile<D, keys>(k_tile, k + kv * s.dim, narrow, first, s.keys, s);
    load_tile<D, keys>(v_tile, v + kv * s.dim, narrow, first, s.keys, s);
    int stage = 0;
    if (walk.more()) load(0);
    copies_commit();

    Rows<D, M, D <= 64> key_rows, value_rows;
    float gk[M][C][4] = {}, gv[M][C][4] = {};
    for (bool begun = false; walk.more(); begun = true) {
        const bf16 *q_tile = q_tiles + 2 * stage * size, *do_tile = q_tile + size;
        const int4 *seen = seen_tiles + stage * n;
        bool whole = walk.all();
        copies_wait<0>();
        __syncthreads();
        const float2 *rows = row_tiles + stage * n;
        walk.next();
        if (stages == 2 && walk.more()) load(stage ^ 1);
        if (!begun) key_rows.load(k_tile, mine), value_rows.load(v_tile, mine);
        float p[M][n / 8][4], ds[M][n / 8][4];
        scores<D>(p, key_rows, q_tile);
        scores<D>(ds, value_rows, do_tile);
        bool odd = !whole && hide_keys(p, ds, seen, first + mine);
        odd = __ballot_sync(0xffffffffu, odd) != 0;
        weigh(p, ds, rows, s.scale2);
        accumulate<D>(gv, p, do_tile, part, odd);
        accumulate<D>(gk, ds, q_tile, part, odd);
        // dS is NaN in each pair with a number that is not finite; P is not.
        if (odd) {
#pragma unroll 1
            for (int t = 0; t < n; t++) {
                unsigned bits = 0;
                for (int i = 0; i < 2 * M; i++)
                    if (sees(seen[t], first + mine + 8 * i + (int)threadIdx.x % 32 / 4)) bits |= 1u << i;
                add_seen<D, M, C>(gv, do_tile, t, part, bits);
            }
        }
        if (stages == 2) {
            stage ^= 1;
        } else {
            __syncthreads();
            if (walk.more()) load(0);
        }
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < C; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) gk[m][i][e] *= s.scale;
    copies_wait<0>();
    __syncthreads();
    put<D>(k_tile, mine, part, gk);
    put<D>(v_tile, mine, part, gv);
    __syncwarp();
    long long at = (first + mine) * narrow + kv * s.dim;
    store_tile<D>(dk + at, k_tile, mine, 16 * M, part, C, narrow, s.keys - first - mine, s);
    store_tile<D>(dv + at, v_tile, mine, 16 * M, part, C, narrow, s.keys - first - mine, s);
}

// grad_queries does 64·M tokens of a head, as attention does.
template <int D, int M, int n, int stages>
__device__ inline void grad_queries(bf16 *dq, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const Prepared &from,
                                    const Heads &s) {
    constexpr int size = n * D, tokens = 64 * M;
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *do_tile = q_tile + tokens * D, *kv = do_tile + tokens * D; // stages of a tile of keys and one of values
    int4 *seen = (int4 *)(kv + 2 * stages * size);
    float2 *rows = (float2 *)(seen + tokens);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = warp * 16 * M, head = blockIdx.x;
    int first = (gridDim.y - 1 - blockIdx.y) * tokens;
    long long wide = (long long)s.query * s.dim, narrow = (long long)s.kv * s.dim;
    k += head / (s.query / s.kv) * s.dim;
    v += head / (s.query / s.kv) * s.dim;

    load_tile<D, tokens>(q_tile, q + head * s.dim, wide, first, s.tokens, s);
    load_tile<D, tokens>(do_tile, dout + head * s.dim, wide, first, s.tokens, s);
    int own = mine + lane % (16 * M);
    int4 range = make_int4(0, 0, 0, 0);
    float2 row = make_float2(0, 0);
    if (first + own < s.tokens) range = from.seen[first + own], row = from.rows[head * (long long)rounded(s) + first + own];
    Bounds warps = warp_bounds(bounds_of(range, false));
    Walk walk(block_bounds(warps, (Bounds *)rows).some);
    __syncthreads();
    seen[own] = range;
    rows[own] = row;
    auto load = [&](int stage) {
        load_tile<D, n>(kv + 2 * stage * size, k, narrow, walk.at, walk.end(), s);
        load_tile<D, n>(kv + (2 * stage + 1) * size, v, narrow, walk.at, walk.end(), s);
        copies_commit();
    };
    int stage = 0;
    if (walk.more()) load(0);
    copies_commit();
    Rows<D, M, false> queries, grads;
    queries.load(q_tile, mine);
    grads.load(do_tile, mine);
    float y[M][D / 8][4] = {};
    while (walk.more()) {
        const bf16 *k_tile = kv + 2 * stage * size, *v_tile = k_tile + size;
        Walk now = walk;
        copies_wait<0>();
        __syncthreads();
        walk.next(n);
        if (stages == 2 && walk.more()) load(stage ^ 1);
        if (now.meets(warps, n)) {
            float p[M][n / 8][4], ds[M][n / 8][4];
            scores<D>(p, queries, k_tile);
            bool odd = !now.within(warps, n) && hide(p, seen + mine, now.range, now.at);
            odd = __ballot_sync(0xffffffffu, odd) != 0;
            scores<D>(ds, grads, v_tile);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float2 row = rows[mine + 16 * m + 8 * h + lane / 4];
#pragma unroll
                    for (int i = 0; i < n / 8; i++)
#pragma unroll
                        for (int e = 2 * h; e < 2 * h + 2; e++) {
                            float w = exp2_fast(fmaf(p[m][i][e], s.scale2, -row.x));
                            ds[m][i][e] = p[m][i][e] == -INFINITY ? 0.f : w * (ds[m][i][e] - row.y);
                        }
                }
            // Two copies, since asking inside costs registers that are not there.
            if (odd)
                accumulate<D>(y, ds, k_tile, 0, true);
            else
                accumulate<D>(y, ds, k_tile, 0, false);
        }
        if (stages == 2) {
            stage ^= 1;
        } else {
            __syncthreads();
            if (walk.more()) load(0);
        }
    }

    copies_wait<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            bool blind = !sees_any(seen[mine + 16 * m + 8 * h + lane / 4]);
#pragma unroll
            for (int i = 0; i < D / 8; i++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) y[m][i][e] = blind ? 0.f : y[m][i][e] * s.scale;
        }
    put<D>(q_tile, mine, 0, y);
    __syncwarp();
    store_tile<D>(dq + (first + mine) * wide + head * s.dim, q_tile, mine, 16 * M, 0, D / 8, wide, s.tokens - first - mine, s);
}
