// Kernels with one mistake each, for the emulator to find.
#include "mma.cuh"

// Reads its neighbour's element without waiting for it.
extern "C" __global__ void no_barrier(float *y) {
    __shared__ float s[64];
    int i = threadIdx.x;
    s[i] = (float)i;
    y[i] = s[(i + 1) % 64];
}
KERNEL(no_barrier)

// Writes again while others may still read.
extern "C" __global__ void no_second_barrier(float *y) {
    __shared__ float s[64];
    int i = threadIdx.x;
    s[i] = (float)i;
    __syncthreads();
    y[i] = s[(i + 1) % 64];
    s[i] = -1;
}
KERNEL(no_second_barrier)

extern "C" __global__ void block_order(int *last) { *last = (int)blockIdx.x; }
KERNEL(block_order)

extern "C" __global__ void early_return(int n) {
    if ((int)threadIdx.x >= n) return;
    __syncthreads();
}
KERNEL(early_return)

extern "C" __global__ void lane_missing(float *y) {
    if (threadIdx.x % 32 == 5) return;
    y[threadIdx.x] = warp_sum(1);
}
KERNEL(lane_missing)

extern "C" __global__ void lane_at_barrier() {
    if (threadIdx.x == 40) __syncthreads();
    __syncwarp();
    if (threadIdx.x != 40) __syncthreads();
}
KERNEL(lane_at_barrier)

extern "C" __global__ void part_of_a_warp() { __syncwarp(); }
KERNEL(part_of_a_warp)

extern "C" __global__ void two_masks(int *y) { y[threadIdx.x] = __shfl_sync(threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u, 1, 16); }
KERNEL(two_masks)

extern "C" __global__ void not_in_the_mask() { __syncwarp(0xffu); }
KERNEL(not_in_the_mask)

extern "C" __global__ void from_outside_the_mask(int *y) {
    if (threadIdx.x < 8) y[threadIdx.x] = __shfl_sync(0xffu, 1, 8);
}
KERNEL(from_outside_the_mask)

extern "C" __global__ void two_operations(int *y) {
    if (threadIdx.x < 16)
        y[0] = __shfl_sync(0xffffffffu, 1, 0);
    else
        __syncwarp();
}
KERNEL(two_operations)

extern "C" __global__ void store(float *y, long long i) { y[i] = 1; }
KERNEL(store)

extern "C" __global__ void load(float *y, const float *x, long long i) { y[0] = x[i]; }
KERNEL(load)

extern "C" __global__ void load16(float *y, const float *x, int i) {
    float4 v = *(const float4 *)(x + i);
    y[0] = v.x + v.w;
}
KERNEL(load16)

extern "C" __global__ void store_bf16(bf16 *y, int i) { *(bf16 *)((char *)y + i) = bf16{1}; }
KERNEL(store_bf16)

extern "C" __global__ void copy16(const float *x, int to, int from) {
    __shared__ __align__(16) float s[8];
    copy_async(s + to, x + from, true);
}
KERNEL(copy16)

extern "C" __global__ void copy_to_global(float *y, const float *x) { copy_async(y, x, true); }
KERNEL(copy_to_global)

extern "C" __global__ void ldmatrix_row(const float *x, int i) {
    __shared__ __align__(16) float s[64];
    unsigned r[4];
    ldmatrix(r, x ? x : s + i);
}
KERNEL(ldmatrix_row)

extern "C" __global__ void array_index(float *y, int i) {
    __shared__ float s[8];
    s[i] = 1;
    y[0] = s[i];
}
KERNEL(array_index)

extern "C" __global__ void behind_shared(int i) {
    DYNAMIC_SHARED(float, s);
    s[i] = 1;
}
KERNEL(behind_shared)

extern "C" __global__ void divide(int *y, int by) { y[0] = 7 / by; }
KERNEL(divide)

extern "C" __global__ void trap(int at) {
    if ((int)blockIdx.x == at) __trap();
}
KERNEL(trap)

__device__ __noinline__ int deep(int n) {
    volatile int room[1000];
    room[n % 1000] = n;
    return n == 0 ? 0 : deep(n - 1) + room[n % 1000];
}
extern "C" __global__ void stack_overflow(int *y, int n) { y[0] = deep(n); }
KERNEL(stack_overflow)

extern "C" __global__ void shift(int *y, int by) { y[0] = 7 << by; }
KERNEL(shift)

extern "C" __global__ void copy_not_waited_for(const float *x) {
    __shared__ __align__(16) float s[4];
    copy_async(s, x, true);
}
KERNEL(copy_not_waited_for)
