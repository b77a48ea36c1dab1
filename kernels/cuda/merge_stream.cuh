// Merge for models whose weights a card cannot read and write faster: how the streaming kernels divide the layers, and what they do with 16
// rows of src that have come to shared memory.
//
// A tile is up to 512 columns of some rows. Blocks take the next one as they come to it, so that all of them end together, and bring it to
// shared memory in pieces of 16 rows, many pieces ahead. Eight warps have 64 columns each and keep their part of A in registers for the whole
// tile, as the rows of mma's first operand; rows of the weight are the columns of the second one. So a lane has 8 columns side by side, and four
// rows of 128 bytes go to memory at once. s·weights[k]·B is rounded to bf16, which is less than what rounding dst loses unless the product is
// larger than the weight; sums are float32, and rounded once.
#pragma once
#include "merge.cuh"
#include "mma.cuh"

constexpr int stream_threads = 256, stream_rows = 16, stream_width = 512;
// Of a row in shared memory; 32 bytes more than it has spread four rows over the banks.
constexpr int stream_row_bytes = 2 * stream_width + 32, stream_piece_bytes = stream_rows * stream_row_bytes;

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
        const MergeLayer *l = merge_layer<&MergeLayer::stream_tile>(layers, count, i);
        int across = (l->width + l->stream_columns - 1) / l->stream_columns;
        i -= l->stream_tile;
        int row = i / across * rows, column = i % across * l->stream_columns;
        return {l, row, min(rows, l->out - row), column, min(l->stream_columns, l->width - column)};
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
        for (int kr = threadIdx.x; kr < 16 * DEPTH; kr += stream_threads) numbers[kr] = {c.row(l, kr), c.factor(l, kr)};
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
        for (int i = threadIdx.x; i < up_rows * DEPTH * 8; i += stream_threads) {
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

    // Brings what a piece needs that those before it did not; sync makes the threads that merge meet.
    template <class Sync> __device__ void prepare(const MergeTile &t, int row, Sync sync) {
        if (row % up_rows != 0) return;
        sync();
        if (row == 0) {
            look_up(*t.layer);
            sync();
            load_down(t);
        }
        load_up(t, row);
        sync();
    }

    // Merges 16 rows that are in shared memory from piece on, the first of which is row `row` of the tile. put(r, x) gets the 8 elements of row
    // r of the piece from column() on.
    template <class Put> __device__ void merge(const unsigned char *piece, int row, Put put) const {
        float d[2][4][4] = {};
        const uint4 *fragments = (const uint4 *)up + row % up_rows / 16 * DEPTH * 32 + threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < DEPTH; s++) {
            uint4 f = fragments[32 * s];
            unsigned b[2][2] = {{f.x, f.y}, {f.z, f.w}};
#pragma unroll
            for (int t = 0; t < 2; t++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma(d[t][j], down[s][j], b[t]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = 4 * i + quarter;
            uint4 v = *(const uint4 *)(piece + r * stream_row_bytes + 2 * column());
            unsigned x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                x[j] = pack(__uint_as_float(x[j] << 16) + d[i / 2][j][i % 2], __uint_as_float(x[j] & 0xffff0000u) + d[i / 2][j][2 + i % 2]);
            put(r, make_uint4(x[0], x[1], x[2], x[3]));
        }
    }
};
