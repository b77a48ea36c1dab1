// The functions of CUDA C++ that the kernels may call. Those of math.h are the C library's.
#pragma once

inline void __syncthreads() { emulated_barrier(false); }
inline int __syncthreads_count(int yes) { return emulated_barrier(yes); }
inline int __syncthreads_or(int yes) { return emulated_barrier(yes) > 0; }
inline int __syncthreads_and(int yes) { return emulated_barrier(!yes) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulated_warp(emulated::syncwarp, mask, nullptr, [](void *const *, unsigned) {});
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emulated_fail("__trap"); }

namespace emulated {

template <class T> T exchange(unsigned mask, T x, int from) {
    unsigned long long in = 0;
    memcpy(&in, &x, sizeof x);
    in = emulated_shuffle(mask, in, from);
    memcpy(&x, &in, sizeof x);
    return x;
}

// The first lane of the group of width lanes that this one belongs to.
inline int first_of(int width) { return emulated_thread->lane & ~(width - 1); }

// The lane to read from: this one if the other is in a later group, or for up in an earlier one.
inline int upper(int lane, int width) { return lane < first_of(width) + width ? lane : emulated_thread->lane; }
inline int lower(int lane, int width) { return lane >= first_of(width) ? lane : emulated_thread->lane; }

}  // namespace emulated

#define EMULATED_SHUFFLES(T)                                                                                       \
    inline T __shfl_sync(unsigned mask, T x, int lane, int width = 32) {                                           \
        return emulated::exchange(mask, x, emulated::first_of(width) | (lane & (width - 1)));                      \
    }                                                                                                              \
    inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {                                     \
        return emulated::exchange(mask, x, emulated::lower(emulated_thread->lane - (int)by, width));               \
    }                                                                                                              \
    inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {                                   \
        return emulated::exchange(mask, x, emulated::upper(emulated_thread->lane + (int)by, width));               \
    }                                                                                                              \
    inline T __shfl_xor_sync(unsigned mask, T x, int by, int width = 32) {                                         \
        return emulated::exchange(mask, x, emulated::upper(emulated_thread->lane ^ by, width));                    \
    }
EMULATED_SHUFFLES(int)
EMULATED_SHUFFLES(unsigned)
EMULATED_SHUFFLES(long)
EMULATED_SHUFFLES(unsigned long)
EMULATED_SHUFFLES(long long)
EMULATED_SHUFFLES(unsigned long long)
EMULATED_SHUFFLES(float)
EMULATED_SHUFFLES(double)

inline unsigned __ballot_sync(unsigned mask, int yes) { return emulated_ballot(mask, yes); }
inline int __any_sync(unsigned mask, int yes) { return emulated_ballot(mask, yes) != 0; }
inline int __all_sync(unsigned mask, int yes) { return emulated_ballot(mask, !yes) == 0; }

template <class To, class From> inline To emulated_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }

template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
template <class T> inline T __ldca(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, T x) { *p = x; }
template <class T> inline void __stcg(T *p, T x) { *p = x; }

// The C library has these names for itself.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __double2float_rn(double x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.f) : 0.f; }

// CUDA's are overloads too; of floats, a NaN loses to a number.
#define EMULATED_EXTREMES(T)                           \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned)
EMULATED_EXTREMES(long)
EMULATED_EXTREMES(unsigned long)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)
inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

template <class T> inline T emulated_add(T *p, T x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
inline unsigned atomicExch(unsigned *p, unsigned x) { return __atomic_exchange_n(p, x, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned *p, unsigned x) { return __atomic_fetch_or(p, x, __ATOMIC_RELAXED); }
inline int atomicAdd(int *p, int x) { return emulated_add(p, x); }
inline unsigned atomicAdd(unsigned *p, unsigned x) { return emulated_add(p, x); }
inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long x) { return emulated_add(p, x); }
