// What attention and its gradient on Hopper share: tiles as wgmma reads them, and products of them. A warpgroup has 64 rows of each product.
//
// What tiles hold beside what is seen is left as it is: if it spoils a result, that is not finite. A block that gets such a result
// starts again the way other cards go, which knows what may count.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

constexpr int hopper_tile = 64; // rows of every tile
constexpr int panel_cols = 64;  // a tile's panels lie one behind the other

// Where 8 elements of a row of a tile lie.
__device__ inline int panel_place(int row, int chunk) { return (chunk / 8 * hopper_tile + row) * panel_cols + 8 * ((chunk ^ row) & 7); }

// load_panels begins to copy the rows, from on, of a head to a tile, with zeros for those from end on. rows points to the head in row 0.
template <int D> __device__ inline void load_panels(bf16 *tile, const bf16 *rows, long long stride, int from, int end, const Heads &s) {
    constexpr int n = hopper_tile, sharers = D / 8, step = attention_threads / sharers;
    static_assert(step % 8 == 0);
    int first = threadIdx.x / sharers, chunk = threadIdx.x % sharers;
    bool inside = 8 * chunk < s.dim;
    const bf16 *at = rows + (from + first) * stride + 8 * chunk;
    bf16 *to = tile + panel_place(first, chunk);
#pragma unroll
    for (int k = 0; k < n; k += step) {
        bool valid = from + first + k < end && inside;
        copy_async(to + k * panel_cols, valid ? at : rows, valid);
        at += step * stride;
    }
}

// store_panels writes 16 rows of a tile with one warp. rows points to the head in the first of these.
template <int D> __device__ inline void store_panels(bf16 *rows, const bf16 *tile, int row0, long long stride, int end, const Heads &s) {
    constexpr int chunks = D / 8;
#pragma unroll
    for (int i = threadIdx.x % 32; i < 16 * chunks; i += 32) {
        int row = i / chunks, chunk = i % chunks;
        if (row < end && 8 * chunk < s.dim)
            *(uint4 *)(rows + row * stride + 8 * chunk) = *(const uint4 *)(tile + panel_place(row0 + row, chunk));
    }
}

// put_panels writes a warp's 16 rows, rounded, to a tile.
template <int D> __device__ inline void put_panels(bf16 *tile, int row0, const float (&y)[D / 2]) {
    int lane = threadIdx.x % 32, row = row0 + lane % 16;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const float *f = y + 8 * i;
        stmatrix(tile + panel_place(row, 2 * i + lane / 16), pack(f[0], f[1]), pack(f[2], f[3]), pack(f[4], f[5]), pack(f[6], f[7]));
    }
}

// The numbers of products that have been waited for: the compiler must not use them earlier.
template <int N> __device__ inline void arrived(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A warpgroup's scores or their gradient: of 64 rows, in each thread two rows' 16 columns.
typedef float Square[hopper_tile / 2];

// begin_scores begins y = a·bᵀ for two tiles.
template <int D> __device__ inline void begin_scores(Square &y, const bf16 *a, const bf16 *b) {
    unsigned long long x = panel_descriptor(a, false, 0), z = panel_descriptor(b, false, 0);
    constexpr int panel = hopper_tile * panel_cols * 2 >> 4;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        int at = k / 4 * panel + k % 4 * depth_step<false>;
        Wgmma<hopper_tile, false>::run(y, x + at, z + at, k > 0);
    }
    wgmma_commit();
}

// Weights, rounded, as the left side of a product.
struct Weights {
    unsigned x[hopper_tile / 16][4];
    __device__ explicit Weights(const Square &p) {
#pragma unroll
        for (int k = 0; k < hopper_tile / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[k][i] = pack(p[8 * k + 2 * i], p[8 * k + 2 * i + 1]);
    }
};

// begin_sums begins y += p·b for the rows of tile b.
template <int D> __device__ inline void begin_sums(float (&y)[D / 2], const Weights &p, const bf16 *b) {
    unsigned long long z = panel_descriptor(b, true, hopper_tile * panel_cols * 2);
#pragma unroll
    for (int k = 0; k < hopper_tile / 16; k++) Wgmma<D, true>::run(y, p.x[k], z + k * depth_step<true>, 1);
    wgmma_commit();
}

// The same registers as fragments, as the rest of attention knows them.
template <int N> __device__ inline float (&fragments(float (&d)[N]))[1][N / 4][4] { return reinterpret_cast<float(&)[1][N / 4][4]>(d); }

template <int N> __device__ inline bool all_finite(const float (&d)[N]) {
    // The sum of such terms is zero, or NaN.
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N; i++) sum = fmaf(d[i], 0.f, sum);
    return sum == 0;
}

// tile_ready waits for this thread's copies but the last n groups, and then for all threads, so that wgmma may read what they brought.
template <int n> __device__ inline void tile_ready() {
    copies_wait<n>();
    shared_for_copies();
    __syncthreads();
}

// The bounds of a warp's lanes, in each of them, as warp_bounds finds them.
__device__ inline Bounds lanes_bounds(Bounds b) {
    constexpr unsigned lanes = 0xffffffffu;
    auto least = [](int x) { return __reduce_min_sync(lanes, x); };
    auto most = [](int x) { return __reduce_max_sync(lanes, x); };
    return {make_int4(least(b.some.x), most(b.some.y), least(b.some.z), most(b.some.w)),
            make_int4(most(b.all.x), least(b.all.y), most(b.all.z), least(b.all.w))};
}
