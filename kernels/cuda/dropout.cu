// Dropout zeroes elements with probability rate and divides the others by 1 - rate. Element i is zeroed if
// the upper 24 bits of Random(key[0], key[1], site).At(i) are below rate·2²⁴, so that the same call on a
// gradient is its gradient. y, x of the same shape, key (2) i32: a seed and the step.
//
// 8 elements for a thread.
#include "random.cuh"

// limit is rate·2²⁴, rounded up; keep is 1/(1-rate).
template <class T>
__device__ void dropout(T *y, const T *x, const int *key, unsigned long long site, unsigned limit, float keep, long long n) {
    long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (i >= n) return;
    int m = n - i < 8 ? (int)(n - i) : 8;
    unsigned long long stream = random_stream(key, site);
    float v[8];
    load8(x + i, m, v);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = random24(stream, i + j) < limit ? 0.f : v[j] * keep;
    store8(y + i, m, v);
}

#define DROPOUT(T)                                                                                          \
    extern "C" __global__ void dropout_##T(T *y, const T *x, const int *key, unsigned long long site,       \
                                           unsigned limit, float keep, long long n) {                       \
        dropout(y, x, key, site, limit, keep, n);                                                           \
    }                                                                                                       \
    KERNEL(dropout_##T)
DROPOUT(f32)
DROPOUT(bf16)
