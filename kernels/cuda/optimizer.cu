// Norm is norm = √(Σ g²). norm (1), g (n).
//
// Step is one AdamW step, n = hyper[1] counted from 1 and learning rate lr = hyper[0]:
//	g ← g·min(1, Clip/(norm + 1e-6))
//	m ← Beta1·m + (1-Beta1)·g,  v ← Beta2·v + (1-Beta2)·g²
//	p ← p·(1 - lr·Decay) - lr·(m/(1-Beta1ⁿ)) / (√(v/(1-Beta2ⁿ)) + Eps)
// g itself is left as it is. Nothing moves if norm is not finite. p, g, m, v (n), norm (1), hyper (2).
//
// Squares are summed in float64: by the blocks of norm_parts, whose number depends on n alone, then by the one of norm_total.
#include "common.cuh"

// The sum over a block of 256 threads, in thread 0.
__device__ inline double sum256(double x) {
    __shared__ double part[256];
    part[threadIdx.x] = x;
    __syncthreads();
    for (int d = 128; d > 0; d >>= 1) {
        if ((int)threadIdx.x < d) part[threadIdx.x] += part[threadIdx.x + d];
        __syncthreads();
    }
    return part[0];
}

extern "C" __global__ void norm_parts(double *parts, const float *g, long long n) {
    double s = 0;
    long long stride = 8LL * blockDim.x * gridDim.x;
    for (long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += stride) {
        float x[8];
        load8(g + i, n - i < 8 ? (int)(n - i) : 8, x);
        double t[4];
#pragma unroll
        for (int j = 0; j < 4; j++) t[j] = (double)x[j] * x[j] + (double)x[j + 4] * x[j + 4];
        s += t[0] + t[1] + (t[2] + t[3]);
    }
    s = sum256(s);
    if (threadIdx.x == 0) parts[blockIdx.x] = s;
}
KERNEL(norm_parts)

extern "C" __global__ void norm_total(float *norm, const double *parts, int count) {
    double s = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) s += parts[i];
    s = sum256(s);
    if (threadIdx.x == 0) norm[0] = (float)sqrt(s);
}
KERNEL(norm_total)

struct AdamW {
    double beta1, beta2, eps, decay, clip;
};

// What a step multiplies with, the same for all elements.
struct Rule {
    float beta1, fresh1, beta2, fresh2, eps, clip, size, correct, shrink;
};

template <bool fast> __device__ void adamw8(float *p, const float *g, float *m, float *v, int count, Rule r) {
    float a[8], grad[8], first[8], second[8];
    get8<fast>(p, count, a);
    get8<fast>(g, count, grad);
    get8<fast>(m, count, first);
    get8<fast>(v, count, second);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float x = grad[j] * r.clip;
        first[j] = r.beta1 * first[j] + r.fresh1 * x;
        second[j] = r.beta2 * second[j] + r.fresh2 * (x * x);
        a[j] = a[j] * r.shrink - r.size * (first[j] / (sqrtf(second[j] * r.correct) + r.eps));
    }
    put8<fast>(p, count, a);
    put8<fast>(m, count, first);
    put8<fast>(v, count, second);
}

extern "C" __global__ void __launch_bounds__(256, 4) adamw(float *p, const float *g, float *m, float *v, const float *norm,
                                                           const float *hyper, AdamW c, long long n) {
    __shared__ Rule shared;
    float length = norm[0];
    if (length - length != 0.f) return;
    if (threadIdx.x == 0) {
        double rate = hyper[0], step = hyper[1];
        shared.beta1 = (float)c.beta1, shared.fresh1 = (float)(1 - c.beta1);
        shared.beta2 = (float)c.beta2, shared.fresh2 = (float)(1 - c.beta2);
        shared.eps = (float)c.eps;
        shared.clip = c.clip > 0 ? (float)fmin(1.0, c.clip / ((double)length + 1e-6)) : 1.f;
        shared.size = (float)(rate / (1 - pow(c.beta1, step)));
        shared.correct = (float)(1 / (1 - pow(c.beta2, step)));
        shared.shrink = (float)(1 - rate * c.decay);
    }
    __syncthreads();
    Rule r = shared;
    bool aligned = aligned16(p) && aligned16(g) && aligned16(m) && aligned16(v);
    long long stride = 8LL * blockDim.x * gridDim.x;
    for (long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += stride)
        if (aligned && n - i >= 8)
            adamw8<true>(p + i, g + i, m + i, v + i, 8, r);
        else
            adamw8<false>(p + i, g + i, m + i, v + i, n - i < 8 ? (int)(n - i) : 8, r);
}
KERNEL(adamw)
