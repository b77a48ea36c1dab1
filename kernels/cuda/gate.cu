// Gate is, in each row, softmax over the two largest logits, zero elsewhere; ties go to the lower expert.
// gates, logits (T, E).
//
// Top2 is Gate in short form: ids of the two largest logits, the larger first, and their softmax. Ties go to the
// lower expert. ids (T, 2) i32, weights (T, 2), logits (T, E).
//
// GateGrad is dlogits = g ⊙ (dg - Σ_e g_e·dg_e), row by row.
//
// A warp takes a row.
#include "common.cuh"

// The two first of a row, -1 where there is none.
struct Top {
    int id[2];
    float logit[2], weight[2];
};

// Says whether expert i with logit x comes before expert j with logit y. NaN is smaller than all numbers.
__device__ inline bool before(float x, int i, float y, int j) {
    if (i < 0 || j < 0) return i >= 0;
    bool nx = x != x, ny = y != y;
    if (nx || ny) return nx == ny ? i < j : ny;
    return x > y || (x == y && i < j);
}

__device__ inline void insert(Top &top, float x, int i) {
    if (before(x, i, top.logit[0], top.id[0])) {
        top.logit[1] = top.logit[0], top.id[1] = top.id[0];
        top.logit[0] = x, top.id[0] = i;
    } else if (before(x, i, top.logit[1], top.id[1])) {
        top.logit[1] = x, top.id[1] = i;
    }
}

// In every lane. If the row has a NaN, the weights are NaN.
__device__ inline Top top_two(const float *logits, int experts, int lane) {
    Top top = {{-1, -1}, {0, 0}, {0, 0}};
    bool spoilt = false;
    for (int e = lane; e < experts; e += 32) {
        insert(top, logits[e], e);
        spoilt |= logits[e] != logits[e];
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        Top other = top; // that of the other half, which has none of these experts
#pragma unroll
        for (int k = 0; k < 2; k++) {
            other.id[k] = __shfl_xor_sync(0xffffffffu, top.id[k], d);
            other.logit[k] = __shfl_xor_sync(0xffffffffu, top.logit[k], d);
        }
        insert(top, other.logit[0], other.id[0]);
        insert(top, other.logit[1], other.id[1]);
    }
    spoilt = __ballot_sync(0xffffffffu, spoilt) != 0;
    // exp of the difference, which is never positive, cannot overflow.
    float ratio = top.id[1] < 0 ? 0.f : expf(top.logit[1] - top.logit[0]);
    top.weight[0] = 1 / (1 + ratio), top.weight[1] = ratio / (1 + ratio);
    if (spoilt) top.weight[0] = top.weight[1] = __uint_as_float(0x7fc00000u);
    return top;
}

extern "C" __global__ void gate(float *gates, const float *logits, int tokens, int experts) {
    long long t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (t >= tokens) return;
    Top top = top_two(logits + t * experts, experts, lane);
    for (int e = lane; e < experts; e += 32) gates[t * experts + e] = e == top.id[0] ? top.weight[0] : e == top.id[1] ? top.weight[1] : 0.f;
}
KERNEL(gate)

extern "C" __global__ void top2(int *ids, float *weights, const float *logits, int tokens, int experts) {
    long long t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (t >= tokens) return;
    Top top = top_two(logits + t * experts, experts, lane);
    if (lane < 2) {
        ids[2 * t + lane] = lane ? top.id[1] : top.id[0];
        weights[2 * t + lane] = lane ? top.weight[1] : top.weight[0];
    }
}
KERNEL(top2)

extern "C" __global__ void gategrad(float *dlogits, const float *gates, const float *dg, int tokens, int experts) {
    long long t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (t >= tokens) return;
    long long at = t * experts;
    float mean = 0;
    for (int e = lane; e < experts; e += 32) mean = fmaf(gates[at + e], dg[at + e], mean);
    mean = warp_sum(mean);
    for (int e = lane; e < experts; e += 32) dlogits[at + e] = gates[at + e] * (dg[at + e] - mean);
}
KERNEL(gategrad)
