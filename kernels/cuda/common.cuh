// What all kernels share: the types, reading and writing them as float, sums over a warp and a block. A kernel is extern "C", named
// after its operation and types, and followed by KERNEL(name), through which the emulator finds it.
#pragma once

#ifdef EMULATED
#include "emulator.h"
#else
#define KERNEL(name)
// Dynamic shared memory, aligned to 1024 bytes, as panels for wgmma must be (hopper.cuh).
#define DYNAMIC_SHARED(T, name)                              \
    extern __shared__ __align__(1024) unsigned char shared_bytes[]; \
    T *name = reinterpret_cast<T *>(shared_bytes)
#endif

typedef float f32;
typedef double f64;
struct bf16 {
    unsigned short bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(double x) { return (float)x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

// To the nearest, ties to even; a NaN stays one.
__device__ inline bf16 to_bf16(float x) {
    bf16 y;
#ifdef EMULATED
    unsigned u = __float_as_uint(x);
    y.bits = x != x ? (unsigned short)(u >> 16 | 0x40) : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}
template <class T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return to_bf16(x); }

// 2^x with an error of 2^-22, zero below 2^-126.
__device__ inline float exp2_fast(float x) {
#ifdef EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ inline bool aligned16(const void *p) { return ((unsigned long long)p & 15) == 0; }

// load8 reads m ≤ 8 elements, as 16-byte accesses where the address allows; the rest of x is zero.
template <class T> __device__ inline void load8(const T *p, int m, float x[8]) {
    if (m == 8 && aligned16(p)) {
        if constexpr (sizeof(T) == 2) {
            uint4 v = *(const uint4 *)p;
            unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x[2 * j] = __uint_as_float(w[j] << 16);
                x[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
            }
            return;
        } else if constexpr (sizeof(T) == 4) {
            float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
            x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = j < m ? to_float(p[j]) : 0.f;
}

// store8 writes the first m ≤ 8 elements.
template <class T> __device__ inline void store8(T *p, int m, const float x[8]) {
    if (m == 8 && aligned16(p)) {
        if constexpr (sizeof(T) == 2) {
            unsigned w[4];
#pragma unroll
            for (int j = 0; j < 4; j++) w[j] = to_bf16(x[2 * j]).bits | (unsigned)to_bf16(x[2 * j + 1]).bits << 16;
            *(uint4 *)p = make_uint4(w[0], w[1], w[2], w[3]);
            return;
        } else {
            *(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
            *(float4 *)(p + 4) = make_float4(x[4], x[5], x[6], x[7]);
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (j < m) p[j] = from_float<T>(x[j]);
}

// get8 and put8 are load8 and store8. fast says that p is aligned to 16 bytes and that m is 8, or that nothing is wanted and m is
// not above 0: then no branch lies between the accesses of a thread, and several are under way at once.
template <bool fast, class T> __device__ inline void get8(const T *p, int m, float x[8]) {
    if constexpr (!fast) {
        load8(p, m, x);
    } else if constexpr (sizeof(T) == 2) {
        uint4 v = m > 0 ? *(const uint4 *)p : make_uint4(0, 0, 0, 0);
        unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[2 * j] = __uint_as_float(w[j] << 16);
            x[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
        }
    } else {
        static_assert(sizeof(T) == 4);
        float4 zero = make_float4(0, 0, 0, 0);
        float4 a = m > 0 ? *(const float4 *)p : zero, b = m > 0 ? *(const float4 *)(p + 4) : zero;
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }
}
template <bool fast, class T> __device__ inline void put8(T *p, int m, const float x[8]) {
    if constexpr (!fast) {
        store8(p, m, x);
    } else if constexpr (sizeof(T) == 2) {
        unsigned w[4];
#pragma unroll
        for (int j = 0; j < 4; j++) w[j] = to_bf16(x[2 * j]).bits | (unsigned)to_bf16(x[2 * j + 1]).bits << 16;
        if (m > 0) *(uint4 *)p = make_uint4(w[0], w[1], w[2], w[3]);
    } else if (m > 0) {
        *(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
        *(float4 *)(p + 4) = make_float4(x[4], x[5], x[6], x[7]);
    }
}

// The sum, the largest, over the 32 lanes of a warp, in every lane.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

// The sum over a block of up to 1024 threads, whole warps, in every thread and the same for every run. All threads must call it.
__device__ inline float block_sum(float x) {
    __shared__ float part[32];
    int warps = (blockDim.x + 31) / 32;
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    float s = (int)(threadIdx.x % 32) < warps ? part[threadIdx.x % 32] : 0.f;
    s = warp_sum(s);
    __syncthreads();
    return s;
}
