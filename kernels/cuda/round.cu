// Round is dst = src, each element the nearest that dst's type has. dst, src of one length, each F32, BF16 or F64.
//
// 8 elements for a thread; one where float64 takes part. Kernels are named after the types of dst and src.
#include "common.cuh"

template <class D, class S> __device__ inline D rounded(S x);
template <> __device__ inline float rounded<float, double>(double x) { return (float)x; }
template <> __device__ inline double rounded<double, float>(float x) { return x; }
template <> __device__ inline double rounded<double, bf16>(bf16 x) { return to_float(x); }

// On the way, a float32 that is not x is made the odd one of its two neighbours, so that x is not rounded twice (Boldo and
// Melquiond, IEEE Transactions on Computers 57, 2008).
template <> __device__ inline bf16 rounded<bf16, double>(double x) {
    float f = (float)x;
    double wide = f;
    if (wide != x && x == x) {
        unsigned bits = __float_as_uint(f);
        if (fabs(wide) > fabs(x)) bits--;
        f = __uint_as_float(bits | 1);
    }
    return to_bf16(f);
}

template <class D, class S> __device__ void round(D *dst, const S *src, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if constexpr (sizeof(D) == 8 || sizeof(S) == 8) {
        if (i < n) dst[i] = rounded<D, S>(src[i]);
    } else {
        i *= 8;
        if (i >= n) return;
        int m = n - i < 8 ? (int)(n - i) : 8;
        float x[8];
        load8(src + i, m, x);
        store8(dst + i, m, x);
    }
}

#define ROUND(D, S)                                                                                   \
    extern "C" __global__ void round_##D##_##S(D *dst, const S *src, long long n) { round(dst, src, n); } \
    KERNEL(round_##D##_##S)
ROUND(f32, bf16)
ROUND(f32, f64)
ROUND(bf16, f32)
ROUND(bf16, f64)
ROUND(f64, f32)
ROUND(f64, bf16)
