// Sum is y = Σ xs, elementwise.
#include "common.cuh"

struct Terms {
    const void *at[16];
};

// Indices of xs.at are constants everywhere: others would copy it to local memory.
template <bool fast, class T> __device__ inline void sum8(T *y, Terms xs, int count, long long i, int m) {
    float s[8] = {};
#pragma unroll
    for (int k = 0; k < 16; k++) {
        if (k % 4 == 0 && k >= count) break;
        float x[8];
        get8<fast>((const T *)xs.at[k] + i, k < count ? m : 0, x);
#pragma unroll
        for (int j = 0; j < 8; j++) s[j] += x[j];
    }
    put8<fast>(y + i, m, s);
}

template <class T> __device__ inline void sum(T *y, Terms xs, int count, long long n) {
    long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (i >= n) return;
    int m = n - i < 8 ? (int)(n - i) : 8;
    bool fast = m == 8 && aligned16(y);
#pragma unroll
    for (int k = 0; k < 16; k++) fast = fast && (k >= count || aligned16(xs.at[k]));
    if (fast)
        sum8<true>(y, xs, count, i, m);
    else
        sum8<false>(y, xs, count, i, m);
}

#define SUM(T) \
    extern "C" __global__ void sum_##T(T *y, Terms xs, int count, long long n) { sum(y, xs, count, n); } \
    KERNEL(sum_##T)
SUM(f32)
SUM(bf16)
