// The gates of a dense expert bank.
#pragma once
#include "common.cuh"

// Ĝ = [G ⊗ 1_R | 1] with G (T, experts), and the scale s.
struct Gates {
    const float *at;
    int experts, rank;
    float scale;
};

__device__ inline float gate(Gates g, long long t, int col) {
    return col < g.experts * g.rank ? g.at[t * g.experts + col / g.rank] : 1.f;
}
