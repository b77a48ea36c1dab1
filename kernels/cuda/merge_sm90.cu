// Merge of bf16 weights on Hopper (merge_stream.cuh): rows of a tile come and go as bulk copies, and the sums take the place of what came.
//
// One block to a multiprocessor. Eight warps merge the pieces of a ring of stages in place; a ninth brings them, as many ahead as there are
// stages, and takes them away.
#include "hopper.cuh"
#include "merge_stream.cuh"

// What is copied once should not push anything else out of the second-level cache.
template <bool FIRST> __device__ inline unsigned long long bulk_policy() {
    unsigned long long policy;
    if (FIRST)
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    else
        asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// Copies bytes, a multiple of 16 as both addresses are, to shared memory; `full` is told of them.
template <bool FIRST> __device__ inline void bulk_load(void *to, const void *from, int bytes, Barrier *full) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_at(to)),
                 "l"(from), "r"(bytes), "r"(shared_at(full)), "l"(bulk_policy<FIRST>())
                 : "memory");
}
// Copies them back, as a part of this thread's next group.
template <bool FIRST> __device__ inline void bulk_store(void *to, const void *from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(to), "r"(shared_at(from)), "r"(bytes),
                 "l"(bulk_policy<FIRST>())
                 : "memory");
}
__device__ inline void bulk_stored() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

constexpr int bulk_stages = 12, bulk_threads = stream_threads + 32;

// What the ninth warp notes of a stage, to take it away.
struct BulkOut {
    bf16 *dst;
    int rows, width, bytes;
};

template <int DEPTH, bool READ_FIRST, bool WRITE_FIRST> struct MergeBulk {
    const MergeTiles &tiles;
    const MergeChoice &c;
    unsigned char *ring;
    BulkOut *outs;
    Barrier *full, *merged;
    MergePiece *pieces;

    int lane = threadIdx.x % 32;
    int tile = blockIdx.x, row = 0;
    MergeTile at = tiles[tile];

    __device__ void load(int stage) {
        if (tile < tiles.tiles && row >= at.rows) {
            int next = lane == 0 ? tiles.take(c) : 0;
            tile = __shfl_sync(0xffffffffu, next, 0);
            at = tiles[tile], row = 0;
        }
        int rows = max(0, min(stream_rows, at.rows - row)), width = at.layer->width;
        long long first = (long long)(at.row + row) * width + at.column;
        if (lane == 0) {
            pieces[stage] = {tile, row};
            outs[stage] = {(bf16 *)at.layer->dst + first, rows, width, 2 * at.columns};
            barrier_arrive_expecting(full + stage, rows * 2 * at.columns);
        }
        __syncwarp();
        if (lane < rows)
            bulk_load<READ_FIRST>(ring + stage * stream_piece_bytes + lane * stream_row_bytes,
                                  (const bf16 *)at.layer->src + first + (long long)lane * width, 2 * at.columns, full + stage);
        row += stream_rows;
    }

    __device__ void copy() {
        for (int stage = 0; stage < bulk_stages - 1; stage++) load(stage);
        unsigned parity = 0;
        for (int stage = 0; pieces[stage].tile < tiles.tiles;) {
            barrier_wait(merged + stage, parity);
            BulkOut out = outs[stage];
            if (lane < out.rows)
                bulk_store<WRITE_FIRST>(out.dst + (long long)lane * out.width, ring + stage * stream_piece_bytes + lane * stream_row_bytes, out.bytes);
            bulk_stored();
            copies_out_read<1>(); // the stage before this one is free
            load(stage == 0 ? bulk_stages - 1 : stage - 1);
            if (++stage == bulk_stages) stage = 0, parity ^= 1;
        }
        copies_out_wait<0>();
    }

    __device__ void merge(unsigned *up) {
        MergeMath<DEPTH> math{c, up};
        MergeTile now;
        unsigned parity = 0;
        for (int stage = 0;;) {
            barrier_wait(full + stage, parity);
            MergePiece piece = pieces[stage];
            if (piece.tile >= tiles.tiles) break;
            if (piece.row == 0) now = tiles[piece.tile];
            math.prepare(now, piece.row, [] { threads_sync(1, stream_threads); });
            unsigned char *from = ring + stage * stream_piece_bytes;
            if (64 * math.warp < now.columns) {
                math.merge(from, piece.row, [&](int r, uint4 x) { *(uint4 *)(from + r * stream_row_bytes + 2 * math.column()) = x; });
                shared_for_copies();
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(merged + stage);
            if (++stage == bulk_stages) stage = 0, parity ^= 1;
        }
    }
};

template <int DEPTH, bool READ_FIRST, bool WRITE_FIRST> __device__ void merge_bulk(const MergeTiles &tiles, const MergeChoice &c) {
    if (c.in_force()) return;
    DYNAMIC_SHARED(unsigned char, ring);
    unsigned char *up = ring + bulk_stages * stream_piece_bytes;
    BulkOut *outs = (BulkOut *)(up + MergeMath<DEPTH>::bytes);
    Barrier *full = (Barrier *)(outs + bulk_stages);
    MergeBulk<DEPTH, READ_FIRST, WRITE_FIRST> m{tiles, c, ring, outs, full, full + bulk_stages, (MergePiece *)(full + 2 * bulk_stages)};
    if (threadIdx.x == 0) {
        for (int i = 0; i < bulk_stages; i++) {
            barrier_init(m.full + i, 1);
            barrier_init(m.merged + i, stream_threads / 32);
        }
        barriers_init_done();
    }
    __syncthreads();
    if (__shfl_sync(0xffffffffu, threadIdx.x / 32, 0) == stream_threads / 32)
        m.copy();
    else
        m.merge((unsigned *)up);
    c.done();
}

#define MERGE_BULK(NAME, DEPTH, READ_FIRST, WRITE_FIRST)                                                                           \
    extern "C" __global__ void __launch_bounds__(bulk_threads, 1) merge_bulk##NAME##_##DEPTH(MergeTiles tiles, MergeChoice c) {    \
        merge_bulk<DEPTH, READ_FIRST, WRITE_FIRST>(tiles, c);                                                                      \
    }
MERGE_BULK(, 1, false, false)
MERGE_BULK(, 2, false, false)
MERGE_BULK(, 4, false, false)
MERGE_BULK(, 8, false, false)
MERGE_BULK(_read, 1, true, false)
MERGE_BULK(_both, 1, true, true)
