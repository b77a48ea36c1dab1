// Merge of bf16 weights on any card, at the pace of its memory (merge_stream.cuh), with cp.async.
#include "merge_stream.cuh"

#ifdef EMULATED
template <bool FIRST> __device__ inline void stream_copy(void *to, const void *from, bool valid) { copy_async(to, from, valid); }
template <bool FIRST> __device__ inline void stream_store(void *to, uint4 x) { *(uint4 *)to = x; }
#else
__device__ inline unsigned long long evict_first() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
template <bool FIRST> __device__ inline void stream_copy(void *to, const void *from, bool valid) {
    if (!FIRST) return copy_async(to, from, valid);
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(at), "l"(from), "r"(bytes), "l"(evict_first()) : "memory");
}
template <bool FIRST> __device__ inline void stream_store(void *to, uint4 x) {
    if (!FIRST) {
        *(uint4 *)to = x;
        return;
    }
    asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.b32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w),
                 "l"(evict_first())
                 : "memory");
}
#endif

template <int DEPTH, int STAGES, bool READ_FIRST, bool WRITE_FIRST> struct MergeStream {
    const MergeTiles &tiles;
    const MergeChoice &c;
    unsigned char *ring;
    MergePiece *pieces;
    int *next; // two places for the tile to come
    MergeMath<DEPTH> math;

    // The tile that is copied now, its next row, and which place of next is to be read then.
    int tile = blockIdx.x, row = 0, turn = 0;
    MergeTile at = tiles[tile];

    // Starts copying the next piece. All threads must have met since the last call.
    __device__ void load(int stage) {
        if (tile < tiles.tiles && row >= at.rows) {
            tile = next[turn], turn ^= 1;
            if (threadIdx.x == 0) next[turn] = tiles.take(c);
            at = tiles[tile], row = 0;
        }
        if (threadIdx.x == 0) pieces[stage] = {tile, row};
        const bf16 *src = (const bf16 *)at.layer->src + (long long)(at.row + row) * at.layer->width + at.column;
        unsigned char *to = ring + stage * stream_piece_bytes;
#pragma unroll
        for (int i = 0; i < stream_rows * stream_width / 8 / stream_threads; i++) {
            int r = (i * stream_threads + threadIdx.x) / (stream_width / 8), column = threadIdx.x % (stream_width / 8) * 8;
            bool valid = row + r < at.rows && column < at.columns;
            stream_copy<READ_FIRST>(to + r * stream_row_bytes + 2 * column, valid ? src + (long long)r * at.layer->width + column : src, valid);
        }
        copies_commit();
        row += stream_rows;
    }

    __device__ void run() {
        if (threadIdx.x == 0) next[0] = tiles.take(c);
        for (int stage = 0; stage < STAGES - 1; stage++) {
            __syncthreads();
            load(stage);
        }
        MergeTile now;
        for (int stage = 0;; stage = stage + 1 == STAGES ? 0 : stage + 1) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            load(stage == 0 ? STAGES - 1 : stage - 1);
            MergePiece piece = pieces[stage];
            if (piece.tile >= tiles.tiles) break;
            if (piece.row == 0) now = tiles[piece.tile];
            math.prepare(now, piece.row, [] { __syncthreads(); });
            bf16 *dst = (bf16 *)now.layer->dst + (long long)(now.row + piece.row) * now.layer->width + now.column + math.column();
            if (math.column() - math.column() % 64 < now.columns)
                math.merge(ring + stage * stream_piece_bytes, piece.row, [&](int r, uint4 x) {
                    if (piece.row + r < now.rows && math.column() < now.columns) stream_store<WRITE_FIRST>(dst + (long long)r * now.layer->width, x);
                });
        }
        copies_wait<0>();
    }
};

template <int DEPTH, int STAGES, bool READ_FIRST, bool WRITE_FIRST>
__device__ void merge_stream(const MergeTiles &tiles, const MergeChoice &c) {
    if (c.in_force()) return;
    DYNAMIC_SHARED(unsigned char, ring);
    unsigned char *up = ring + STAGES * stream_piece_bytes;
    MergePiece *pieces = (MergePiece *)(up + MergeMath<DEPTH>::bytes);
    MergeStream<DEPTH, STAGES, READ_FIRST, WRITE_FIRST>{tiles, c, ring, pieces, (int *)(pieces + STAGES), {c, (unsigned *)up}}.run();
    c.done();
}

#define MERGE_STREAM(NAME, DEPTH, BLOCKS, STAGES, READ_FIRST, WRITE_FIRST)                                                      \
    extern "C" __global__ void __launch_bounds__(stream_threads, BLOCKS) merge_stream##NAME##_##DEPTH(MergeTiles tiles, MergeChoice c) { \
        merge_stream<DEPTH, STAGES, READ_FIRST, WRITE_FIRST>(tiles, c);                                                         \
    }                                                                                                                           \
    KERNEL(merge_stream##NAME##_##DEPTH)
MERGE_STREAM(, 1, 2, 5, false, false)
MERGE_STREAM(, 2, 2, 5, false, false)
MERGE_STREAM(, 4, 1, 5, false, false)
MERGE_STREAM(, 8, 1, 5, false, false)
MERGE_STREAM(_read, 1, 2, 5, true, false)
MERGE_STREAM(_both, 1, 2, 5, true, true)
MERGE_STREAM(_long, 1, 1, 12, false, false)
