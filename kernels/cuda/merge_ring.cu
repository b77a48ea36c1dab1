// Merge of bf16 weights at the pace of a card's memory.
//
// A tile is up to 512 columns of some rows of a layer. Blocks take the next one as they come to it, so that all of them end together, and bring it
// to a ring in shared memory in pieces of 16 rows, four pieces ahead, with cp.async. Eight warps have 64 columns each and keep their part of A in
// registers for the whole tile, as the rows of mma's first operand; rows of the weight are the columns of the second one. So a lane has 8 columns
// side by side, and four rows of 128 bytes go to memory at once. s·weights[k]·B is rounded to bf16, which is less than what rounding dst loses
// unless the product is larger than the weight; sums are float32, and rounded once.
#include "merge.cuh"
#include "mma.cuh"

constexpr int merge_threads = 256, tile_width = 512, piece_rows = 16, stages = 5;
// Of a row in shared memory; 32 bytes more than it has spread four rows over the banks.
constexpr int row_bytes = 2 * tile_width + 32, piece_bytes = piece_rows * row_bytes;

// Rows and columns of a layer.
struct MergeTile {
    const MergeLayer *layer;
    int row, rows, column, columns;
};

struct MergeTiles {
    const MergeLayer *layers;
    int count, tiles, rows; // layers, tiles of all of them, rows of a tile: a multiple of 128

    // Tile i; of no rows if there is no such tile.
    __device__ MergeTile operator[](int i) const {
        if (i >= tiles) return {layers, 0, 0, 0, 0};
        const MergeLayer *l = merge_layer<&MergeLayer::ring_tile>(layers, count, i);
        int across = (l->width + l->ring_columns - 1) / l->ring_columns;
        i -= l->ring_tile;
        int row = i / across * rows, column = i % across * l->ring_columns;
        return {l, row, min(rows, l->out - row), column, min(l->ring_columns, l->width - column)};
    }
    // The next tile that nobody has; the first ones go to the blocks in order.
    __device__ int take(const MergeChoice &c) const { return (int)(gridDim.x + atomicAdd(c.counters + 1, 1u)); }
};

// What a stage of the ring holds: 16 rows of a tile from one on. After the last tile comes one that does not exist.
struct MergePiece {
    int tile, row;
};

// A number of the depth: its row of A and of B, below 0 if there is none, and what B is multiplied by.
struct MergeNumber {
    int row;
    float factor;
};

// DEPTH times 16 is the depth of the product, or a little more than it.
template <int DEPTH> struct MergeMath {
    // Of B, those that shared memory of 99 KB has room for.
    static constexpr int up_rows = DEPTH == 8 ? 48 : DEPTH == 4 ? 96 : 128;
    static constexpr int up_bytes = up_rows * DEPTH * 32, bytes = up_bytes + DEPTH * 16 * (int)sizeof(MergeNumber);

    const MergeChoice &c;
    unsigned *up; // B as mma's second operand, for each 16 rows and 16 of the depth the lanes' fragments of two times 8 rows
    MergeNumber *numbers = (MergeNumber *)((unsigned char *)up + up_bytes);
    unsigned down[DEPTH][4][4];
    int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quarter = threadIdx.x % 4;

    // Where this lane's columns begin in a tile.
    __device__ int column() const { return 64 * warp + 8 * group; }

    // Looks up the choice for a layer. Threads must meet before and after it.
    __device__ void look_up(const MergeLayer &l) const {
        for (int kr = threadIdx.x; kr < 16 * DEPTH; kr += merge_threads) numbers[kr] = {c.row(l, kr), c.factor(l, kr)};
    }

    // Brings a tile's part of A. Number 8h + group of the rows of mma j is column 2j + h of the lane's.
    __device__ void load_down(const MergeTile &t) {
        const MergeLayer &l = *t.layer;
#pragma unroll
        for (int s = 0; s < DEPTH; s++) {
            unsigned w[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = column() < t.columns ? numbers[16 * s + 2 * quarter + i % 2 + i / 2 * 8].row : -1;
                uint4 v = make_uint4(0, 0, 0, 0);
                if (at >= 0) v = *(const uint4 *)((const bf16 *)l.a + (long long)at * l.width + t.column + column());
                w[i][0] = v.x, w[i][1] = v.y, w[i][2] = v.z, w[i][3] = v.w;
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    down[s][j][2 * i] = (w[2 * i][j] & 0xffff) | w[2 * i + 1][j] << 16;
                    down[s][j][2 * i + 1] = w[2 * i][j] >> 16 | (w[2 * i + 1][j] & 0xffff0000u);
                }
        }
    }

    // Brings the part of B of up to up_rows rows, from row `row` of a tile on. Number n of the 8 columns of an mma is row n/2 + n%2·4. Threads must
    // meet before and after it.
    __device__ void load_up(const MergeTile &t, int row) const {
        const MergeLayer &l = *t.layer;
        const bf16 *b = (const bf16 *)l.b + t.row + row;
#pragma unroll 4
        for (int i = threadIdx.x; i < up_rows * DEPTH * 8; i += merge_threads) {
            int r = i % up_rows, kr = i / up_rows * 2;
            float x[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                MergeNumber number = numbers[kr + e];
                x[e] = number.factor * (number.row >= 0 && row + r < t.rows ? to_float(b[(long long)number.row * l.out + r]) : 0.f);
            }
            int lane = (r % 4 * 2 + r / 4 % 2) * 4 + kr % 8 / 2;
            up[((r / 16 * DEPTH + kr / 16) * 32 + lane) * 4 + r / 8 % 2 * 2 + kr / 8 % 2] = pack(x[0], x[1]);
        }
    }

    // Brings what a piece needs that those before it did not.
    __device__ void prepare(const MergeTile &t, int row) {
        if (row % up_rows != 0) return;
        __syncthreads();
        if (row == 0) {
            look_up(*t.layer);
            __syncthreads();
            load_down(t);
        }
        load_up(t, row);
        __syncthreads();
    }

    // Merges 16 rows of a tile from row `row` on, which are in shared memory from piece on.
    __device__ void merge(const MergeTile &t, int row, const unsigned char *piece) const {
        if (64 * warp >= t.columns) return;
        float d[2][4][4] = {};
        const uint4 *fragments = (const uint4 *)up + row % up_rows / 16 * DEPTH * 32 + threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < DEPTH; s++) {
            uint4 f = fragments[32 * s];
            unsigned b[2][2] = {{f.x, f.y}, {f.z, f.w}};
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma(d[half][j], down[s][j], b[half]);
        }
        bf16 *dst = (bf16 *)t.layer->dst + (long long)(t.row + row) * t.layer->width + t.column + column();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = 4 * i + quarter;
            uint4 v = *(const uint4 *)(piece + r * row_bytes + 2 * column());
            unsigned x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                x[j] = pack(__uint_as_float(x[j] << 16) + d[i / 2][j][i % 2], __uint_as_float(x[j] & 0xffff0000u) + d[i / 2][j][2 + i % 2]);
            if (row + r < t.rows && column() < t.columns) *(uint4 *)(dst + (long long)r * t.layer->width) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
};

template <int DEPTH> struct MergeRing {
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
        unsigned char *to = ring + stage * piece_bytes;
#pragma unroll
        for (int i = 0; i < piece_rows * tile_width / 8 / merge_threads; i++) {
            int r = (i * merge_threads + threadIdx.x) / (tile_width / 8), column = threadIdx.x % (tile_width / 8) * 8;
            bool valid = row + r < at.rows && column < at.columns;
            copy_async(to + r * row_bytes + 2 * column, valid ? src + (long long)r * at.layer->width + column : src, valid);
        }
        copies_commit();
        row += piece_rows;
    }

    __device__ void run() {
        if (threadIdx.x == 0) next[0] = tiles.take(c);
        for (int stage = 0; stage < stages - 1; stage++) {
            __syncthreads();
            load(stage);
        }
        MergeTile now;
        for (int stage = 0;; stage = stage + 1 == stages ? 0 : stage + 1) {
            copies_wait<stages - 2>();
            __syncthreads();
            load(stage == 0 ? stages - 1 : stage - 1);
            MergePiece piece = pieces[stage];
            if (piece.tile >= tiles.tiles) break;
            if (piece.row == 0) now = tiles[piece.tile];
            math.prepare(now, piece.row);
            math.merge(now, piece.row, ring + stage * piece_bytes);
        }
        copies_wait<0>();
    }
};

template <int DEPTH> __device__ void merge_ring(const MergeTiles &tiles, const MergeChoice &c) {
    if (c.in_force()) return;
    DYNAMIC_SHARED(unsigned char, ring);
    unsigned char *up = ring + stages * piece_bytes;
    MergePiece *pieces = (MergePiece *)(up + MergeMath<DEPTH>::bytes);
    MergeRing<DEPTH>{tiles, c, ring, pieces, (int *)(pieces + stages), {c, (unsigned *)up}}.run();
    c.done();
}

#define MERGE_RING(DEPTH, BLOCKS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(merge_threads, BLOCKS) merge_ring_##DEPTH(MergeTiles tiles, MergeChoice c) { \
        merge_ring<DEPTH>(tiles, c);                                                                                         \
    }                                                                                                                        \
    KERNEL(merge_ring_##DEPTH)
MERGE_RING(1, 2)
MERGE_RING(2, 2)
MERGE_RING(4, 1)
MERGE_RING(8, 1)
