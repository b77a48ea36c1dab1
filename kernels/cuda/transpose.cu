// Transpose is y[d, c] = x[c, d], bit for bit. y (D, C), x (C, D) of one type: F32, BF16 or F64.
//
// A block for each tile of 32 rows and columns: a warp reads rows of x and writes rows of y, and turns them in shared memory. A row of
// the tile has one bank more than it fills, so that a column lies in different ones.
#include "common.cuh"

constexpr int transpose_tile = 32, transpose_rows = 8; // rows that a block reads, and writes, at a time

template <class T> __device__ void transpose(T *y, const T *x, int rows, int cols) {
    constexpr int pad = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
    __shared__ T tile[transpose_tile][transpose_tile + pad];
    int across = (cols + transpose_tile - 1) / transpose_tile;
    int row = blockIdx.x / across * transpose_tile, col = blockIdx.x % across * transpose_tile;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = warp; i < transpose_tile; i += transpose_rows)
        if (row + i < rows && col + lane < cols) tile[i][lane] = x[(row + i) * (long long)cols + col + lane];
    __syncthreads();
#pragma unroll
    for (int i = warp; i < transpose_tile; i += transpose_rows)
        if (col + i < cols && row + lane < rows) y[(col + i) * (long long)rows + row + lane] = tile[lane][i];
}

#define TRANSPOSE(T)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(32 * transpose_rows) transpose_##T(T *y, const T *x, int rows, int cols) { \
        transpose(y, x, rows, cols);                                                                                       \
    }                                                                                                                      \
    KERNEL(transpose_##T)
TRANSPOSE(f32)
TRANSPOSE(bf16)
TRANSPOSE(f64)
