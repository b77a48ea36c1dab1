// What the kernels use of CUDA C++, for a plain C++ compiler. Behind it are fibers.cpp (threads of a block, barriers), warp.cpp
// (what the lanes of a warp do together), and copies.cpp.
#pragma once

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __constant__ const
// One copy for each processor thread, which runs one block at a time.
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))

#define EMULATED_VECTOR2(name, T, size) \
    struct alignas(size) name {         \
        T x, y;                         \
    };                                  \
    inline name make_##name(T x, T y) { return {x, y}; }
#define EMULATED_VECTOR3(name, T) \
    struct name {                 \
        T x, y, z;                \
    };                            \
    inline name make_##name(T x, T y, T z) { return {x, y, z}; }
#define EMULATED_VECTOR4(name, T, size) \
    struct alignas(size) name {         \
        T x, y, z, w;                   \
    };                                  \
    inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR2(char2, signed char, 2)
EMULATED_VECTOR2(uchar2, unsigned char, 2)
EMULATED_VECTOR2(short2, short, 4)
EMULATED_VECTOR2(ushort2, unsigned short, 4)
EMULATED_VECTOR2(int2, int, 8)
EMULATED_VECTOR2(uint2, unsigned, 8)
EMULATED_VECTOR2(float2, float, 8)
EMULATED_VECTOR2(double2, double, 16)
EMULATED_VECTOR2(longlong2, long long, 16)
EMULATED_VECTOR2(ulonglong2, unsigned long long, 16)
EMULATED_VECTOR3(int3, int)
EMULATED_VECTOR3(uint3, unsigned)
EMULATED_VECTOR3(float3, float)
EMULATED_VECTOR4(char4, signed char, 4)
EMULATED_VECTOR4(uchar4, unsigned char, 4)
EMULATED_VECTOR4(short4, short, 8)
EMULATED_VECTOR4(ushort4, unsigned short, 8)
EMULATED_VECTOR4(int4, int, 16)
EMULATED_VECTOR4(uint4, unsigned, 16)
EMULATED_VECTOR4(float4, float, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulated {

// What a running thread can see of itself.
struct Thread {
    uint3 at, block;
    dim3 threads, blocks;
    int lane;
    unsigned char *shared;  // dynamic
};

// A kernel that a library offers: how it is called with the addresses of its arguments, and what they are.
struct Kernel {
    const char *name;
    void (*run)(void *const *args);
    int count;
    const unsigned *sizes;
    const char *kinds;  // p: a pointer, i: an integer, f: a float, s: a struct
    const Kernel *next;
};

enum Together { syncwarp, shuffle, vote, multiply, load_matrix };

}  // namespace emulated

#pragma GCC visibility push(default)
extern "C" {
// The processor thread's running thread of a block.
extern __thread emulated::Thread *emulated_thread __attribute__((tls_model("initial-exec")));

// Ends the launch with a message.
[[noreturn]] void emulated_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Waits for all threads of the block, and counts those that say yes.
int emulated_barrier(bool yes);
// Waits until all lanes of the mask have come for the same purpose; the last of them does it for all, given what each brought.
void emulated_warp(emulated::Together what, unsigned mask, void *mine, void (*together)(void *const lanes[32], unsigned mask));
unsigned long long emulated_shuffle(unsigned mask, unsigned long long x, int from);
unsigned emulated_ballot(unsigned mask, bool yes);
void emulated_mma(float d[4], const unsigned a[4], const unsigned b[2]);
void emulated_ldmatrix(unsigned r[4], const void *row, bool transposed);
void emulated_copy16(void *to, const void *from, bool valid);
void emulated_copies_commit();
void emulated_copies_wait(int n);
}
#pragma GCC visibility pop

#define threadIdx (emulated_thread->at)
#define blockIdx (emulated_thread->block)
#define blockDim (emulated_thread->threads)
#define gridDim (emulated_thread->blocks)
constexpr int warpSize = 32;

// Dynamic shared memory, aligned for 16-byte accesses.
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(emulated_thread->shared)

#include "functions.h"
#include "register.h"
