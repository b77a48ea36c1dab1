// PrepareMerge is the layers, of any shapes, as Merge takes them. Their tensors must stay where they are until it is
// closed, and no Dst may overlap another. The error says how much memory was asked for and how much there is.
//
// Merge is dst = src + s·Σ_k weights[k]·B[i]ᵀ·A[i], i = ids[k], for every layer of m in one call, unless force says
// that this is what they hold. ids (n) i32, weights (n), force (2n) i32 or none: the ids that were merged last with
// this m and scale and, behind them, the bits of their weights as float32. The call compares it with ids and weights,
// and leaves it as they are. An id below 0 and a weight that float32 does not hold are never in force; so a force of
// -1 throughout says that nothing was merged yet.
//
// An id of no expert makes the weights NaN. These are the general kernels, for any types and shapes; merge_ring.cu has those for large models.
#include "merge.cuh"

// load8 of a type that only the table knows.
__device__ inline void load8_of(int type, const void *p, long long i, int m, float x[8]) {
    switch (type) {
    case 1: load8((const float *)p + i, m, x); break;
    case 2: load8((const double *)p + i, m, x); break;
    default: load8((const bf16 *)p + i, m, x);
    }
}

// Merges 64 rows by 128 columns of a layer from (row0, column0) on, a thread 4 by 8 of them.
template <class T> __device__ void merge_tile(const MergeLayer &l, const MergeChoice &c, int row0, int column0) {
    const int depth = 16;
    __shared__ __align__(16) float up[depth][64], down[depth][128];
    int row = 4 * (threadIdx.x / 16), column = 8 * (threadIdx.x % 16);
    float sum[4][8] = {};
    for (int first = 0; first < c.n * l.rank; first += depth) {
        // Every thread fetches 8 elements of down, half of them 8 of up. What is missing is zero in both.
        {
            int at = c.row(l, first + threadIdx.x / 16), m = at < 0 ? 0 : max(0, min(8, l.width - column0 - column));
            float x[8];
            load8_of(l.a_type, l.a, (long long)max(at, 0) * l.width + column0 + column, m, x);
            for (int j = 0; j < 8; j++) down[threadIdx.x / 16][column + j] = x[j];
        }
        if (threadIdx.x < 128) {
            int kr = first + threadIdx.x / 8, r = 8 * (threadIdx.x % 8);
            int at = c.row(l, kr), m = at < 0 ? 0 : max(0, min(8, l.out - row0 - r));
            float x[8], factor = c.factor(l, kr);
            load8_of(l.b_type, l.b, (long long)max(at, 0) * l.out + row0 + r, m, x);
            for (int j = 0; j < 8; j++) up[threadIdx.x / 8][r + j] = factor * x[j];
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < depth; d++) {
            float4 u = *(const float4 *)&up[d][row], v = *(const float4 *)&down[d][column], w = *(const float4 *)&down[d][column + 4];
            float us[4] = {u.x, u.y, u.z, u.w}, vs[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][j] = fmaf(us[i], vs[j], sum[i][j]);
        }
        __syncthreads();
    }
    int m = min(8, l.width - column0 - column);
    if (m <= 0) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row0 + row + i >= l.out) break;
        long long at = (long long)(row0 + row + i) * l.width + column0 + column;
        float x[8];
        load8_of(l.src_type, l.src, at, m, x);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[i][j] += x[j];
        store8((T *)l.dst + at, m, sum[i]);
    }
}

// A block takes one tile after the other.
template <class T> __device__ void merge(const MergeLayer *layers, int count, int tiles, const MergeChoice &c) {
    if (c.in_force()) return;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        MergeLayer l = *merge_layer<&MergeLayer::tile>(layers, count, tile);
        int across = (l.width + 127) / 128, i = tile - l.tile;
        merge_tile<T>(l, c, 64 * (i / across), 128 * (i % across));
    }
    c.done();
}

#define MERGE(T)                                                                                                                 \
    extern "C" __global__ void merge_##T(const MergeLayer *layers, int count, int tiles, MergeChoice c) {                        \
        merge<T>(layers, count, tiles, c);                                                                                       \
    }                                                                                                                            \
    KERNEL(merge_##T)
MERGE(f32)
MERGE(bf16)
