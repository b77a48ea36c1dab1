// Attention is o[t] = Σ_j softmax_j(q[t]·k[j]/√d)·v[j] for each head, over the keys j that token t sees:
// spans[t] = (a, b, c, e) makes them the rows [a, b) and [c, e) of k and v, two ranges that do not meet. A
// token that sees nothing gets zeros. lse[t, h] is the logarithm of the softmax's denominator, kept for the
// gradient, or none. o, q (T, H·d), k, v (N, K·d), spans (T, 4) i32, lse (T, H).
//
// Rows of k and v are the batch's own tokens in training, where one range is the token's sequence up to
// itself and the other a prompt shared by several continuations; or a cache that holds them.
//
// On Hopper, as attention.cu does it, with wgmma: scores are products of tiles in shared memory, and weights go from registers to the product with
// values. One tile of keys and one of values at a time, each copied while the other is at work, leave room for three blocks or more to a
// multiprocessor; one's products hide another's exponentials and first copies.
#include "attention_forward.cuh"
#include "attention_sm90.cuh"

// attention_hopper does 64 tokens of a head with a warpgroup.
template <int D>
__device__ inline void attention_hopper(bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const int *spans, const Heads &s) {
    constexpr int n = hopper_tile, size = n * D;
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *k_tile = q_tile + size, *v_tile = k_tile + size;
    int4 *seen = (int4 *)(v_tile + size);
    Bounds *parts = (Bounds *)(seen + n);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = warp * 16, head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * n;
    int group = s.query / s.kv;
    long long wide = (long long)s.query * s.dim, narrow = (long long)s.kv * s.dim;
    const bf16 *keys = k + head / group * s.dim, *values = v + head / group * s.dim;

    int4 range = ranges_of(spans, first + mine + lane % 16, s);
    load_panels<D>(q_tile, q + head * s.dim, wide, first, s.tokens, s);
    seen[mine + lane % 16] = range;
    Bounds warps = lanes_bounds(bounds_of(range, false));
    Walk walk(block_bounds(warps, parts).some);
    if (walk.more()) load_panels<D>(k_tile, keys, narrow, walk.at, walk.end(), s);
    copies_commit();

    float y[D / 2] = {};
    Softmax<1> state = {{{-INFINITY, -INFINITY}}, {{0, 0}}};
    while (walk.more()) {
        Walk now = walk;
        tile_ready<0>();
        load_panels<D>(v_tile, values, narrow, now.at, now.end(), s);
        copies_commit();
        Square p;
        wgmma_begin();
        begin_scores<D>(p, q_tile, k_tile);
        walk.next(n);
        wgmma_wait<0>();
        arrived(p);
        __syncthreads();
        if (walk.more()) load_panels<D>(k_tile, keys, narrow, walk.at, walk.end(), s);
        copies_commit();
        if (!now.within(warps, n)) hide(fragments(p), seen + mine, now.range, now.at);
        soften(fragments(p), fragments(y), state, s.scale2);
        Weights weights(p);
        tile_ready<1>();
        wgmma_begin();
        begin_sums<D>(y, weights, v_tile);
        wgmma_wait<0>();
        arrived(y);
    }
    copies_wait<0>();

    float by[2];
    bool blind[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = mine + 8 * h + lane / 4;
        float total = state.total[0][h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        blind[h] = !sees_any(seen[row]);
        by[h] = 1 / total;
        if (lse && lane % 4 == 0 && first + row < s.tokens)
            lse[(first + row) * (long long)s.query + head] = blind[h] ? -INFINITY : state.most[0][h] * ln2 + logf(total);
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) y[i] = blind[i / 2 % 2] ? 0.f : y[i] * by[i / 2 % 2];
    if (__syncthreads_or(!all_finite(y))) {
        attention<D, 1, 32, 2>(o, lse, q, k, v, spans, s);
        return;
    }
    put_panels<D>(q_tile, mine, y);
    __syncwarp();
    store_panels<D>(o + (first + mine) * wide + head * s.dim, q_tile, mine, wide, s.tokens - first - mine, s);
}

#define ATTENTION_HOPPER(D, blocks)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(attention_threads, blocks) attention_hopper_##D(                                    \
        bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const int *spans, Heads s) {                      \
        attention_hopper<D>(o, lse, q, k, v, spans, s);                                                                         \
    }
ATTENTION_HOPPER(64, 4)
ATTENTION_HOPPER(128, 3)
