// Spread is gates[t, e] = Σ_k weights[t, k] over the k with ids[t, k] = e: a token's experts as SwitchLinear takes them. gates (T, E),
// ids (T, n) i32, weights (T, n).
//
// A thread for each gate. An id of no expert makes its token's gates NaN.
#include "common.cuh"

extern "C" __global__ void spread(float *gates, const int *ids, const float *weights, int n, int experts, long long total) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= total) return;
    long long token = i / experts;
    int expert = (int)(i % experts);
    float sum = 0;
    for (int k = 0; k < n; k++) {
        int id = ids[token * n + k];
        if (id < 0 || id >= experts) sum = __uint_as_float(0x7fc00000u);
        if (id == expert) sum += weights[token * n + k];
    }
    gates[i] = sum;
}
KERNEL(spread)
