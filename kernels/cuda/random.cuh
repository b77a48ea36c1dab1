// Random of package kernels: splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
#pragma once

#include "common.cuh"

__device__ inline unsigned long long mix(unsigned long long z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// Random(key[0], key[1], site).
__device__ inline unsigned long long random_stream(const int *key, unsigned long long site) {
    unsigned long long seed = (unsigned long long)(unsigned)key[0] << 32 | (unsigned)key[1];
    return mix(mix(seed) ^ site * 0xd1342543de82ef95ull);
}

// The upper 24 bits of its element i.
__device__ inline unsigned random24(unsigned long long stream, long long i) { return (unsigned)(mix(stream + i) >> 40); }
