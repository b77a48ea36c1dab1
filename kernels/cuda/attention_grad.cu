// AttentionGrad is the gradient of Attention, given its inputs and outputs. dq as q, dk and dv as k and v.
//
// With P = softmax(S), S = QKᵀ/√d, recomputed from lse: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P ⊙ (dP - rowsum(dO ⊙ O)), dQ = dS·K/√d and
// dK = dSᵀ·Q/√d (Dao et al., arXiv 2205.14135, appendix B). One kernel gathers dK and dV, with the keys as rows, so that Pᵀ and
// dSᵀ need not leave the registers; another dQ. Each element is summed by one thread, in the same order every time.
#include "attention_backward.cuh"

#define PREPARE(T)                                                                                                                    \
    extern "C" __global__ void attention_prepare_##T(Prepared to, const T *dout, const T *o, const float *lse, const int *spans, Heads s) { \
        prepare(to, dout, o, lse, spans, s);                                                                                          \
    }                                                                                                                                 \
    KERNEL(attention_prepare_##T)
PREPARE(f32)
PREPARE(bf16)

#define GRAD(D, keys, key_tile, key_stages, chunks, queries, query_tile)                                                              \
    extern "C" __global__ void __launch_bounds__(attention_threads) attention_grad_keys_bf16_##D(                                    \
        bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, Prepared from, Heads s) {                   \
        grad_keys<D, keys, key_tile, key_stages, chunks>(dk, dv, dout, q, k, v, from, s);                                             \
    }                                                                                                                                 \
    KERNEL(attention_grad_keys_bf16_##D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(attention_threads) attention_grad_queries_bf16_##D(                                 \
        bf16 *dq, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, Prepared from, Heads s) {                             \
        grad_queries<D, queries, query_tile, key_stages>(dq, dout, q, k, v, from, s);                                                 \
    }                                                                                                                                 \
    KERNEL(attention_grad_queries_bf16_##D)
GRAD(16, 1, 64, 2, 2, 2, 32)
GRAD(32, 1, 64, 2, 4, 2, 32)
GRAD(64, 1, 64, 2, 8, 2, 32)
GRAD(96, 1, 64, 2, 12, 2, 32)
GRAD(128, 1, 64, 2, 16, 2, 32)
GRAD(256, 1, 32, 1, 16, 1, 32)

// In float32 a warp takes a token of a head, 32 keys at a time, and adds up in dq.
extern "C" __global__ void attention_grad_queries_f32(float *dq, const float *dout, const float *q, const float *k,
                                                      const float *v, Prepared from, Heads s) {
    int lane = threadIdx.x % 32;
    long long unit = blockIdx.x * (long long)(blockDim.x / 32) + threadIdx.x / 32, t = unit / s.query;
    if (t >= s.tokens) return;
    int head = unit % s.query, kv = head / (s.query / s.kv) * s.dim;
    long long narrow = (long long)s.kv * s.dim;
    int4 r = from.seen[t];
    float2 row = from.rows[head * (long long)rounded(s) + t];
    q += unit * s.dim, dout += unit * s.dim, dq += unit * s.dim, k += kv, v += kv;
    bool begun = false;
    for (int range = 0; range < 2; range++) {
        int start = range == 0 ? r.x : r.z, end = start + (range == 0 ? r.y : r.w);
        for (int at = start; at < end; at += 32) {
            int n = lesser(32, end - at);
            float p = exp2f(dots(q, k + at * narrow, narrow, n, s.dim) * s.scale2 - row.x);
            float ds = p * (dots(dout, v + at * narrow, narrow, n, s.dim) - row.y);
            add_rows(dq, ds, k + at * narrow, narrow, n, s.dim, begun, 1);
            begun = true;
        }
    }
    for (int i = lane; i < s.dim; i += 32) dq[i] = begun ? dq[i] * s.scale : 0.f;
}
KERNEL(attention_grad_queries_f32)

// A warp takes a key of a key-value head, and of 32 tokens at a time those that see it.
extern "C" __global__ void attention_grad_keys_f32(float *dk, float *dv, const float *dout, const float *q, const float *k,
                                                      const float *v, Prepared from, Heads s) {
    int lane = threadIdx.x % 32;
    long long unit = blockIdx.x * (long long)(blockDim.x / 32) + threadIdx.x / 32;
    if (unit / s.kv >= s.keys) return;
    int key = unit / s.kv, kv = unit % s.kv, group = s.query / s.kv;
    long long wide = (long long)s.query * s.dim;
    k += unit * s.dim, v += unit * s.dim, dk += unit * s.dim, dv += unit * s.dim;
    bool begun = false;
    for (int tile = 0; tile < rounded(s) / attention_tile; tile++) {
        int4 some = from.tiles[tile].some;
        if (!(some.x <= key && key < some.y) && !(some.z <= key && key < some.w)) continue;
        for (int at = tile * attention_tile; at < (tile + 1) * attention_tile; at += 32) {
            // Runs of tokens that all see it.
            unsigned seers = __ballot_sync(0xffffffffu, sees(from.seen[at + lane], key));
            while (seers) {
                int first = __ffs(seers) - 1, n = __ffs(~(seers >> first)) - 1;
                if (n < 0) n = 32;
                seers &= n == 32 ? 0 : ~(((1u << n) - 1) << first);
                for (int head = kv * group; head < (kv + 1) * group; head++) {
                    const float *queries = q + (at + first) * wide + head * s.dim, *grads = dout + (at + first) * wide + head * s.dim;
                    float2 row = make_float2(0, 0);
                    if (lane < n) row = from.rows[head * (long long)rounded(s) + at + first + lane];
                    float p = exp2f(dots(k, queries, wide, n, s.dim) * s.scale2 - row.x);
                    float ds = p * (dots(v, grads, wide, n, s.dim) - row.y);
                    add_rows(dk, ds, queries, wide, n, s.dim, begun, 1);
                    add_rows(dv, p, grads, wide, n, s.dim, begun, 1);
                    begun = true;
                }
            }
        }
    }
    for (int i = lane; i < s.dim; i += 32) {
        dk[i] = begun ? dk[i] * s.scale : 0.f;
        dv[i] = begun ? dv[i] : 0.f;
    }
}
KERNEL(attention_grad_keys_f32)
