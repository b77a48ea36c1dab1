// What thin.cuh computes, for up to 64 columns, as Hopper does it best (PTX ISA, wgmma, mbarrier, barrier.cluster). Half of a block's
// threads only copy, the other half only multiply, and barriers in shared memory let each run ahead of the other. The blocks that share a
// tile by its depth are a cluster: each finishes some rows of the tile, for which it reads its neighbours' sums from their shared memory.
//
// A tile is the long operand's N rows (or columns, where its rows are the depth) by the thin operand's 64 columns. For the tensor cores it
// is turned: D (64, N) = thinᵀ·longᵀ.
#pragma once
#include "hopper.cuh"
#include "mma.cuh"
#include "switch.cuh"

constexpr int tall_columns = 64, tall_depth = 64, tall_workers = 128, tall_threads = 2 * tall_workers, tall_stages = 7;
constexpr int tall_panel = 64 * 64 * 2; // bytes of 64 x 64 elements, laid out as panel_at of thin.cuh says

// The gates of a stage: for each expert its gates of 64 tokens; 4 more spread experts over the banks.
constexpr int tall_experts = 16, tall_gates_stride = tall_depth + 4, tall_gates_size = tall_experts * tall_gates_stride;

__device__ inline void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

__device__ inline void copy16_async(unsigned to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void copy4_async(unsigned to, const void *from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}

// A copying thread's part of a panel of m (rows, cols): 4 chunks, 16 rows apart.
struct PanelCopy {
    const bf16 *m;
    int rows, cols, r, c; // the first chunk in a panel
    unsigned to;          // where it goes

    __device__ PanelCopy(const bf16 *m, int rows, int cols) : m(m), rows(rows), cols(cols) {
        r = threadIdx.x % tall_workers / 8, c = threadIdx.x % 8 * 8;
        to = r * 128 + (threadIdx.x % 8 ^ r % 8) * 16;
    }
    __device__ void start(unsigned panel, int row, int col) const {
        const bf16 *from = m + (long long)(row + r) * cols + col + c;
#pragma unroll
        for (int i = 0; i < 4; i++, from += 16ll * cols) {
            bool inside = row + r + 16 * i < rows && col + c < cols;
            copy16_async(panel + to + 16 * 128 * i, inside ? from : m, inside);
        }
    }
};

// A copying thread's part of the gates of a stage, which lie together, expert by expert for each token.
struct GatesCopy {
    static constexpr int each = tall_depth * tall_experts / tall_workers; // at most
    Gates g;
    long long end;
    int to[each]; // in bytes; none if negative

    __device__ GatesCopy(Gates g, int tokens) : g(g), end((long long)tokens * g.experts) {
#pragma unroll
        for (int j = 0; j < each; j++) {
            int at = threadIdx.x % tall_workers + tall_workers * j, t = g.experts > 0 ? at / g.experts : tall_depth;
            to[j] = t < tall_depth ? ((at - t * g.experts) * tall_gates_stride + t) * 4 : -1;
        }
    }
    __device__ void start(unsigned stage, int token) const {
        long long at = (long long)token * g.experts + threadIdx.x % tall_workers;
#pragma unroll
        for (int j = 0; j < each; j++, at += tall_workers)
            if (to[j] >= 0) copy4_async(stage + to[j], g.at + (at < end ? at : 0), at < end);
    }
};

// The thin operand as fragments, made s·(u ⊙ Ĝ) of u (tokens, 64).
struct GatedFragments {
    float scale;
    int at[2];     // where the gates lie of the two columns whose elements this thread has; -1: of none
    unsigned from; // where this thread's row is, for ldmatrix

    __device__ GatedFragments(Gates g) : scale(g.scale) {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int e = g.rank > 0 ? (16 * warp + 8 * h + lane / 4) / g.rank : g.experts;
            at[h] = e < g.experts ? e * tall_gates_stride + lane % 4 * 2 : -1;
        }
        from = (lane / 16 * 8 + lane % 8) * 128 + ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;
    }
    __device__ void load(unsigned (&a)[4][4], unsigned panel) const {
#pragma unroll
        for (int k = 0; k < 4; k++)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(a[k][0]), "=r"(a[k][1]), "=r"(a[k][2]), "=r"(a[k][3]) : "r"(panel + from + 16 * 128 * k) : "memory");
    }
    // Applies the gates to steps of 16 tokens from k on.
    template <int steps> __device__ void apply(unsigned (&a)[4][4], const float *gates, int k) const {
        float2 by[steps][4]; // read together, so that their latencies do not add up
#pragma unroll
        for (int i = 0; i < steps; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                by[i][j] = at[j % 2] < 0 ? make_float2(1, 1) : *(const float2 *)(gates + at[j % 2] + 16 * (k + i) + j / 2 * 8);
#pragma unroll
        for (int i = 0; i < steps; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                unsigned &x = a[k + i][j];
                x = pack(scale * by[i][j].x * __uint_as_float(x << 16), scale * by[i][j].y * __uint_as_float(x & 0xffff0000u));
            }
    }
};

// acc = this block's share of the sums of the tile from row on, for the threads below tall_workers; all must call it. thin is (depth, cols)
// where THIN_DEEP, otherwise (cols, depth); tall (depth, rows) where TALL_DEEP, otherwise (rows, depth). GATED: thin is s·(u ⊙ Ĝ) of u.
//
// shared holds `stages` stages, each the thin operand's panel and the long one's, then their gates.
template <int N, int S, bool THIN_DEEP, bool TALL_DEEP, bool GATED>
__device__ inline void tall_product(float (&acc)[N / 2], unsigned char *shared, int stages, const bf16 *thin, const bf16 *tall, int cols,
                                    int rows, int depth, int row, Gates g) {
    constexpr int stage_size = tall_panel * (1 + N / 64);
    __shared__ Barrier full[tall_stages], empty[tall_stages];
    unsigned ring = shared_at(shared);
    float *gates = (float *)(shared + stages * stage_size);
    int all = (depth + tall_depth - 1) / tall_depth, first = all * (int)blockIdx.y / S, n = all * ((int)blockIdx.y + 1) / S - first;

    if (threadIdx.x < stages) {
        barrier_init(full + threadIdx.x, tall_workers);
        barrier_init(empty + threadIdx.x, tall_workers / 32);
    }
    __syncthreads();
    if (threadIdx.x >= tall_workers) {
        PanelCopy from_thin(thin, THIN_DEEP ? depth : cols, THIN_DEEP ? cols : depth);
        PanelCopy from_tall(tall, TALL_DEEP ? depth : rows, TALL_DEEP ? rows : depth);
        GatesCopy from_gates(g, depth);
        for (int i = 0, slot = 0, parity = 1; i < n; i++) {
            int k = (first + i) * tall_depth;
            unsigned stage = ring + slot * stage_size;
            barrier_wait(empty + slot, parity);
#pragma unroll
            for (int p = 0; p < N / 64; p++)
                from_tall.start(stage + (1 + p) * tall_panel, TALL_DEEP ? k : row + 64 * p, TALL_DEEP ? row + 64 * p : k);
            from_thin.start(stage, THIN_DEEP ? k : 0, THIN_DEEP ? 0 : k);
            if (GATED) from_gates.start(shared_at(gates + slot * tall_gates_size), k);
            barrier_arrive_copied(full + slot);
            if (++slot == stages) slot = 0, parity ^= 1;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) acc[i] = 0;
    GatedFragments gated(g);
    unsigned a[4][4];
    for (int i = 0, slot = 0, before = 0, parity = 0; i < n; i++) {
        barrier_wait(full + slot, parity);
        shared_for_copies(); // which a barrier has told this thread of
        unsigned stage = ring + slot * stage_size;
        unsigned long long x = panel_descriptor(stage, THIN_DEEP, tall_panel), y = panel_descriptor(stage + tall_panel, TALL_DEEP, tall_panel);
        if constexpr (GATED) {
            wgmma_wait<0>(); // a is free
            __syncwarp();    // and all of the warp have read what it was made of
            if (i > 0 && threadIdx.x % 32 == 0) barrier_arrive(empty + before);
            constexpr int steps = N == 64 ? 4 : 2; // as many as registers allow
            gated.load(a, stage);
#pragma unroll
            for (int k = 0; k < 4; k += steps) {
                gated.apply<steps>(a, gates + slot * tall_gates_size, k);
                wgmma_begin();
#pragma unroll
                for (int j = k; j < k + steps; j++) Wgmma<N, TALL_DEEP>::run(acc, a[j], y + j * depth_step<TALL_DEEP>, 1);
                wgmma_commit();
            }
        } else {
            wgmma_begin();
#pragma unroll
            for (int k = 0; k < 4; k++) Wgmma<N, TALL_DEEP>::template run<THIN_DEEP>(acc, x + k * depth_step<THIN_DEEP>, y + k * depth_step<TALL_DEEP>, 1);
            wgmma_commit();
            wgmma_wait<1>();
            if (i > 0 && threadIdx.x % 32 == 0) barrier_arrive(empty + before);
        }
        before = slot;
        if (++slot == stages) slot = 0, parity ^= 1;
    }
    wgmma_wait_for(acc);
}

// A tile's sums, as rows of the long operand with 64 columns or, TURNED, as 64 rows with a column for each of the long operand's rows; of
// these, the rows that this block finishes. A thread has 4 columns from col on of the rows row(0), row(1), ….
template <int N, int S, bool TURNED> struct TallTile {
    static constexpr int rows = TURNED ? 64 : N, cols = TURNED ? N : 64;
    static constexpr int stride = cols + (TURNED ? 8 : 4); // in shared memory; more than cols spreads what a warp writes over the banks
    static constexpr int step = tall_threads / (cols / 4), passes = (rows / S + (rows % S != 0) + step - 1) / step;
    int first, end, col;

    __device__ TallTile() {
        int block = S == 1 ? 0 : blockIdx.y;
        first = rows * block / S, end = rows * (block + 1) / S, col = threadIdx.x % (cols / 4) * 4;
    }
    __device__ int row(int pass) const { return first + threadIdx.x / (cols / 4) + step * pass; }

    // The sums over all blocks of the cluster, in their order. finish() must follow before the block ends.
    __device__ void sum(float4 (&sums)[passes], float *shared, const float (&acc)[N / 2]) const {
        __syncthreads(); // all stages have been multiplied
        if (threadIdx.x < tall_workers) store(shared, acc);
        if (S > 1)
            cluster_arrive(), cluster_wait();
        else
            __syncthreads();
#pragma unroll
        for (int j = 0; j < passes; j++) {
            sums[j] = make_float4(0, 0, 0, 0);
            if (row(j) >= end) continue;
            float *at = shared + row(j) * stride + col;
            float4 x[S];
#pragma unroll
            for (int i = 0; i < S; i++) x[i] = S > 1 ? cluster_load(at, i) : *(const float4 *)at;
#pragma unroll
            for (int i = 1; i < S; i++) x[0].x += x[i].x, x[0].y += x[i].y, x[0].z += x[i].z, x[0].w += x[i].w;
            sums[j] = x[0];
        }
        if constexpr (S > 1) {
            unsigned all = 0;
#pragma unroll
            for (int j = 0; j < passes; j++)
                all ^= __float_as_uint(sums[j].x) ^ __float_as_uint(sums[j].y) ^ __float_as_uint(sums[j].z) ^ __float_as_uint(sums[j].w);
            arrived(all); // before the other blocks may end
            cluster_arrive_read();
        }
    }
    // Waits until no other block reads this one's shared memory.
    __device__ static void finish() {
        if (S > 1) cluster_wait();
    }

    __device__ static void store(float *tile, const float (&acc)[N / 2]) {
        int n = threadIdx.x % 4 * 2, m = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            float *to = TURNED ? tile + m * stride + 8 * j + n : tile + (8 * j + n) * stride + m;
            if (TURNED) {
                *(float2 *)to = make_float2(acc[4 * j], acc[4 * j + 1]);
                *(float2 *)(to + 8 * stride) = make_float2(acc[4 * j + 2], acc[4 * j + 3]);
            } else {
                to[0] = acc[4 * j], to[stride] = acc[4 * j + 1];
                to[8] = acc[4 * j + 2], to[stride + 8] = acc[4 * j + 3];
            }
        }
    }
};
