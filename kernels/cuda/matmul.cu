// C ← alpha·A·B + beta·C for A and B of bf16 that do not start, or whose rows do not start, at multiples of 16 bytes. Sums are float32. A block
// computes 64 x 64 elements, a thread 4 x 4 of them, 16 of the depth at a time.
#include "common.cuh"

struct Operand {
    const bf16 *at;
    long long stride;
    int transposed;
};

constexpr int matmul_tile = 64, matmul_depth = 16, matmul_threads = 256;

// Fills tile[k][i] with the elements (from + i, k0 + k) of a matrix (size, depth) that lies row-major, or transposed if flipped; zeros outside.
__device__ inline void matmul_load(float tile[matmul_depth][matmul_tile + 4], Operand m, bool flipped, int from, int size, int k0, int depth) {
    for (int i = threadIdx.x; i < matmul_tile * matmul_depth; i += matmul_threads) {
        int row = flipped ? i % matmul_tile : i / matmul_depth, k = flipped ? i / matmul_tile : i % matmul_depth;
        long long r = from + row, d = k0 + k;
        tile[k][row] = r < size && d < depth ? to_float(m.at[flipped ? d * m.stride + r : r * m.stride + d]) : 0.f;
    }
}

template <class T> __device__ void matmul(T *c, long long stride, Operand a, Operand b, int rows, int cols, int depth, float alpha, float beta) {
    __shared__ __align__(16) float as[matmul_depth][matmul_tile + 4], bs[matmul_depth][matmul_tile + 4];
    int row = blockIdx.y * matmul_tile, col = blockIdx.x * matmul_tile, y = threadIdx.x / 16 * 4, x = threadIdx.x % 16 * 4;
    float acc[4][4] = {};
    for (int k0 = 0; k0 < depth; k0 += matmul_depth) {
        matmul_load(as, a, a.transposed, row, rows, k0, depth);
        matmul_load(bs, b, !b.transposed, col, cols, k0, depth);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < matmul_depth; k++) {
            float4 p = *(const float4 *)&as[k][y], q = *(const float4 *)&bs[k][x];
            float u[4] = {p.x, p.y, p.z, p.w}, v[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(u[i], v[j], acc[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (row + y + i >= rows || col + x + j >= cols) continue;
            T *to = c + (row + y + i) * stride + col + x + j;
            // What C held before may be a NaN that does not count.
            *to = from_float<T>(beta == 0.f ? alpha * acc[i][j] : alpha * acc[i][j] + beta * to_float(*to));
        }
}

#define MATMUL(T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(matmul_threads)                                                           \
        matmul_##T(T *c, long long stride, Operand a, Operand b, int rows, int cols, int depth, float alpha, float beta) { \
        matmul(c, stride, a, b, rows, cols, depth, alpha, beta);                                                           \
    }                                                                                                                      \
    KERNEL(matmul_##T)
MATMUL(f32)
MATMUL(bf16)
