// What all kernels of Merge share: the table of layers, the choice of experts, and what is in force.
#pragma once
#include "common.cuh"

// A layer's part; types are kernels.Type.
struct MergeLayer {
    void *dst;
    const void *src, *a, *b;
    int experts, rank, width, out;
    int src_type, a_type, b_type;
    int tile;                    // the first of its tiles, which are numbered through all layers
    int ring_tile, ring_columns; // the same in merge_ring.cu, and how many columns a tile has there
};

struct MergeChoice {
    const int *ids;
    const float *weights;
    int *force;         // or null
    unsigned *counters; // zero between launches: blocks that are done, and tiles that merge_ring.cu has given out
    int n;
    float scale;

    // Whether all of it is in force. Every thread of every block sees the same: force is written when all blocks have come to done.
    __device__ bool in_force() const {
        if (!force) return false;
        bool same = true;
        for (int k = 0; k < n; k++) same = same && ids[k] >= 0 && ids[k] == force[k] && __float_as_int(weights[k]) == force[n + k];
        return same;
    }

    // The row of A and of B, seen as (E·R, …), that is number kr of the depth; below 0 if there is no such number or no such expert.
    __device__ int row(const MergeLayer &l, int kr) const {
        if (kr >= n * l.rank) return -1;
        int expert = ids[kr / l.rank];
        return expert >= 0 && expert < l.experts ? expert * l.rank + kr % l.rank : -1;
    }

    // What that row of B is multiplied by: s·weights[k]; 0 if there is no such number, NaN if there is no such expert.
    __device__ float factor(const MergeLayer &l, int kr) const {
        if (kr >= n * l.rank) return 0.f;
        return row(l, kr) < 0 ? __uint_as_float(0x7fc00000u) : scale * weights[kr / l.rank];
    }

    // Says what is in force once every block has come here. All threads must.
    __device__ void done() const {
        __syncthreads(); // all of them have seen what was in force
        if (threadIdx.x != 0) return;
        __threadfence();
        if (atomicAdd(counters, 1u) != gridDim.x - 1) return;
        counters[0] = counters[1] = 0;
        for (int k = 0; force && k < n; k++) force[k] = ids[k], force[n + k] = __float_as_int(weights[k]);
    }
};

// The layer that a tile belongs to, of those of a table whose member FIRST is each one's first.
template <int MergeLayer::*FIRST> __device__ inline const MergeLayer *merge_layer(const MergeLayer *layers, int count, int tile) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (layers[middle].*FIRST <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    return layers + low;
}
