// Attention is o[t] = Σ_j softmax_j(q[t]·k[j]/√d)·v[j] for each head, over the keys j that token t sees:
// spans[t] = (a, b, c, e) makes them the rows [a, b) and [c, e) of k and v, two ranges that do not meet. A
// token that sees nothing gets zeros. lse[t, h] is the logarithm of the softmax's denominator, kept for the
// gradient, or none. o, q (T, H·d), k, v (N, K·d), spans (T, 4) i32, lse (T, H).
//
// Rows of k and v are the batch's own tokens in training, where one range is the token's sequence up to
// itself and the other a prompt shared by several continuations; or a cache that holds them.
//
// In bf16 a block takes some tokens of a head through the keys that any of them sees, tile by tile, first all of the first ranges
// and then all of the second; the maximum and the denominator of the softmax follow (Dao, FlashAttention-2, arXiv 2307.08691). Blocks with
// another z do as many other tokens: few ones, which may be of sequences far apart in a cache, are done each by itself.
#include "attention_forward.cuh"

#define ATTENTION(D, M, n, stages)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(attention_threads) attention_bf16_##D(                                             \
        bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const int *spans, Heads s) {                                \
        long long first = blockIdx.z * (long long)s.tokens, at = first * s.query * s.dim;                                             \
        lse = lse ? lse + first * s.query : lse;                                                                                      \
        attention<D, M, n, stages>(o + at, lse, q + at, k, v, spans + 4 * first, s);                                                  \
    }                                                                                                                                 \
    KERNEL(attention_bf16_##D)
ATTENTION(16, 2, 64, 2)
ATTENTION(32, 2, 64, 2)
ATTENTION(64, 2, 64, 2)
ATTENTION(96, 2, 32, 2)
ATTENTION(128, 2, 32, 2)
ATTENTION(256, 1, 32, 2)

// In float32 a warp takes a token of a head, 32 keys at a time, and adds up in o.
extern "C" __global__ void attention_f32(float *o, float *lse, const float *q, const float *k, const float *v, const int *spans, Heads s) {
    int lane = threadIdx.x % 32;
    long long unit = blockIdx.x * (long long)(blockDim.x / 32) + threadIdx.x / 32, t = unit / s.query;
    if (t >= s.tokens) return;
    int head = unit % s.query, kv = head / (s.query / s.kv) * s.dim;
    long long narrow = (long long)s.kv * s.dim;
    int4 r = ranges_of(spans, (int)t, s);
    q += unit * s.dim, o += unit * s.dim, k += kv, v += kv;
    float most = -INFINITY, total = 0;
    bool begun = false;
    for (int range = 0; range < 2; range++) {
        int start = range == 0 ? r.x : r.z, end = start + (range == 0 ? r.y : r.w);
        for (int from = start; from < end; from += 32) {
            int n = lesser(32, end - from);
            const float *keys = k + from * narrow, *values = v + from * narrow;
            float x = dots(q, keys, narrow, n, s.dim), score = lane < n ? x * s.scale2 : -INFINITY;
            float largest = fmaxf(most, warp_max(score)), by = largest == -INFINITY ? 0.f : largest;
            float p = exp2f(score - by), fade = exp2f(most - by);
            most = largest;
            total = total * fade + warp_sum(p);
            add_rows(o, p, values, narrow, n, s.dim, begun, fade);
            begun = true;
        }
    }
    for (int i = lane; i < s.dim; i += 32) o[i] = begun ? o[i] / total : 0.f;
    if (lse && lane == 0) lse[unit] = begun ? most * ln2 + logf(total) : -INFINITY;
}
KERNEL(attention_f32)
