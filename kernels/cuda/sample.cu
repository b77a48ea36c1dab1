// Sample chooses a token for each row of logits: the temperature divides the logits, TopK and then TopP leave
// some of them, and the token is the first whose cumulative probability, largest first, exceeds u[t], which is
// uniform in [0, 1). ids (T) i32, logits (T, V) of type Float or Param, u (T) of type Param. A NaN is never chosen; a
// row of nothing else gives 0. Equal logits are in the order of their ids.
//
// A block takes a row. Nothing is sorted: which logit a sum over the largest ones ends at is found digit by digit, as a radix sort
// would, in one pass over the row for each digit. Probabilities times a constant are integers, so that sums over the same logits
// agree whatever their order.
#include "common.cuh"

typedef unsigned long long u64;

struct Rule {
    double top_p;              // 0: all
    float inverse_temperature;
    int top_k, unused;         // 0: all
};

// A token that is larger than others, id -1 for none; and how many it was chosen from.
struct Best {
    float logit;
    int id, count;
};

__device__ inline Best better(Best a, Best b) {
    bool first = b.id < 0 || (a.id >= 0 && (a.logit > b.logit || (a.logit == b.logit && a.id < b.id)));
    Best best = first ? a : b;
    best.count = a.count + b.count;
    return best;
}

__device__ inline Best warp_best(Best a) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        Best b;
        b.logit = __shfl_xor_sync(0xffffffffu, a.logit, d);
        b.id = __shfl_xor_sync(0xffffffffu, a.id, d);
        b.count = __shfl_xor_sync(0xffffffffu, a.count, d);
        a = better(a, b);
    }
    return a;
}

// The largest number of a row, the first among equals, and how many numbers there are. In every thread.
template <class T> __device__ Best largest(const T *row, int n) {
    __shared__ Best part[32];
    Best own = {0, -1, 0};
    constexpr int together = 4; // loads, of which each alone would be waited for
    for (int i = 8 * threadIdx.x; i < n; i += together * 8 * blockDim.x) {
        float x[together][8];
#pragma unroll
        for (int k = 0; k < together; k++)
            if (int at = i + k * 8 * blockDim.x; at < n) load8(row + at, min(8, n - at), x[k]);
#pragma unroll
        for (int k = 0; k < together; k++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                int at = i + k * 8 * blockDim.x + j;
                if (at >= n || x[k][j] != x[k][j]) continue;
                if (own.id < 0 || x[k][j] > own.logit) own.logit = x[k][j], own.id = at;
                own.count++;
            }
    }
    own = warp_best(own);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = own;
    __syncthreads();
    Best none = {0, -1, 0};
    own = warp_best(threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : none);
    __syncthreads();
    return own;
}

// A number as an unsigned integer that is in the same order; bf16 needs 16 bits.
template <class T> __device__ inline unsigned key_of(float x) {
    unsigned u = x == 0 ? 0 : __float_as_uint(x); // both zeros are one
    u = u >> 31 ? ~u : u | 0x80000000u;
    return u >> (32 - 8 * sizeof(T));
}
template <class T> __device__ inline float number_of(unsigned key) {
    unsigned u = key << (32 - 8 * sizeof(T));
    if (u >> 31) return __uint_as_float(u & 0x7fffffffu);
    return __uint_as_float(~u & 0xffffffffu << (32 - 8 * sizeof(T)));
}

// How a row's logits are weighed: by probability, where the largest has 2⁴⁰, or all alike.
struct Weigh {
    float most, inverse_temperature;
    bool alike;
    __device__ u64 operator()(float x) const {
        if (alike) return 1;
        if (x == most) return 1ull << 40;
        float e = expf((x - most) * inverse_temperature);
        return e > 0 ? (u64)(e * 0x1p40f) : 0; // -∞ at a huge temperature is NaN
    }
};

// The sums over a block, in every thread.
template <int n> __device__ inline void block_sums(u64 x[n]) {
    __shared__ u64 part[32][n];
    int warps = blockDim.x / 32;
#pragma unroll
    for (int k = 0; k < n; k++)
#pragma unroll
        for (int d = 16; d > 0; d >>= 1) x[k] += __shfl_xor_sync(0xffffffffu, x[k], d);
    if (threadIdx.x % 32 == 0)
        for (int k = 0; k < n; k++) part[threadIdx.x / 32][k] = x[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < n; k++) {
        x[k] = 0;
        for (int w = 0; w < warps; w++) x[k] += part[w][k];
    }
    __syncthreads();
}

// The largest logits, equal ones by their ids, up to where a sum of weights ends.
struct Prefix {
    unsigned key; // of its last
    u64 equal;    // how many that have this key
    u64 above;    // the weights of larger keys
};

// The shortest prefix whose weights add up to want, which is not 0 and not more than all of them.
template <class T> __device__ Prefix prefix(const T *row, int n, Weigh weigh, u64 want) {
    const int bits = 8 * sizeof(T);
    unsigned key = 0; // its upper bits are found
    u64 above = 0;
    for (int shift = bits - 4; shift >= 0; shift -= 4) {
        // The weights of what has these upper bits and a digit of at least d in the place of the next four, for d of 1 to 15.
        u64 sums[15] = {};
        for (int i = 8 * threadIdx.x; i < n; i += 8 * blockDim.x) {
            float x[8];
            int m = min(8, n - i);
            load8(row + i, m, x);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (j >= m || x[j] != x[j]) continue;
                unsigned digits = key_of<T>(x[j]) >> shift;
                if (digits >> 4 != key >> shift >> 4) continue;
                u64 w = weigh(x[j]);
#pragma unroll
                for (int d = 1; d < 16; d++) sums[d - 1] += (digits & 15) >= d ? w : 0;
            }
        }
        block_sums<15>(sums);
        unsigned digit = 0;
        u64 beyond = sums[0]; // of larger digits
#pragma unroll
        for (int d = 1; d < 16; d++)
            if (above + sums[d - 1] >= want) digit = d, beyond = d < 15 ? sums[d] : 0;
        key |= digit << shift;
        above += beyond;
    }
    u64 w = weigh(number_of<T>(key));
    return {key, (want - above + w - 1) / w, above};
}

// The sum of the weights of all, or of those in a prefix.
template <class T> __device__ u64 mass_of(const T *row, int n, Weigh weigh, bool all, Prefix of) {
    u64 mass[1] = {};
    for (int i = 8 * threadIdx.x; i < n; i += 8 * blockDim.x) {
        float x[8];
        int m = min(8, n - i);
        load8(row + i, m, x);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < m && x[j] == x[j] && (all || key_of<T>(x[j]) > of.key)) mass[0] += weigh(x[j]);
    }
    block_sums<1>(mass);
    return all ? mass[0] : mass[0] + of.equal * weigh(number_of<T>(of.key));
}

// Writes the id of the last of a prefix: the equal-th that has its key. Each thread looks at a span of the row.
template <class T> __device__ void write_last(int *id, const T *row, int n, Prefix of) {
    __shared__ int found[32];
    int span = (n + blockDim.x - 1) / blockDim.x, from = min(n, (int)threadIdx.x * span), to = min(n, from + span);
    int own = 0, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = from; i < to; i++) {
        float x = to_float(row[i]);
        own += x == x && key_of<T>(x) == of.key;
    }
    int upto = own; // with those of the threads before it
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        int other = __shfl_up_sync(0xffffffffu, upto, d);
        if (lane >= d) upto += other;
    }
    if (lane == 31) found[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; w++) upto += found[w];
    int left = (int)of.equal - (upto - own);
    if (left < 1 || left > own) return;
    for (int i = from; i < to; i++) {
        float x = to_float(row[i]);
        left -= x == x && key_of<T>(x) == of.key;
        if (left == 0) {
            *id = i;
            return;
        }
    }
}

// Sample of a rule that takes the largest.
template <class T> __device__ void greedy(int *ids, const T *logits, int n) {
    Best best = largest(logits + (long long)blockIdx.x * n, n);
    if (threadIdx.x == 0) ids[blockIdx.x] = max(0, best.id);
}

template <class T> __device__ void sample(int *ids, const T *logits, const float *u, int n, Rule rule) {
    const T *row = logits + (long long)blockIdx.x * n;
    int *id = ids + blockIdx.x;
    Best best = largest(row, n);
    bool infinite = fabsf(best.logit) == __uint_as_float(0x7f800000u);
    if (best.id < 0 || infinite) {
        if (threadIdx.x == 0) *id = max(0, best.id);
        return;
    }
    Weigh weigh = {best.logit, rule.inverse_temperature, false};
    Prefix left = {};
    u64 mass = 0; // what is left
    enum { top_k, top_p, draw };
    // A loop, since three copies of prefix are more than the registers hold.
#pragma unroll 1
    for (int stage = top_k; stage <= draw; stage++) {
        bool all = stage == top_k && (rule.top_k == 0 || rule.top_k >= best.count);
        if (stage == top_p && !(rule.top_p > 0)) continue;
        u64 want = rule.top_k;
        if (stage == top_p) want = min(mass, max(1ull, (u64)ceil(rule.top_p * (double)mass)));
        if (stage == draw) {
            double at = (double)u[blockIdx.x] * (double)mass; // a u that is NaN draws the largest
            want = at > 0 ? min(mass, (u64)at + 1) : 1;
        }
        weigh.alike = stage == top_k;
        if (!all) left = prefix(row, n, weigh, want);
        weigh.alike = false;
        if (stage == top_k) mass = mass_of(row, n, weigh, all, left);
        if (stage == top_p) mass = left.above + left.equal * weigh(number_of<T>(left.key));
    }
    write_last(id, row, n, left);
}

#define SAMPLE(T)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(512, 1) sample_##T(int *ids, const T *logits, const float *u, int n, Rule rule) { \
        sample(ids, logits, u, n, rule);                                                                                          \
    }                                                                                                                             \
    KERNEL(sample_##T)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(1024, 1) greedy_##T(int *ids, const T *logits, int n) { greedy(ids, logits, n); } \
    KERNEL(greedy_##T)
SAMPLE(f32)
SAMPLE(bf16)
