// Rotary turns each head's pairs (x[i], x[i+d/2]) by the angle of its position p = pos[t]: with c and n the
// cosines and sines table[p, :d/2] and table[p, d/2:], y[i] = x[i]·c[i] - x[i+d/2]·n[i] and
// y[i+d/2] = x[i+d/2]·c[i] + x[i]·n[i]; backwards turns by the opposite angle, which is the gradient.
// y, x (T, H·d), table (P, d), pos (T) i32.
//
// A block for each token, 8 pairs for a thread. Positions that are no row of the table give NaN.
#include "common.cuh"

// (a, b) turned by the angle of cosine c and sine n.
__device__ inline void turn(float &a, float &b, float c, float n) {
    float turned = a * c - b * n;
    b = b * c + a * n;
    a = turned;
}

// 8 pairs whose addresses are all aligned to 16 bytes.
template <class T> __device__ inline void rotary8(T *y, const T *x, const float *table, int half, float sign) {
    float c[8], n[8], a[8], b[8];
    get8<true>(x, 8, a);
    get8<true>(x + half, 8, b);
    get8<true>(table, 8, c);
    get8<true>(table + half, 8, n);
#pragma unroll
    for (int j = 0; j < 8; j++) turn(a[j], b[j], c[j], sign * n[j]);
    put8<true>(y, 8, a);
    put8<true>(y + half, 8, b);
}

template <class T> __device__ inline void rotary1(T *y, const T *x, const float *table, int half, float sign) {
    float a = to_float(x[0]), b = to_float(x[half]);
    turn(a, b, table[0], sign * table[half]);
    y[0] = from_float<T>(a);
    y[half] = from_float<T>(b);
}

template <class T>
__device__ void rotary(T *y, const T *x, const float *table, const int *pos, int positions, int heads, int d, float sign) {
    int p = pos[blockIdx.x], half = d / 2, each = (half + 7) / 8;
    if (p < 0 || p >= positions) p = 0, sign = __uint_as_float(0x7fffffffu);
    table += p * (long long)d;
    y += blockIdx.x * (long long)heads * d, x += blockIdx.x * (long long)heads * d;
    bool fast = half % 8 == 0 && aligned16(y) && aligned16(x) && aligned16(table);
#pragma unroll 1
    for (int k = threadIdx.x; k < heads * each; k += blockDim.x) {
        int i = k % each * 8, at = k / each * d;
        if (fast) {
            rotary8(y + at + i, x + at + i, table + i, half, sign);
            continue;
        }
        for (int end = min(i + 8, half); i < end; i++) rotary1(y + at + i, x + at + i, table + i, half, sign);
    }
}

// sign is 1, or -1 for backwards.
#define ROTARY(T)                                                                                             \
    extern "C" __global__ void rotary_##T(T *y, const T *x, const float *table, const int *pos, int positions, \
                                          int heads, int d, float sign) {                                     \
        rotary(y, x, table, pos, positions, heads, d, sign);                                                  \
    }                                                                                                         \
    KERNEL(rotary_##T)
ROTARY(f32)
ROTARY(bf16)
