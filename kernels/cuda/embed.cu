// Embed gathers rows: y[t] = table[ids[t]]. y (T, D), table (V, D), ids (T) i32.
//
// A block for each token. Ids that are no row give NaN.
#include "common.cuh"

template <class T, class W> __device__ void embed(T *y, const W *table, const int *ids, int vocabulary, int width) {
    int id = ids[blockIdx.x];
    bool row = id >= 0 && id < vocabulary;
    const W *from = table + (row ? id : 0) * (long long)width;
    T *to = y + blockIdx.x * (long long)width;
    for (int i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
        int m = min(width - i, 8);
        float x[8];
        load8(from + i, m, x);
        for (int j = 0; j < 8 && !row; j++) x[j] = __uint_as_float(0x7fffffffu);
        store8(to + i, m, x);
    }
}

#define EMBED(T, W)                                                                                              \
    extern "C" __global__ void embed_##T##_##W(T *y, const W *table, const int *ids, int vocabulary, int width) { \
        embed(y, table, ids, vocabulary, width);                                                                 \
    }                                                                                                            \
    KERNEL(embed_##T##_##W)
EMBED(f32, f32)
EMBED(f32, bf16)
EMBED(f32, f64)
EMBED(bf16, f32)
EMBED(bf16, bf16)
EMBED(bf16, f64)
