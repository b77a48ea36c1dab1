// Kernels that are right, to see what the emulator makes of them.
#include "mma.cuh"

// C (16, 8) = A (16, 16) · B (16, 8), or B given as (8, 16), by one warp.
extern "C" __global__ void fragments(float *c, const bf16 *a, const bf16 *b, int transposed) {
    __shared__ __align__(16) bf16 as[16][16], bs[16][8];
    int l = threadIdx.x;
    for (int i = l; i < 256; i += 32) as[i / 16][i % 16] = a[i];
    bf16(*turned)[16] = (bf16(*)[16])bs;
    for (int i = l; i < 128; i += 32) {
        if (transposed)
            turned[i / 16][i % 16] = b[i];
        else
            bs[i / 8][i % 8] = b[i];
    }
    __syncwarp();
    unsigned x[4], y[4];
    // Matrices 0 and 1 are the upper and the lower rows of the left half.
    ldmatrix(x, &as[l % 16][l / 16 * 8]);
    if (transposed)
        ldmatrix(y, &turned[l % 8][l / 8 % 2 * 8]);
    else
        ldmatrix_transposed(y, &bs[l % 16][0]);
    float d[4] = {};
    mma(d, x, y);
    mma(d, x, y);
    int g = l / 4, k = l % 4 * 2;
    c[g * 8 + k] = d[0], c[g * 8 + k + 1] = d[1], c[(g + 8) * 8 + k] = d[2], c[(g + 8) * 8 + k + 1] = d[3];
}
KERNEL(fragments)

// y[op][lane] for each way to shuffle lane + 0.5, in groups of width.
extern "C" __global__ void shuffles(double *y, int by, int width) {
    int l = threadIdx.x;
    double x = l + 0.5;
    y[l] = __shfl_sync(~0u, x, by, width);
    y[32 + l] = __shfl_up_sync(~0u, (float)x, by, width);
    y[64 + l] = __shfl_down_sync(~0u, (long long)l, by, width);
    y[96 + l] = __shfl_xor_sync(~0u, l, by, width);
    y[128 + l] = __ballot_sync(~0u, l % by == 0);
    y[160 + l] = __any_sync(~0u, l == by) + 2 * __all_sync(~0u, l < by) + 4 * __all_sync(~0u, l < 32);
}
KERNEL(shuffles)

// The halves of a warp add up on their own.
extern "C" __global__ void halves(int *y) {
    int l = threadIdx.x, s = l;
    if (l < 16) {
        for (int d = 8; d > 0; d >>= 1) s += __shfl_xor_sync(0xffffu, s, d);
        __syncwarp(0xffffu);
    } else {
        for (int d = 1; d < 16; d <<= 1) s += __shfl_xor_sync(0xffff0000u, s, d);
    }
    y[l] = s;
}
KERNEL(halves)

// y[i] = the number of x of the block that are no larger: everybody reads what everybody wrote.
extern "C" __global__ void ranks(int *y, const float *x) {
    DYNAMIC_SHARED(float, s);
    int n = blockDim.x, i = threadIdx.x;
    s[i] = x[blockIdx.x * n + i];
    __syncthreads();
    int rank = 0;
    for (int k = 0; k < n; k++) rank += s[k] <= s[i];
    y[blockIdx.x * n + i] = rank;
}
KERNEL(ranks)

// Each thread says who it is: y (blocks, threads, 8).
extern "C" __global__ void names(int *y) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int *at = y + (block * (int)(blockDim.x * blockDim.y * blockDim.z) + thread) * 8;
    int all[] = {(int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z, (int)threadIdx.x, (int)threadIdx.y, (int)threadIdx.z, (int)gridDim.x,
                 (int)blockDim.z};
    for (int i = 0; i < 8; i++) at[i] = all[i];
}
KERNEL(names)

struct Mixed {
    float f;
    double *p;
    short s;
    long long l;
};

extern "C" __global__ void arguments(double *y, int i, Mixed m, unsigned u, long long l, float f, unsigned long long b) {
    m.p[1] = 7;
    double all[] = {(double)i, m.f, (double)m.s, (double)m.l, (double)u, (double)l, f, (double)b};
    for (int k = 0; k < 8; k++) y[k] = all[k];
}
KERNEL(arguments)

// What shared memory holds before anything is written: y[0] static, y[1] dynamic, y[2] static of a function, in each block.
__device__ inline float not_written() {
    __shared__ float other[4];
    float x = other[threadIdx.x];
    other[threadIdx.x] = 3;
    return x;
}
extern "C" __global__ void leftovers(float *y) {
    __shared__ float fixed[2];
    DYNAMIC_SHARED(float, dynamic);
    float *to = y + blockIdx.x * 3;
    to[0] = fixed[1], to[1] = dynamic[3], to[2] = not_written();
    fixed[1] = dynamic[3] = 2;
}
KERNEL(leftovers)

// y = {before the wait, after it, the second group before its own, after it, one that is not valid}.
extern "C" __global__ void copies(float *y, const float *x) {
    __shared__ __align__(16) float s[12];
    for (int i = 0; i < 12; i++) s[i] = 1;
    copy_async(s, x, true);
    copy_async(s + 8, x, false);
    copies_commit();
    copy_async(s + 4, x + 4, true);
    copies_commit();
    y[0] = s[1];
    copies_wait<1>();
    y[1] = s[1];
    y[2] = s[5];
    copies_wait<0>();
    y[3] = s[5];
    y[4] = s[9];
}
KERNEL(copies)

extern "C" __global__ void extremes(float *y, float nan) {
    y[0] = fmaxf(nan, 1), y[1] = fminf(1, nan), y[2] = max(nan, 1.f);
    y[3] = (float)max(-1, 2), y[4] = __clz(1), y[5] = (float)__ffs(8), y[6] = (float)__popc(0xff), y[7] = (float)(__brev(1u) >> 31);
    y[8] = rsqrtf(4), y[9] = to_float(to_bf16(1.00390625f)), y[10] = to_float(to_bf16(1.01171875f)), y[11] = to_float(to_bf16(nan));
}
KERNEL(extremes)

extern "C" __global__ void count_up(int *n, int by) {
    if (threadIdx.x == 0) atomicAdd(n, by);
}
KERNEL(count_up)

extern "C" __global__ void never() {}
KERNEL(never)
