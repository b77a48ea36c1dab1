// What attention and its gradient share. The kernels on tensor cores work on tiles: rows of one head of q, k, v or do in shared
// memory, the head's size rounded up to D and filled up with zeros, as are rows outside of what is seen.
//
// A number that does not count must not spoil one that does, and a weight of zero does not remove a NaN. So where a tile holds
// pairs of a query and a key that it does not see, the product with the weights of that tile takes non-finite numbers for zero
// if there are any, and adds them only where they are seen.
#pragma once
#include "mma.cuh"

constexpr int attention_threads = 128; // four warps
constexpr int attention_tile = 64;     // tokens whose ranges attention_prepare puts together
constexpr int never = 0x7fffffff;      // the start of a range of nothing
constexpr float log2e = 1.4426950408889634f;

struct Heads {
    int tokens, keys;     // T, N
    int query, kv, dim;   // H, K, d
    int aligned;          // whether rows of all tensors can be read and written 16 bytes at a time
    float scale, scale2;  // 1/√d, and with the factor log₂(e)
};

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
__device__ inline float low_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_of(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ inline bool both_finite(unsigned pair) { return is_finite(low_of(pair)) && is_finite(high_of(pair)); }

// A pair of bf16 with zeros for what is not finite.
__device__ inline unsigned finite_part(unsigned pair) {
    return (is_finite(low_of(pair)) ? pair & 0xffffu : 0) | (is_finite(high_of(pair)) ? pair & 0xffff0000u : 0);
}

// The two ranges of a token as (start, length, start, length), within the rows that there are.
__device__ inline int4 ranges_of(const int *spans, int t, const Heads &s) {
    int4 r = make_int4(0, 0, 0, 0);
    if (t >= s.tokens) return r;
    const int *at = spans + 4ll * t;
    int a = at[0] < 0 ? 0 : at[0], b = at[1] > s.keys ? s.keys : at[1];
    int c = at[2] < 0 ? 0 : at[2], e = at[3] > s.keys ? s.keys : at[3];
    if (a < b) r.x = a, r.y = b - a;
    if (c < e) r.z = c, r.w = e - c;
    return r;
}
__device__ inline bool inside(int j, int start, int length) { return (unsigned)(j - start) < (unsigned)length; }
__device__ inline bool sees(int4 r, int j) { return inside(j, r.x, r.y) || inside(j, r.z, r.w); }
__device__ inline bool sees_any(int4 r) { return (r.y | r.w) != 0; }

__device__ inline int lesser(int a, int b) { return a < b ? a : b; }
__device__ inline int greater(int a, int b) { return a < b ? b : a; }

// Two ranges of keys as (from, to, from, to): those that some of the rows see, and those that all see.
struct Bounds {
    int4 some, all;
};

__device__ inline Bounds join(Bounds a, Bounds b) {
    return {make_int4(lesser(a.some.x, b.some.x), greater(a.some.y, b.some.y), lesser(a.some.z, b.some.z), greater(a.some.w, b.some.w)),
            make_int4(greater(a.all.x, b.all.x), lesser(a.all.y, b.all.y), greater(a.all.z, b.all.z), lesser(a.all.w, b.all.w))};
}

// The bounds of one row. Unless blind rows count, one that sees nothing may as well see everything.
__device__ inline Bounds bounds_of(int4 r, bool blind_count) {
    int4 some = make_int4(r.y ? r.x : never, r.x + r.y, r.w ? r.z : never, r.z + r.w);
    return {some, sees_any(r) || blind_count ? some : make_int4(0, never, 0, never)};
}

// The bounds of a warp's lanes, in each of them.
__device__ inline Bounds warp_bounds(Bounds b) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        Bounds o;
        o.some.x = __shfl_xor_sync(0xffffffffu, b.some.x, d), o.some.y = __shfl_xor_sync(0xffffffffu, b.some.y, d);
        o.some.z = __shfl_xor_sync(0xffffffffu, b.some.z, d), o.some.w = __shfl_xor_sync(0xffffffffu, b.some.w, d);
        o.all.x = __shfl_xor_sync(0xffffffffu, b.all.x, d), o.all.y = __shfl_xor_sync(0xffffffffu, b.all.y, d);
        o.all.z = __shfl_xor_sync(0xffffffffu, b.all.z, d), o.all.w = __shfl_xor_sync(0xffffffffu, b.all.w, d);
        b = join(b, o);
    }
    return b;
}

// The bounds of a block's warps, from each warp's. parts is room for four.
__device__ inline Bounds block_bounds(Bounds mine, Bounds *parts) {
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
    __syncthreads();
    return join(join(parts[0], parts[1]), join(parts[2], parts[3]));
}

// Walk goes through tiles of keys: those of the first range, then those of the second.
struct Walk {
    int4 some;
    int range, at;

    __device__ explicit Walk(int4 union_) : some(union_), range(0), at(union_.x) { settle(); }
    __device__ bool more() const { return range < 2; }
    __device__ int end() const { return range == 0 ? some.y : some.w; }
    __device__ void next(int step) {
        at += step;
        settle();
    }
    __device__ void settle() {
        if (range == 0 && at >= some.y) range = 1, at = some.z;
        if (range == 1 && at >= some.w) range = 2;
    }
    // Whether rows with these bounds see some, all, of a tile of n keys.
    __device__ bool meets(const Bounds &b, int n) const {
        return range == 0 ? at < b.some.y && at + n > b.some.x : at < b.some.w && at + n > b.some.z;
    }
    __device__ bool within(const Bounds &b, int n) const {
        return range == 0 ? b.all.x <= at && at + n <= b.all.y : b.all.z <= at && at + n <= b.all.w;
    }
};

// Where 8 elements of a row of a tile lie. Those of 8 rows one below the other lie in different banks.
template <int D> __device__ inline int place(int row, int chunk) {
    int turn = D % 64 == 0 ? row & 7 : D % 32 == 0 ? row >> 1 & 3 : row >> 2 & 1;
    return row * D + 8 * (chunk ^ turn);
}

// So many neighbouring threads share a row when a tile is loaded.
template <int D> constexpr int row_sharers = D <= 16 ? 2 : D <= 32 ? 4 : D <= 64 ? 8 : D <= 128 ? 16 : 32;

// load_tile begins to copy n rows, from on, of a head to a tile. rows points to the head in row 0.
template <int D, int n>
__device__ inline void load_tile(bf16 *tile, const bf16 *rows, long long stride, int from, int end, const Heads &s) {
    constexpr int sharers = row_sharers<D>, step = attention_threads / sharers;
    int first = threadIdx.x / sharers, chunk = threadIdx.x % sharers;
    const bf16 *at = rows + (from + first) * stride + 8 * chunk;
    if (chunk >= D / 8) return;
    if (s.aligned) {
#pragma unroll
        for (int k = 0; k < n; k += step) {
            int row = k + first;
            bool valid = from + row < end && 8 * chunk < s.dim;
            if (n % step == 0 || row < n) copy_async(tile + place<D>(row, chunk), valid ? at : rows, valid);
            at += step * stride;
        }
        return;
    }
#pragma unroll 1
    for (int row = first; row < n; row += step, at += step * stride) {
        bf16 *to = tile + place<D>(row, chunk);
        for (int j = 0; j < 8; j++) {
            bf16 zero = {0};
            to[j] = from + row < end && 8 * chunk + j < s.dim ? at[j] : zero;
        }
    }
}

// store_tile writes n rows of a tile, columns from chunk first on, with one warp. rows points to the head in row from.
template <int D>
__device__ inline void store_tile(bf16 *rows, const bf16 *tile, int row0, int n, int first, int chunks, long long stride, int end, const Heads &s) {
    for (int i = threadIdx.x % 32; i < n * chunks; i += 32) {
        int row = i / chunks, chunk = first + i % chunks;
        if (row >= end || 8 * chunk >= s.dim) continue;
        const bf16 *from = tile + place<D>(row0 + row, chunk);
        bf16 *to = rows + row * stride + 8 * chunk;
        if (s.aligned) {
            *(uint4 *)to = *(const uint4 *)from;
        } else {
            for (int j = 0; j < 8 && 8 * chunk + j < s.dim; j++) to[j] = from[j];
        }
    }
}

// Rows is the left operand of scores: the fragments of 16·M rows of a tile, read when they are needed, or once.
template <int D, int M, bool held> struct Rows {
    const bf16 *tile;
    int row;
    __device__ void load(const bf16 *from, int first) { tile = from, row = first; }
    __device__ void get(unsigned x[M][4], int k) const {
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix(x[m], tile + place<D>(row + 16 * m + threadIdx.x % 16, 2 * k + threadIdx.x % 32 / 16));
    }
};
template <int D, int M> struct Rows<D, M, true> {
    unsigned held[D / 16][M][4];
    __device__ void load(const bf16 *from, int first) {
        Rows<D, M, false> rows;
        rows.load(from, first);
#pragma unroll
        for (int k = 0; k < D / 16; k++) rows.get(held[k], k);
    }
    __device__ void get(unsigned x[M][4], int k) const {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][i] = held[k][m][i];
    }
};

// scores is y = a·bᵀ for the first 8·N rows of tile b.
template <int D, int M, int N, bool held>
__device__ inline void scores(float (&y)[M][N][4], const Rows<D, M, held> &a, const bf16 *b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) y[m][n][0] = y[m][n][1] = y[m][n][2] = y[m][n][3] = 0;
    // Four steps go through all places that chunks are put to: more would only take registers for their addresses.
#pragma unroll(held || D < 64 ? D / 16 : 4)
    for (int k = 0; k < D / 16; k++) {
        unsigned x[M][4];
        a.get(x, k);
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            unsigned z[4];
            ldmatrix(z, b + place<D>(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(y[m][2 * n], x[m], z);
                mma(y[m][2 * n + 1], x[m], z + 2);
            }
        }
    }
}

// accumulate is y += p·b for the first 8·N rows of tile b, its columns from chunk first on; p is rounded to bf16. If odd, what
// is not finite in b counts as zero.
template <int D, int M, int N, int C>
__device__ inline void accumulate(float (&y)[M][C][4], const float (&p)[M][N][4], const bf16 *b, int first, bool odd) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        unsigned x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            x[m][0] = pack(p[m][2 * k][0], p[m][2 * k][1]), x[m][1] = pack(p[m][2 * k][2], p[m][2 * k][3]);
            x[m][2] = pack(p[m][2 * k + 1][0], p[m][2 * k + 1][1]), x[m][3] = pack(p[m][2 * k + 1][2], p[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < C / 2; n++) {
            unsigned z[4];
            ldmatrix_transposed(z, b + place<D>(16 * k + lane % 16, first + 2 * n + lane / 16));
            if (odd)
#pragma unroll
                for (int i = 0; i < 4; i++) z[i] = finite_part(z[i]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(y[m][2 * n], x[m], z);
                mma(y[m][2 * n + 1], x[m], z + 2);
            }
        }
    }
}

// hide makes the scores of keys that a row does not see -∞, and reports whether one of them was not finite. seen is what the rows see,
// key the first of the tile.
template <int M, int N> __device__ inline bool hide(float (&s)[M][N][4], const int4 *seen, int range, int key) {
    int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    bool odd = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int4 r = seen[16 * m + 8 * h + g];
            int start = (range == 0 ? r.x : r.z) - key - 2 * c, length = range == 0 ? r.y : r.w;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[m][n][2 * h + e];
                    if (inside(8 * n + e, start, length)) continue;
                    odd |= !is_finite(x);
                    x = -INFINITY;
                }
        }
    return odd;
}

// add_seen adds to y the numbers of a row of tile b that are not finite, where bit 2m+h of rows says that row 16m+8h of y sees it.
template <int D, int M, int C> __device__ inline void add_seen(float (&y)[M][C][4], const bf16 *b, int row, int first, unsigned rows) {
#pragma unroll
    for (int n = 0; n < C; n++) {
        unsigned x = *(const unsigned *)(b + place<D>(row, first + n) + 2 * (threadIdx.x % 4));
        if (both_finite(x)) continue;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = i % 2 ? high_of(x) : low_of(x);
                if ((rows >> (2 * m + i / 2) & 1) && !is_finite(v)) y[m][n][i] += v;
            }
    }
}

// put writes a warp's result, rounded, to its rows of a tile.
template <int D, int M, int C> __device__ inline void put(bf16 *tile, int row, int first, const float (&y)[M][C][4]) {
    int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < C; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *(unsigned *)(tile + place<D>(row + 16 * m + 8 * h + g, first + n) + 2 * c) = pack(y[m][n][2 * h], y[m][n][2 * h + 1]);
}

// dots gives lane i the product of x with row i of n ≤ 32 rows, of d elements each. The kernels in float32 use it.
__device__ inline float dots(const float *x, const float *rows, long long stride, int n, int d) {
    float mine = 0;
    for (int i = 0; i < n; i += 4) {
        float y[4] = {};
        for (int j = threadIdx.x % 32; j < d; j += 32)
#pragma unroll
            for (int e = 0; e < 4; e++) y[e] = fmaf(x[j], rows[lesser(i + e, n - 1) * stride + j], y[e]);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float sum = warp_sum(y[e]);
            if (threadIdx.x % 32 == i + e) mine = sum;
        }
    }
    return mine;
}

// add_rows is y = y·fade + Σ p·row for n ≤ 32 rows, whose weights p the lanes hold. y counts as zero unless it has begun.
__device__ inline void add_rows(float *y, float p, const float *rows, long long stride, int n, int d, bool begun, float fade) {
    for (int from = 0; from < d; from += 32) {
        int j = from + threadIdx.x % 32;
        float sum = begun && j < d ? y[j] * fade : 0.f;
        for (int i = 0; i < n; i++) {
            float weight = __shfl_sync(0xffffffffu, p, i);
            if (j < d) sum = fmaf(weight, rows[i * stride + j], sum);
        }
        if (j < d) y[j] = sum;
    }
}
