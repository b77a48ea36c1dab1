// Dropout zeroes elements with probability rate and divides the others by 1 - rate. Element i is zeroed if
// the upper 24 bits of Random(key[0], key[1], site).At(i) are below rate·2²⁴, so that the same call on a
// gradient is its gradient. y, x of the same shape, key (2) i32: a seed and the step.
//
// 8 elements for a thread. Random is that of package kernels: splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
#include "common.cuh"

__device__ inline unsigned long long mix(unsigned long long z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// limit is rate·2²⁴, rounded up; keep is 1/(1-rate).
template <class T>
__device__ void dropout(T *y, const T *x, const int *key, unsigned long long site, unsigned limit, float keep, long long n) {
    long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (i >= n) return;
    int m = n - i < 8 ? (int)(n - i) : 8;
    unsigned long long seed = (unsigned long long)(unsigned)key[0] << 32 | (unsigned)key[1];
    unsigned long long stream = mix(mix(seed) ^ site * 0xd1342543de82ef95ull);
    float v[8];
    load8(x + i, m, v);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = (unsigned)(mix(stream + i + j) >> 40) < limit ? 0.f : v[j] * keep;
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
