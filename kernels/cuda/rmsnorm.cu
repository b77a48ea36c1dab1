// RMSNorm normalises pieces of len(w) elements: y = x / √(mean(x²) + eps) · w. y, x of the same shape, w (D) or,
// for the heads' norms, (d).
//
// RMSNormGrad is dx = plus + r·(w ⊙ dy) - x·r³·mean(w ⊙ dy ⊙ x), r = 1/√(mean(x²) + eps). plus as dx or none.
//
// A piece belongs to a group of threads: a block, or a power of two of lanes of one warp if it is short. A thread holds up to
// four chunks of 8 elements in registers between the sum and what follows, and reads those beyond a second time.
#include "common.cuh"

const int held = 4;  // chunks in registers

// Group is this thread's piece and its place among the threads that share it.
struct Group {
    long long first;  // the piece's first element
    int lane, size;
    bool valid;
};

template <bool block> __device__ Group group_of(long long pieces, int d, int size) {
    if constexpr (block) {
        return Group{(long long)blockIdx.x * d, (int)threadIdx.x, (int)blockDim.x, true};
    } else {
        long long piece = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / size;
        return Group{piece * d, (int)threadIdx.x % size, size, piece < pieces};
    }
}

template <bool block> __device__ float group_sum(float x, Group g) {
    if constexpr (block) {
        return block_sum(x);
    } else {
        for (int d = g.size / 2; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
        return x;
    }
}

// The number of elements, up to 8, of this thread's k-th chunk, and where in the piece it starts.
__device__ inline int chunk(Group g, int k, int d, int &from) {
    from = 8 * (g.lane + k * g.size);
    return g.valid ? max(0, min(8, d - from)) : 0;
}

template <bool fast, class W> __device__ inline void normalise(float x[8], const W *__restrict__ w, int m, float r) {
    float v[8];
    get8<fast>(w, m, v);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = x[j] * r * v[j];
}

template <bool block, bool fast, class T, class W>
__device__ void rmsnorm_pieces(T *y, const T *x, const W *__restrict__ w, long long pieces, int d, float eps, int size) {
    Group g = group_of<block>(pieces, d, size);
    y += g.first, x += g.first;
    float v[held][8], s = 0;
    int from;
#pragma unroll
    for (int k = 0; k < held; k++) {
        int m = chunk(g, k, d, from);
        get8<fast>(x + from, m, v[k]);
#pragma unroll
        for (int j = 0; j < 8; j++) s += v[k][j] * v[k][j];
    }
#pragma unroll 1
    for (int k = held; block && chunk(g, k, d, from) > 0; k++) {
        float more[8];
        get8<fast>(x + from, chunk(g, k, d, from), more);
        for (int j = 0; j < 8; j++) s += more[j] * more[j];
    }
    float r = 1.f / sqrtf(group_sum<block>(s, g) / d + eps);
#pragma unroll
    for (int k = 0; k < held; k++) {
        int m = chunk(g, k, d, from);
        normalise<fast>(v[k], w + from, m, r);
        put8<fast>(y + from, m, v[k]);
    }
#pragma unroll 1
    for (int k = held; block && chunk(g, k, d, from) > 0; k++) {
        int m = chunk(g, k, d, from);
        float more[8];
        get8<fast>(x + from, m, more);
        normalise<fast>(more, w + from, m, r);
        put8<fast>(y + from, m, more);
    }
}

// v = w ⊙ dy.
template <bool fast, class T, class W> __device__ inline void weighted(float v[8], const T *dy, const W *__restrict__ w, int m) {
    float u[8];
    get8<fast>(dy, m, v);
    get8<fast>(w, m, u);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] *= u[j];
}

// v += plus, if there is any.
template <bool fast, class T> __device__ inline void add_plus(float v[8], const T *plus, long long at, int m) {
    if (!plus) return;
    float u[8];
    get8<fast>(plus + at, m, u);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] += u[j];
}

template <bool block, bool fast, class T, class W>
__device__ void rmsnorm_grad_pieces(T *dx, const T *x, const W *__restrict__ w, const T *dy, const T *plus, long long pieces, int d,
                                    float eps, int size) {
    Group g = group_of<block>(pieces, d, size);
    dx += g.first, x += g.first, dy += g.first;
    float v[held][8], u[held][8], squares = 0, products = 0;
    int from;
#pragma unroll
    for (int k = 0; k < held; k++) {
        int m = chunk(g, k, d, from);
        get8<fast>(x + from, m, v[k]);
        weighted<fast>(u[k], dy + from, w + from, m);
#pragma unroll
        for (int j = 0; j < 8; j++) squares += v[k][j] * v[k][j], products += u[k][j] * v[k][j];
    }
#pragma unroll 1
    for (int k = held; block && chunk(g, k, d, from) > 0; k++) {
        int m = chunk(g, k, d, from);
        float a[8], b[8];
        get8<fast>(x + from, m, a);
        weighted<fast>(b, dy + from, w + from, m);
        for (int j = 0; j < 8; j++) squares += a[j] * a[j], products += b[j] * a[j];
    }
    float r = 1.f / sqrtf(group_sum<block>(squares, g) / d + eps);
    float back = r * r * r * (group_sum<block>(products, g) / d);
#pragma unroll
    for (int k = 0; k < held; k++) {
        int m = chunk(g, k, d, from);
#pragma unroll
        for (int j = 0; j < 8; j++) v[k][j] = r * u[k][j] - v[k][j] * back;
        add_plus<fast>(v[k], plus, g.first + from, m);
        put8<fast>(dx + from, m, v[k]);
    }
#pragma unroll 1
    for (int k = held; block && chunk(g, k, d, from) > 0; k++) {
        int m = chunk(g, k, d, from);
        float a[8], b[8];
        get8<fast>(x + from, m, a);
        weighted<fast>(b, dy + from, w + from, m);
        for (int j = 0; j < 8; j++) a[j] = r * b[j] - a[j] * back;
        add_plus<fast>(a, plus, g.first + from, m);
        put8<fast>(dx + from, m, a);
    }
}

template <bool block, class T, class W>
__device__ void rmsnorm(T *y, const T *x, const W *__restrict__ w, long long pieces, int d, float eps, int size) {
    if constexpr (sizeof(W) < 8) {
        if (d % 8 == 0 && aligned16(y) && aligned16(x) && aligned16(w)) {
            rmsnorm_pieces<block, true>(y, x, w, pieces, d, eps, size);
            return;
        }
    }
    rmsnorm_pieces<block, false>(y, x, w, pieces, d, eps, size);
}

template <bool block, class T, class W>
__device__ void rmsnorm_grad(T *dx, const T *x, const W *__restrict__ w, const T *dy, const T *plus, long long pieces, int d, float eps,
                             int size) {
    if constexpr (sizeof(W) < 8) {
        if (d % 8 == 0 && aligned16(dx) && aligned16(x) && aligned16(w) && aligned16(dy) && aligned16(plus)) {
            rmsnorm_grad_pieces<block, true>(dx, x, w, dy, plus, pieces, d, eps, size);
            return;
        }
    }
    rmsnorm_grad_pieces<block, false>(dx, x, w, dy, plus, pieces, d, eps, size);
}

// rows: a block for each piece. heads: size lanes for each.
#define RMSNORM(T, W, name, block, threads)                                                                          \
    extern "C" __global__ void __launch_bounds__(threads) rmsnorm_##name##_##T##_##W(                                    \
        T *y, const T *x, const W *__restrict__ w, long long pieces, int d, float eps, int size) {                                \
        rmsnorm<block>(y, x, w, pieces, d, eps, size);                                                               \
    }                                                                                                                \
    KERNEL(rmsnorm_##name##_##T##_##W)                                                                               \
    extern "C" __global__ void __launch_bounds__(threads) rmsnorm_grad_##name##_##T##_##W(                               \
        T *dx, const T *x, const W *__restrict__ w, const T *dy, const T *plus, long long pieces, int d, float eps, int size) {   \
        rmsnorm_grad<block>(dx, x, w, dy, plus, pieces, d, eps, size);                                               \
    }                                                                                                                \
    KERNEL(rmsnorm_grad_##name##_##T##_##W)
#define RMSNORMS(T, W) RMSNORM(T, W, rows, true, 512) RMSNORM(T, W, heads, false, 256)
RMSNORMS(f32, f32)
RMSNORMS(f32, bf16)
RMSNORMS(f32, f64)
RMSNORMS(bf16, f32)
RMSNORMS(bf16, bf16)
RMSNORMS(bf16, f64)
