// Products with few columns on tensor cores, on Hopper those that thin_sm90.cuh leaves: X·Y with X (rows, depth), Y (depth, cols), cols ≤ COLS. A block computes 64 rows by all
// columns; several blocks may share a tile by its depth, and the last of them to finish adds their parts up, in their order.
//
// Both operands lie row-major, as they are or transposed, at addresses aligned to 16 bytes and with rows of a multiple of 8 elements.
#pragma once
#include "mma.cuh"

constexpr int thin_rows = 64, thin_depth = 64, thin_threads = 256;

// A panel is 64 x 64 elements in shared memory, as 64 rows of 8 chunks of 16 bytes. Chunks are swapped by row, so that 8 rows of one
// column of chunks lie in different banks.
constexpr int panel_size = 64 * 64;
__device__ inline int panel_at(int row, int chunk) { return row * 64 + ((chunk ^ (row & 7)) * 8); }

// How 8 warps divide a tile: two in the rows, `along` in the columns, `deep` in the depth.
template <int COLS> struct Thin {
    static constexpr int along = COLS == 32 ? 1 : COLS == 256 ? 4 : 2;
    static constexpr int deep = 4 / along;
    static constexpr int warp_cols = COLS / along;
    static constexpr int panels = COLS < 64 ? 1 : COLS / 64; // of Y in a stage
    static constexpr int stages = COLS == 256 ? 3 : COLS == 128 ? 4 : 5;
    static constexpr int stage_size = (1 + panels) * panel_size;
    static constexpr int blocks = COLS == 256 ? 1 : 2; // that a multiprocessor should have room for
    static constexpr int stride = COLS + 4; // of the finished tile's rows; 4 more spread columns over the banks
};

// Whether this block is the last of n to come to counter, which is 0 before and after. What the others wrote before is then seen. All
// threads must call it.
__device__ inline bool last_to_come(unsigned *counter, unsigned n) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == n - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// Starts copying the panel at (row, col) of a matrix; zeros where it has no elements.
__device__ inline void load_panel(bf16 *panel, const bf16 *m, int rows, int cols, int row, int col) {
#pragma unroll
    for (int i = 0; i < panel_size / 8 / thin_threads; i++) {
        int at = threadIdx.x + i * thin_threads, r = at / 8, c = at % 8;
        bool inside = row + r < rows && col + 8 * c < cols;
        copy_async(panel + panel_at(r, c), m + (inside ? (long long)(row + r) * cols + col + 8 * c : 0), inside);
    }
}

// X_DEEP: x lies as (depth, rows). Y_DEEP: y lies as (depth, cols), otherwise (cols, depth).
template <int COLS, bool X_DEEP, bool Y_DEEP>
__device__ inline void load_stage(bf16 *to, const bf16 *x, const bf16 *y, int rows, int depth, int cols, int row, int k) {
    if (X_DEEP)
        load_panel(to, x, depth, rows, k, row);
    else
        load_panel(to, x, rows, depth, row, k);
#pragma unroll
    for (int p = 0; p < Thin<COLS>::panels; p++) {
        bf16 *panel = to + (1 + p) * panel_size;
        if (Y_DEEP)
            load_panel(panel, y, depth, cols, k, 64 * p);
        else
            load_panel(panel, y, cols, depth, 64 * p, k);
    }
}

// The fragment of X at (row, k) of a stage.
template <bool X_DEEP> __device__ inline void load_x(unsigned a[4], const bf16 *panel, int row, int k) {
    int r = threadIdx.x % 8, i = threadIdx.x % 32 / 8;
    if (X_DEEP)
        ldmatrix_transposed(a, panel + panel_at(k + i / 2 * 8 + r, row / 8 + i % 2));
    else
        ldmatrix(a, panel + panel_at(row + i % 2 * 8 + r, k / 8 + i / 2));
}

// Two fragments of Y at (k, col): b[0], b[1] for 8 columns, b[2], b[3] for the next 8.
template <bool Y_DEEP> __device__ inline void load_y(unsigned b[4], const bf16 *panels, int k, int col) {
    int r = threadIdx.x % 8, i = threadIdx.x % 32 / 8;
    const bf16 *panel = panels + col / 64 * panel_size;
    col %= 64;
    if (Y_DEEP)
        ldmatrix_transposed(b, panel + panel_at(k + i % 2 * 8 + r, col / 8 + i / 2));
    else
        ldmatrix(b, panel + panel_at(col + i / 2 * 8 + r, k / 8 + i % 2));
}

// acc += the warp's part of a stage: 32 rows, warp_cols columns.
template <int COLS, bool X_DEEP, bool Y_DEEP>
__device__ inline void multiply_stage(float acc[2][Thin<COLS>::warp_cols / 8][4], const bf16 *stage, int row, int col, int slice) {
    constexpr int cols = Thin<COLS>::warp_cols;
#pragma unroll
    for (int i = 0; i < 4 / Thin<COLS>::deep; i++) {
        int k = 16 * (slice + i * Thin<COLS>::deep);
        unsigned a[2][4];
        load_x<X_DEEP>(a[0], stage, row, k);
        load_x<X_DEEP>(a[1], stage, row + 16, k);
#pragma unroll
        for (int j = 0; j < cols / 16; j++) {
            unsigned b[4];
            load_y<Y_DEEP>(b, stage + panel_size, k, col + 16 * j);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma(acc[m][2 * j], a[m], b);
                mma(acc[m][2 * j + 1], a[m], b + 2);
            }
        }
    }
}

// Writes the warps' sums to shared memory, one tile for each slice of the depth.
template <int COLS>
__device__ inline void store_sums(float *tiles, const float acc[2][Thin<COLS>::warp_cols / 8][4], int row, int col, int slice) {
    constexpr int stride = Thin<COLS>::stride;
    int lane = threadIdx.x % 32;
    float *to = tiles + (slice * thin_rows + row + lane / 4) * stride + col + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int j = 0; j < Thin<COLS>::warp_cols / 8; j++) {
            *(float2 *)(to + 16 * m * stride + 8 * j) = make_float2(acc[m][j][0], acc[m][j][1]);
            *(float2 *)(to + (16 * m + 8) * stride + 8 * j) = make_float2(acc[m][j][2], acc[m][j][3]);
        }
    }
}

__device__ inline void add4(float4 &s, float4 x) { s.x += x.x, s.y += x.y, s.z += x.z, s.w += x.w; }

// Adds up the slices' tiles, then the parts of the blocks that share this tile; parts holds a tile for each block. False in all blocks but
// the one that has the sum.
template <int COLS> __device__ inline bool gather(float *tiles, float *parts, unsigned *counters) {
    constexpr int stride = Thin<COLS>::stride, quads = COLS / 4, size = thin_rows * COLS;
    float *tile_parts = parts + (long long)blockIdx.x * gridDim.y * size;
#pragma unroll 4
    for (int i = threadIdx.x; i < thin_rows * quads; i += thin_threads) {
        float *at = tiles + i / quads * stride + i % quads * 4;
        float4 s = *(const float4 *)at;
#pragma unroll
        for (int d = 1; d < Thin<COLS>::deep; d++) add4(s, *(const float4 *)(at + d * thin_rows * stride));
        if (gridDim.y > 1)
            *(float4 *)(tile_parts + (long long)blockIdx.y * size + 4 * i) = s;
        else
            *(float4 *)at = s;
    }
    if (gridDim.y > 1) {
        if (!last_to_come(counters + blockIdx.x, gridDim.y)) return false;
        // Several sums at a time, so that many loads are under way.
        constexpr int each = thin_rows * quads / thin_threads, together = each < 4 ? each : 4;
#pragma unroll
        for (int i = 0; i < each; i += together) {
            float4 s[together];
            int at = threadIdx.x + i * thin_threads;
#pragma unroll
            for (int j = 0; j < together; j++) s[j] = *(const float4 *)(tile_parts + 4 * (at + j * thin_threads));
#pragma unroll 4
            for (int y = 1; y < gridDim.y; y++)
#pragma unroll
                for (int j = 0; j < together; j++)
                    add4(s[j], *(const float4 *)(tile_parts + (long long)y * size + 4 * (at + j * thin_threads)));
#pragma unroll
            for (int j = 0; j < together; j++) {
                int to = at + j * thin_threads;
                *(float4 *)(tiles + to / quads * stride + to % quads * 4) = s[j];
            }
        }
    }
    __syncthreads();
    return true;
}

// What may be done to a stage of Y before it is multiplied: nothing.
struct AsItIs {
    static constexpr int size = 0, ahead = 0; // elements of a stage that it needs, stages that it works ahead
    __device__ void load(bf16 *, int) const {}
    __device__ void apply(bf16 *, const bf16 *) const {}
};

// Computes tile blockIdx.x, this block the share blockIdx.y of gridDim.y of its depth. Where it returns true, the sums lie at the start of
// shared, 64 rows of Thin<COLS>::stride floats, those outside the matrix zero.
template <int COLS, bool X_DEEP, bool Y_DEEP, class Change>
__device__ inline bool thin_product(unsigned char *shared, const bf16 *x, const bf16 *y, int rows, int depth, int cols, float *parts,
                                    unsigned *counters, Change change) {
    typedef Thin<COLS> T;
    constexpr int stage_size = T::stage_size + Change::size;
    bf16 *ring = (bf16 *)shared;
    int tile = blockIdx.x * thin_rows, all = (depth + thin_depth - 1) / thin_depth;
    int first = (int)((long long)all * blockIdx.y / gridDim.y), n = (int)((long long)all * (blockIdx.y + 1) / gridDim.y) - first;
    int warp = threadIdx.x / 32, row = warp % 2 * 32, col = warp / 2 % T::along * T::warp_cols, slice = warp / 2 / T::along;

    auto load = [&](int i, int slot) {
        bf16 *stage = ring + slot * stage_size;
        int k = (first + i) * thin_depth;
        load_stage<COLS, X_DEEP, Y_DEEP>(stage, x, y, rows, depth, cols, tile, k);
        change.load(stage + T::stage_size, k);
    };
    auto apply = [&](int slot) {
        bf16 *stage = ring + slot * stage_size;
        change.apply(stage + panel_size, stage + T::stage_size);
    };
#pragma unroll
    for (int i = 0; i < T::stages - 1; i++) {
        if (i < n) load(i, i);
        copies_commit();
    }
    if (Change::ahead) {
        copies_wait<T::stages - 2>();
        __syncthreads();
        apply(0);
    }
    float acc[2][T::warp_cols / 8][4] = {};
    for (int i = 0, slot = 0; i < n; i++) {
        copies_wait<T::stages - 2 - Change::ahead>();
        __syncthreads();
        int before = slot == 0 ? T::stages - 1 : slot - 1, behind = slot + 1 == T::stages ? 0 : slot + 1;
        if (i + T::stages - 1 < n) load(i + T::stages - 1, before);
        copies_commit();
        if (Change::ahead && i + 1 < n) apply(behind);
        multiply_stage<COLS, X_DEEP, Y_DEEP>(acc, ring + slot * stage_size, row, col, slice);
        slot = behind;
    }
    copies_wait<0>();
    __syncthreads();
    float *tiles = (float *)shared;
    store_sums<COLS>(tiles, acc, row, col, slice);
    __syncthreads();
    return gather<COLS>(tiles, parts, counters);
}
