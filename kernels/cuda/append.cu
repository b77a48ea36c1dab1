// Append is cache[at[t]] = x[t], where at[t] ≥ 0. cache (P, K·d), x (T, K·d), at (T) i32.
//
// A block for each token. Places behind the cache's end are none either.
#include "common.cuh"

template <class T> __device__ void append(T *cache, const T *x, const int *at, int places, int width) {
    int place = at[blockIdx.x];
    if (place < 0 || place >= places) return;
    const T *from = x + blockIdx.x * (long long)width;
    T *to = cache + place * (long long)width;
    for (int i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
        int m = min(width - i, 8);
        float v[8];
        load8(from + i, m, v);
        store8(to + i, m, v);
    }
}

#define APPEND(T)                                                                                             \
    extern "C" __global__ void append_##T(T *cache, const T *x, const int *at, int places, int width) { \
        append(cache, x, at, places, width);                                                                  \
    }                                                                                                         \
    KERNEL(append_##T)
APPEND(f32)
APPEND(bf16)
