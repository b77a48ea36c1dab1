// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y or none.
//
// SwitchGradHidden is, with v = s·dy·Bᵀ (T, C): du = v ⊙ Ĝ, and dg[t, e] = Σ v[t, c]·u[t, c] over the columns
// c of expert e; dg none if E = 0. du, u (T, C), dg (T, E), dy (T, D_out).
//
// What is elementwise in them, for any shape; u = z·A and v = dy·Bᵀ on tensor cores with it are in switch_hidden.cu.
#include "switch.cuh"

// p = s·(u ⊙ Ĝ), n elements.
template <class T> __device__ void switch_gated(T *p, const T *u, Gates g, int cols, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) p[i] = from_float<T>(g.scale * gate(g, i / cols, (int)(i % cols)) * to_float(u[i]));
}

// du and dg from v: the first n = T·C threads compute an element of du, the others one of dg.
template <class T>
__device__ void switch_grad_gated(T *du, float *dg, const float *v, const T *u, Gates g, int cols, long long n, long long gates) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) {
        du[i] = from_float<T>(v[i] * gate(g, i / cols, (int)(i % cols)));
        return;
    }
    i -= n;
    if (i >= gates) return;
    long long from = i / g.experts * cols + i % g.experts * g.rank;
    float s = 0;
    for (int r = 0; r < g.rank; r++) s += v[from + r] * to_float(u[from + r]);
    dg[i] = s;
}

#define SWITCH(T)                                                                                           \
    extern "C" __global__ void switch_gated_##T(T *p, const T *u, Gates g, int cols, long long n) {         \
        switch_gated(p, u, g, cols, n);                                                                     \
    }                                                                                                       \
    KERNEL(switch_gated_##T)                                                                                \
    extern "C" __global__ void switch_grad_gated_##T(T *du, float *dg, const float *v, const T *u, Gates g, \
                                                     int cols, long long n, long long gates) {              \
        switch_grad_gated(du, dg, v, u, g, cols, n, gates);                                                 \
    }                                                                                                       \
    KERNEL(switch_grad_gated_##T)
SWITCH(f32)
SWITCH(bf16)
