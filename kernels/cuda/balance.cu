// Balance is loss = E·Σ_e f_e·p_e over the tokens with seq ≥ 0, where f_e is the share of the top-2 places
// that e holds (a place counts if its gate is above 0) and p_e its mean softmax probability: 1 if all experts
// are used alike. It also writes f to loads. loss (1), loads (E), logits, gates (T, E), seq (T) i32.
//
// BalanceGrad is dlogits[t] = dloss·E/N·p[t] ⊙ (f - Σ_e f_e·p[t, e]) for the N tokens with seq ≥ 0, where p[t] is
// the softmax of a row and f = loads; zero for the others. dloss (1).
#include "common.cuh"

// What a softmax needs to know of a row: exp(x - most) / sum. In every lane of a warp.
struct Softmax {
    float most, sum;
};
__device__ inline Softmax softmax_of(const float *logits, int experts, int lane) {
    float most = __uint_as_float(0xff800000u), sum = 0;
    for (int e = lane; e < experts; e += 32) most = fmaxf(most, logits[e]);
    most = warp_max(most);
    for (int e = lane; e < experts; e += 32) sum += expf(logits[e] - most);
    return {most, warp_sum(sum)};
}

// Sums 64 tokens for 32 experts, those of blockIdx.y, a lane for each expert: probabilities (P, E), places held (P, E) and tokens
// that count (P), where P blocks lie along x.
extern "C" __global__ void balance_parts(float *probabilities, int *places, int *counted, const float *logits, const float *gates,
                                         const int *seq, int tokens, int experts) {
    __shared__ float shares[8][32];
    __shared__ int holds[8][32], counts[8];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, e = 32 * blockIdx.y + lane;
    float share = 0;
    int hold = 0, count = 0;
    for (int i = warp; i < 64; i += 8) {
        long long t = 64LL * blockIdx.x + i;
        if (t >= tokens || seq[t] < 0) continue;
        Softmax row = softmax_of(logits + t * experts, experts, lane);
        count++;
        if (e < experts) {
            share += expf(logits[t * experts + e] - row.most) / row.sum;
            hold += gates[t * experts + e] > 0;
        }
    }
    shares[warp][lane] = share, holds[warp][lane] = hold;
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    if (warp > 0) return;
    share = 0, hold = 0, count = 0;
    for (int w = 0; w < 8; w++) share += shares[w][lane], hold += holds[w][lane], count += counts[w];
    if (e < experts) probabilities[(long long)blockIdx.x * experts + e] = share, places[(long long)blockIdx.x * experts + e] = hold;
    if (blockIdx.y == 0 && lane == 0) counted[blockIdx.x] = count;
}
KERNEL(balance_parts)

// Adds the parts up, a warp for each expert in turn.
extern "C" __global__ void balance(float *loss, float *loads, const float *probabilities, const int *places, const int *counted,
                                   int parts, int experts) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float count = 0; // exact, as are the places
    for (int i = lane; i < parts; i += 32) count += counted[i];
    count = fmaxf(1, warp_sum(count));
    float mixed = 0;
    for (int e = warp; e < experts; e += blockDim.x / 32) {
        float share = 0, hold = 0;
        for (int i = lane; i < parts; i += 32) {
            share += probabilities[(long long)i * experts + e];
            hold += places[(long long)i * experts + e];
        }
        share = warp_sum(share) / count;
        float load = warp_sum(hold) / (2 * count);
        if (lane == 0) {
            loads[e] = load;
            mixed = fmaf(load, share, mixed);
        }
    }
    mixed = block_sum(mixed);
    if (threadIdx.x == 0) loss[0] = mixed * experts;
}
KERNEL(balance)

// A block takes 64 tokens, a warp each in turn.
extern "C" __global__ void balancegrad(float *dlogits, const float *dloss, const float *logits, const float *loads, const int *seq,
                                       int tokens, int experts) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int own = 0;
    for (int t = threadIdx.x; t < tokens; t += blockDim.x) own += seq[t] >= 0;
    float count = block_sum((float)own);
    float factor = dloss[0] * experts / fmaxf(1, count);
    for (int i = warp; i < 64; i += 8) {
        long long t = 64LL * blockIdx.x + i;
        if (t >= tokens) break;
        const float *x = logits + t * experts;
        float *d = dlogits + t * experts;
        if (seq[t] < 0) {
            for (int e = lane; e < experts; e += 32) d[e] = 0;
            continue;
        }
        Softmax row = softmax_of(x, experts, lane);
        float mean = 0;
        for (int e = lane; e < experts; e += 32) mean = fmaf(loads[e], expf(x[e] - row.most) / row.sum, mean);
        mean = warp_sum(mean);
        for (int e = lane; e < experts; e += 32) d[e] = factor * (expf(x[e] - row.most) / row.sum) * (loads[e] - mean);
    }
}
KERNEL(balancegrad)
