// CrossEntropy is loss = Σ_t log Σ_v exp(h[t]·w[v]) - h[t]·w[targets[t]] over the tokens with a target ≥ 0,
// and, unless dh is none, its gradient towards h, zero in the other rows. Never more than a chunk of the
// logits is in memory. loss (1), dh, h (T, D), w (V, D), targets (T) i32.
//
// LogProb is lp[t] = h[t]·w[targets[t]] - log Σ_v exp(h[t]·w[v]) for the tokens with a target ≥ 0, zero for
// the others. lp (T), otherwise as CrossEntropy.
//
// The tokens with a target are listed first. A chunk is some of that list: their rows of h are gathered, the product with w makes
// their logits, loss_rows turns those into gradients, and what the product with w makes of these is scattered to dh. How many
// there are only the device knows: blocks beyond them leave at once.
#include "common.cuh"

// Lists the tokens with a target, in order. One block.
extern "C" __global__ void loss_list(int *list, int *count, const int *targets, int tokens) {
    __shared__ int found[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32, total = 0;
    for (int base = 0; base < tokens; base += blockDim.x) {
        int t = base + threadIdx.x;
        bool has = t < tokens && targets[t] >= 0;
        unsigned mask = __ballot_sync(0xffffffffu, has);
        if (lane == 0) found[warp] = __popc(mask);
        __syncthreads();
        int place = total + __popc(mask & ((1u << lane) - 1));
        for (int w = 0; w < warps; w++) {
            if (w < warp) place += found[w];
            total += found[w];
        }
        if (has) list[place] = t;
        __syncthreads();
    }
    if (threadIdx.x == 0) *count = total;
}
KERNEL(loss_list)

// Block i copies a listed row of h to row i of rows, whose rows start stride elements apart.
template <class T> __device__ void loss_gather(T *rows, int stride, const T *h, const int *list, const int *count, int from, int width) {
    int i = blockIdx.x;
    if (from + i >= *count) return;
    const T *src = h + (long long)list[from + i] * width;
    T *dst = rows + (long long)i * stride;
    for (int d = 8 * threadIdx.x; d < width; d += 8 * blockDim.x) {
        float x[8];
        int m = min(8, width - d);
        load8(src + d, m, x);
        store8(dst + d, m, x);
    }
}

// The way back.
template <class T> __device__ void loss_scatter(T *dh, const T *rows, int stride, const int *list, const int *count, int from, int width) {
    int i = blockIdx.x;
    if (from + i >= *count) return;
    const T *src = rows + (long long)i * stride;
    T *dst = dh + (long long)list[from + i] * width;
    for (int d = 8 * threadIdx.x; d < width; d += 8 * blockDim.x) {
        float x[8];
        int m = min(8, width - d);
        load8(src + d, m, x);
        store8(dst + d, m, x);
    }
}

// Σ exp(x - most) over some x.
struct Exponentials {
    float most, sum;
};

// exp(x - most) where most is the largest of the x: zero if all of them are -∞.
__device__ inline float exp_below(float x, float most) { return expf(x - (most == __uint_as_float(0xff800000u) ? 0.f : most)); }

__device__ inline Exponentials join(Exponentials a, Exponentials b) {
    float most = fmaxf(a.most, b.most);
    return {most, a.sum * exp_below(a.most, most) + b.sum * exp_below(b.most, most)};
}

__device__ inline Exponentials warp_join(Exponentials a) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        Exponentials b;
        b.most = __shfl_xor_sync(0xffffffffu, a.most, d), b.sum = __shfl_xor_sync(0xffffffffu, a.sum, d);
        a = join(a, b);
    }
    return a;
}

// Over a block, the same in every thread.
__device__ inline Exponentials block_join(Exponentials a) {
    __shared__ Exponentials part[32], all;
    a = warp_join(a);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = a;
    __syncthreads();
    if (threadIdx.x < 32) {
        Exponentials none = {__uint_as_float(0xff800000u), 0};
        a = warp_join(threadIdx.x < (blockDim.x + 31) / 32 ? part[threadIdx.x] : none);
        if (threadIdx.x == 0) all = a;
    }
    __syncthreads();
    return all;
}

// Four elements of a row from i on; -∞ behind its end.
__device__ inline void load_logits(const float *row, int i, int n, float x[4]) {
    float4 v = i < n ? *(const float4 *)(row + i) : make_float4(0, 0, 0, 0);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (i + j >= n) x[j] = __uint_as_float(0xff800000u);
}

// Four elements of the gradient; those behind the end of the row are within its stride.
__device__ inline void store_gradient(float *row, int i, const float x[4]) { *(float4 *)(row + i) = make_float4(x[0], x[1], x[2], x[3]); }
__device__ inline void store_gradient(bf16 *row, int i, const float x[4]) {
    *(uint2 *)(row + i) = make_uint2(to_bf16(x[0]).bits | (unsigned)to_bf16(x[1]).bits << 16, to_bf16(x[2]).bits | (unsigned)to_bf16(x[3]).bits << 16);
}

// Block i takes the logits of the listed token from + i. Their loss becomes terms[from + i] or, negative, lp[token], and they
// themselves softmax - onehot of type T, in place, if the gradient is asked for. A thread keeps what it can of the row in registers;
// a longer row is read twice, the second time from the cache. Rows are aligned to 16 bytes.
template <class T, bool gradient>
__device__ void rows_losses(float *logits, int stride, int vocabulary, const int *list, const int *count, int from, const int *targets,
                            float *terms, float *lp) {
    const int kept = 8;
    if (from + (int)blockIdx.x >= *count) return;
    float *row = logits + (long long)blockIdx.x * stride;
    int token = list[from + blockIdx.x], target = targets[token], step = 4 * blockDim.x, first = 4 * threadIdx.x;
    float at_target = target < vocabulary ? row[target] : __uint_as_float(0x7fc00000u);

    float e[kept][4];
    Exponentials own = {__uint_as_float(0xff800000u), 0};
#pragma unroll
    for (int k = 0; k < kept; k++) load_logits(row, first + k * step, vocabulary, e[k]);
#pragma unroll
    for (int k = 0; k < kept; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) own.most = fmaxf(own.most, e[k][j]);
    float most = own.most; // what e is relative to
#pragma unroll
    for (int k = 0; k < kept; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) own.sum += e[k][j] = exp_below(e[k][j], most);
    for (int i = first + kept * step; i < vocabulary; i += step) {
        float x[4];
        load_logits(row, i, vocabulary, x);
        Exponentials next = {fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), 0};
        next.most = fmaxf(own.most, next.most);
#pragma unroll
        for (int j = 0; j < 4; j++) next.sum += exp_below(x[j], next.most);
        next.sum += own.sum * exp_below(own.most, next.most);
        own = next;
    }
    Exponentials all = block_join(own);

    if (threadIdx.x == 0) {
        float loss = logf(all.sum) + (all.most - at_target);
        if (terms) terms[from + blockIdx.x] = loss;
        if (lp) lp[token] = -loss;
    }
    if constexpr (gradient) {
        // The gradient's element i lies where nobody has to read any more: behind it in the row of floats, or under it.
        T *out = (T *)row;
        float inverse = 1 / all.sum, factor = exp_below(most, all.most) * inverse;
#pragma unroll
        for (int k = 0; k < kept; k++) {
            int i = first + k * step;
            if (i >= vocabulary) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) e[k][j] = e[k][j] * factor - (i + j == target ? 1.f : 0.f);
            store_gradient(out, i, e[k]);
        }
        for (int base = kept * step; base < vocabulary; base += step) {
            int i = base + first;
            float x[4];
            load_logits(row, i, vocabulary, x);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = exp_below(x[j], all.most) * inverse - (i + j == target ? 1.f : 0.f);
            if (i < vocabulary) store_gradient(out, i, x);
        }
    }
}

// loss = Σ terms. One block.
extern "C" __global__ void loss_sum(float *loss, const float *terms, const int *count) {
    __shared__ double part[256];
    int n = *count;
    double s = 0;
    for (int i = threadIdx.x; i < n; i += 256) s += terms[i];
    part[threadIdx.x] = s;
    for (int d = 128; d > 0; d >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < d) part[threadIdx.x] += part[threadIdx.x + d];
    }
    if (threadIdx.x == 0) loss[0] = (float)part[0];
}
KERNEL(loss_sum)

extern "C" __global__ void __launch_bounds__(1024) loss_rows(float *logits, int stride, int vocabulary, const int *list, const int *count, int from,
                                                             const int *targets, float *terms, float *lp) {
    rows_losses<float, false>(logits, stride, vocabulary, list, count, from, targets, terms, lp);
}
KERNEL(loss_rows)

#define LOSS(T)                                                                                                                         \
    extern "C" __global__ void loss_gather_##T(T *rows, int stride, const T *h, const int *list, const int *count, int from, int width) { \
        loss_gather(rows, stride, h, list, count, from, width);                                                                         \
    }                                                                                                                                   \
    KERNEL(loss_gather_##T)                                                                                                             \
    extern "C" __global__ void loss_scatter_##T(T *dh, const T *rows, int stride, const int *list, const int *count, int from,          \
                                                int width) {                                                                            \
        loss_scatter(dh, rows, stride, list, count, from, width);                                                                       \
    }                                                                                                                                   \
    KERNEL(loss_scatter_##T)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(1024)                                                                                  \
        loss_rows_gradient_##T(float *logits, int stride, int vocabulary, const int *list, const int *count, int from,                  \
                               const int *targets, float *terms, float *lp) {                                                           \
        rows_losses<T, true>(logits, stride, vocabulary, list, count, from, targets, terms, lp);                                          \
    }                                                                                                                                   \
    KERNEL(loss_rows_gradient_##T)
LOSS(f32)
LOSS(bf16)
