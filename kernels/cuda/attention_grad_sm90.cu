// AttentionGrad is the gradient of Attention, given its inputs and outputs. dq as q, dk and dv as k and v.
//
// On Hopper, as attention_grad.cu does it, with wgmma. The kernel that gathers dQ comes first and leaves what the other needs, so that o is
// read once and nothing waits for it.
#include "attention_backward.cuh"
#include "attention_sm90.cuh"

// The weights' base for a token that sees nothing is ∞, which makes all its weights zero.
__device__ inline float2 row_of(float lse, float sum, bool blind) { return blind ? make_float2(INFINITY, 0) : make_float2(lse * log2e, sum); }

// grad_queries_hopper does 64 tokens of a head with a warpgroup.
template <int D>
__device__ inline void grad_queries_hopper(bf16 *dq, const bf16 *dout, const bf16 *o, const float *lse, const bf16 *q, const bf16 *k, const bf16 *v,
                                           const int *spans, const Prepared &to, const Heads &s) {
    constexpr int n = hopper_tile, size = n * D;
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *do_tile = q_tile + size, *kv = do_tile + size; // two stages of a tile of keys and one of values
    int4 *seen = (int4 *)(kv + 4 * size);
    float2 *rows = (float2 *)(seen + n);
    Bounds *parts = (Bounds *)(rows + n);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = warp * 16, own = mine + lane % 16;
    int head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * n, group = s.query / s.kv;
    long long wide = (long long)s.query * s.dim, narrow = (long long)s.kv * s.dim;
    const bf16 *keys = k + head / group * s.dim, *values = v + head / group * s.dim;

    // All that must come from memory first is asked for before any of it is looked at.
    int4 range = ranges_of(spans, first + own, s);
    float own_lse = first + own < s.tokens ? lse[(first + own) * (long long)s.query + head] : 0;
    load_panels<D>(do_tile, dout + head * s.dim, wide, first, s.tokens, s);
    constexpr int sharers = D / 8, step = attention_threads / sharers;
    int row = threadIdx.x / sharers, chunk = threadIdx.x % sharers;
    uint4 out[n / step];
#pragma unroll
    for (int i = 0; i < n / step; i++) {
        int t = first + row + i * step;
        out[i] = t < s.tokens && 8 * chunk < s.dim ? *(const uint4 *)(o + t * wide + head * s.dim + 8 * chunk) : make_uint4(0, 0, 0, 0);
    }
    copies_commit();
    load_panels<D>(q_tile, q + head * s.dim, wide, first, s.tokens, s);
    seen[own] = range;
    Bounds warps = lanes_bounds(bounds_of(range, false));
    Walk walk(block_bounds(warps, parts).some);
    auto load = [&](int stage) {
        load_panels<D>(kv + 2 * stage * size, keys, narrow, walk.at, walk.end(), s);
        load_panels<D>(kv + (2 * stage + 1) * size, values, narrow, walk.at, walk.end(), s);
    };
    int stage = 0;
    if (walk.more()) load(0);
    copies_commit();

    // Σ do·o, by the threads that share a row, of what each has copied itself.
    copies_wait<1>();
#pragma unroll
    for (int i = 0; i < n / step; i++) {
        uint4 z = *(const uint4 *)(do_tile + panel_place(row + i * step, chunk));
        unsigned a[4] = {out[i].x, out[i].y, out[i].z, out[i].w}, b[4] = {z.x, z.y, z.z, z.w};
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) sum = fmaf(high_of(a[j]), high_of(b[j]), fmaf(low_of(a[j]), low_of(b[j]), sum));
#pragma unroll
        for (int d = sharers / 2; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (chunk == 0) rows[row + i * step].y = sum;
    }
    __syncthreads();
    if (lane < 16) {
        int t = first + own;
        rows[own] = row_of(own_lse, rows[own].y, !sees_any(range));
        to.rows[head * (long long)rounded(s) + t] = rows[own];
        if (head == 0) to.seen[t] = range;
    }
    if (head == 0) {
        Bounds all = block_bounds(lanes_bounds(bounds_of(range, true)), parts);
        if (threadIdx.x == 0) to.tiles[first / n] = all;
    }
    __syncwarp();
    float2 base[2] = {rows[mine + lane / 4], rows[mine + 8 + lane / 4]};

    float y[D / 2] = {};
    while (walk.more()) {
        const bf16 *k_tile = kv + 2 * stage * size, *v_tile = k_tile + size;
        Walk now = walk;
        tile_ready<0>();
        walk.next(n);
        if (walk.more()) load(stage ^ 1);
        copies_commit();
        Square p, ds;
        wgmma_begin();
        begin_scores<D>(p, q_tile, k_tile);
        begin_scores<D>(ds, do_tile, v_tile);
        wgmma_wait<1>();
        arrived(p);
        if (!now.within(warps, n)) hide(fragments(p), seen + mine, now.range, now.at);
#pragma unroll
        for (int i = 0; i < n / 2; i++) p[i] = exp2_fast(fmaf(p[i], s.scale2, -base[i / 2 % 2].x));
        wgmma_wait<0>();
        arrived(ds);
#pragma unroll
        for (int i = 0; i < n / 2; i++) ds[i] = p[i] * (ds[i] - base[i / 2 % 2].y);
        Weights weights(ds);
        wgmma_begin();
        begin_sums<D>(y, weights, k_tile);
        wgmma_wait<0>();
        stage ^= 1;
    }
    arrived(y);
    copies_wait<0>();
    bool blind[2] = {!sees_any(seen[mine + lane / 4]), !sees_any(seen[mine + 8 + lane / 4])};
#pragma unroll
    for (int i = 0; i < D / 2; i++) y[i] = blind[i / 2 % 2] ? 0.f : y[i] * s.scale;
    if (__syncthreads_or(!all_finite(y))) {
        to.seen[first + own] = range; // perhaps head 0 has not yet
        __syncthreads();
        grad_queries<D, 1, 32, 2>(dq, dout, q, k, v, to, s);
        return;
    }
    put_panels<D>(q_tile, mine, y);
    __syncwarp();
    store_panels<D>(dq + (first + mine) * wide + head * s.dim, q_tile, mine, wide, s.tokens - first - mine, s);
}

// hide_from makes the transposed scores of a warp's keys, from key on, -∞ where a query does not see the key.
__device__ inline void hide_from(Square &s, const int4 *seen, int key) {
    int g = key + threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < hopper_tile / 2; i += 4)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int4 r = seen[2 * i + 2 * c + e];
            if (!sees(r, g)) s[i + e] = -INFINITY;
            if (!sees(r, g + 8)) s[i + 2 + e] = -INFINITY;
        }
}

// grad_keys_hopper does 64 keys of a key-value head with a warpgroup. If EARLY, dV is begun before dP is there, which takes more registers.
template <int D, bool EARLY>
__device__ inline void grad_keys_hopper(bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const Prepared &from,
                                        const Heads &s) {
    constexpr int n = hopper_tile, size = n * D;
    DYNAMIC_SHARED(bf16, k_tile);
    bf16 *v_tile = k_tile + size, *q_tiles = v_tile + size; // two stages of a tile of queries and one of gradients
    int4 *seen_tiles = (int4 *)(q_tiles + 4 * size);
    float2 *row_tiles = (float2 *)(seen_tiles + 2 * n);
    int mine = threadIdx.x / 32 * 16, kv = blockIdx.x, first = blockIdx.y * n, group = s.query / s.kv;
    long long wide = (long long)s.query * s.dim, narrow = (long long)s.kv * s.dim;

    load_panels<D>(k_tile, k + kv * s.dim, narrow, first, s.keys, s);
    load_panels<D>(v_tile, v + kv * s.dim, narrow, first, s.keys, s);
    Tiles<n> walk(from.tiles, s, kv * group, first, first + n);
    auto load = [&](int stage) {
        int t = walk.at * n, i = threadIdx.x;
        load_panels<D>(q_tiles + 2 * stage * size, q + walk.head * s.dim, wide, t, s.tokens, s);
        load_panels<D>(q_tiles + (2 * stage + 1) * size, dout + walk.head * s.dim, wide, t, s.tokens, s);
        const float2 *rows = from.rows + walk.head * (long long)rounded(s) + t;
        if (i < n) {
            copy_async(seen_tiles + stage * n + i, from.seen + t + i, true);
        } else if (i < n + n / 2) {
            copy_async(row_tiles + stage * n + 2 * (i - n), rows + 2 * (i - n), true);
        }
    };
    int stage = 0;
    if (walk.more()) load(0);
    copies_commit();

    float gk[D / 2] = {}, gv[D / 2] = {};
    while (walk.more()) {
        const bf16 *q_tile = q_tiles + 2 * stage * size, *do_tile = q_tile + size;
        const float2 *rows = row_tiles + stage * n + 2 * (threadIdx.x % 4);
        bool whole = walk.all();
        tile_ready<0>();
        walk.next();
        if (walk.more()) load(stage ^ 1);
        copies_commit();
        Square p, ds;
        wgmma_begin();
        begin_scores<D>(p, k_tile, q_tile);
        begin_scores<D>(ds, v_tile, do_tile);
        wgmma_wait<1>();
        arrived(p);
        if (!whole) hide_from(p, seen_tiles + stage * n, first + mine);
#pragma unroll
        for (int i = 0; i < n / 2; i++) p[i] = exp2_fast(fmaf(p[i], s.scale2, -rows[i / 4 * 8 + i % 2].x));
        auto gradient = [&] {
            arrived(ds);
#pragma unroll
            for (int i = 0; i < n / 2; i++) ds[i] = p[i] * (ds[i] - rows[i / 4 * 8 + i % 2].y);
        };
        if (EARLY) {
            Weights weights(p);
            wgmma_begin();
            begin_sums<D>(gv, weights, do_tile);
            wgmma_wait<1>();
            gradient();
            Weights gradients(ds);
            wgmma_begin();
            begin_sums<D>(gk, gradients, q_tile);
            wgmma_wait<0>();
        } else {
            wgmma_wait<0>();
            gradient();
            Weights weights(p), gradients(ds);
            wgmma_begin();
            begin_sums<D>(gv, weights, do_tile);
            begin_sums<D>(gk, gradients, q_tile);
            wgmma_wait<0>();
        }
        stage ^= 1;
    }
    arrived(gk);
    arrived(gv);
    copies_wait<0>();
#pragma unroll
    for (int i = 0; i < D / 2; i++) gk[i] *= s.scale;
    if (__syncthreads_or(!all_finite(gk) || !all_finite(gv))) {
        grad_keys<D, 1, 64, 2, D / 8>(dk, dv, dout, q, k, v, from, s);
        return;
    }
    put_panels<D>(k_tile, mine, gk);
    put_panels<D>(v_tile, mine, gv);
    __syncwarp();
    long long at = (first + mine) * narrow + kv * s.dim;
    store_panels<D>(dk + at, k_tile, mine, narrow, s.keys - first - mine, s);
    store_panels<D>(dv + at, v_tile, mine, narrow, s.keys - first - mine, s);
}

#define GRAD_HOPPER(D, blocks)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(attention_threads, blocks) attention_grad_queries_hopper_##D(                       \
        bf16 *dq, const bf16 *dout, const bf16 *o, const float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const int *spans,   \
        Prepared to, Heads s) {                                                                                             \
        grad_queries_hopper<D>(dq, dout, o, lse, q, k, v, spans, to, s);                                                        \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(attention_threads, blocks) attention_grad_keys_hopper_##D(                          \
        bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, Prepared from, Heads s) {         \
        grad_keys_hopper<D, (D > 64)>(dk, dv, dout, q, k, v, from, s);                                                          \
    }
GRAD_HOPPER(64, 3)
GRAD_HOPPER(128, 2)
