// Kernels for Hopper, right ones and wrong ones.
#include "hopper.cuh"

// y (8, 64) = the box at (x, row), as it comes to lie.
extern "C" __global__ void box(bf16 *y, const TensorMap *map, int x, int row, int bytes, int wait) {
    DYNAMIC_SHARED(unsigned char, shared);
    Barrier *full = (Barrier *)(shared + 1024);
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barriers_init_done();
        barrier_arrive_expecting(full, bytes);
        copy_box(shared, map, x, row, full);
    }
    __syncthreads();
    if (wait) barrier_wait(full, 0);
    for (int i = threadIdx.x; i < 512; i += blockDim.x) y[i] = ((bf16 *)shared)[i];
}
KERNEL(box)

// Thread i arrives if i < arrivals; all wait for three.
extern "C" __global__ void arrivals(int n) {
    DYNAMIC_SHARED(Barrier, b);
    if (threadIdx.x == 0) barrier_init(b, 3);
    __syncthreads();
    if ((int)threadIdx.x < n) barrier_arrive(b);
    __syncthreads();
    barrier_wait(b, 0);
}
KERNEL(arrivals)

// Two warps of three meet, and then the third writes what they have not: y = 1.
extern "C" __global__ void some(float *y, int threads) {
    DYNAMIC_SHARED(volatile int, flag);
    if (threadIdx.x == 0) *flag = 0;
    __syncthreads();
    if (threadIdx.x >= 64) {
        *flag = 1;
        return;
    }
    threads_sync(1, threads);
    if (threadIdx.x == 0) *y = 1;
}
KERNEL(some)

// Warps of a block write and arrive; the first waits for them: y = how many threads have written.
extern "C" __global__ void told(float *y) {
    DYNAMIC_SHARED(volatile int, wrote);
    wrote[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x >= 32) {
        wrote[threadIdx.x] = 1;
        threads_arrive(1, blockDim.x);
        return;
    }
    threads_sync(1, blockDim.x);
    float sum = 0;
    for (int i = 0; i < (int)blockDim.x; i++) sum += wrote[i];
    if (threadIdx.x == 0) *y = sum;
}
KERNEL(told)

// y[block] = how many turns the second warp has taken, of 100, when the first has met by itself.
extern "C" __global__ void turns(int *y) {
    DYNAMIC_SHARED(volatile int, taken);
    if (threadIdx.x == 0) *taken = 0;
    __syncthreads();
    if (threadIdx.x == 32)
        while (*taken < 100) ++*taken, emulated_yield();
    if (threadIdx.x >= 32) return;
    threads_sync(1, 32);
    if (threadIdx.x == 0) y[blockIdx.x] = *taken;
}
KERNEL(turns)

// Each block says that it is there and waits for all others.
extern "C" __global__ void together(int *said) {
    __atomic_store_n(said + blockIdx.x, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < (int)gridDim.x; i++)
        while (!__atomic_load_n(said + i, __ATOMIC_ACQUIRE)) emulated_yield();
}
KERNEL(together)
