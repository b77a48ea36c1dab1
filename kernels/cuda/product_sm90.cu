// The large products of
//
// SwitchLinear is u = z·A and y = plus + x·wᵀ + bias + s·(u ⊙ Ĝ)·B, where Ĝ = [G ⊗ 1_R | 1] (T, C).
// y (T, D_out), u (T, C), x (T, D), z (T, D): x or x after dropout, w (D_out, D), bias (D_out) or none, plus as y
// or none.
//
// SwitchGradInput is dx = plus + dy·w + du·Aᵀ. dx (T, D), dy (T, D_out), w (D_out, D), du (T, C), a (D, C) of type
// Param or Float, plus as dx or none.
//
// on Hopper's tensor cores: y = plus + x·w + h·v, where h and v are narrow.
//
// One block to a multiprocessor, in clusters of two that share what they read of w. Of a block's three warpgroups one copies panels of 64
// numbers of the depth to a ring of stages, and two multiply, each 64 rows by all of a tile's COLS columns. The depth goes through x and w first
// and then through h and v, so that what the experts add costs a stage or two and no pass over y. A tile is written by copies from shared memory
// while the next one's first stages arrive.
#include "hopper.cuh"
#include "mma.cuh"

constexpr int product_threads = 384, product_rows = 128, product_depth = 64;

struct Extent {
    int rows, cols, stride; // of y, and of plus, whose rows are stride elements apart
    int depth, more;        // the lengths of the two sums
};

// DEEP: w lies as (depth, cols) and v as (cols, more). Otherwise w lies as (cols, depth) and v as (more, cols).
template <int COLS, bool DEEP> struct Product {
    static constexpr int left_bytes = product_rows * product_depth * 2, right_bytes = COLS * product_depth * 2;
    static constexpr int stage_bytes = left_bytes + right_bytes;
    static constexpr int panel_bytes = 64 * 64 * 2, out_bytes = 4 * panel_bytes; // two panels for each of the two warpgroups
    static constexpr int fit = (226 * 1024 - out_bytes) / stage_bytes, stages = fit > 8 ? 8 : fit;

    const TensorMap *x, *w, *h, *v, *y;
    const bf16 *plus;
    Extent s;

    unsigned char *ring, *out;
    Barrier *full, *empty;
    int rank, groups, tiles; // in the cluster; of the rows, two blocks' to a group; of y
    int stage = 0;
    unsigned parity = 0;

    __device__ void run() {
        DYNAMIC_SHARED(unsigned char, memory);
        ring = memory, out = ring + stages * stage_bytes;
        full = (Barrier *)(out + out_bytes), empty = full + stages;
        rank = cluster_rank();
        groups = (s.rows + 2 * product_rows - 1) / (2 * product_rows);
        tiles = groups * ((s.cols + COLS - 1) / COLS);
        if (threadIdx.x == 0) {
            for (int i = 0; i < stages; i++) {
                barrier_init(full + i, 1);
                barrier_init(empty + i, 4); // both warpgroups of both blocks
            }
            barriers_init_done();
        }
        cluster_sync();
        int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); // the compiler then knows that a warp has but one
        if (group == 0) {
            fewer_registers<40>();
            parity = 1; // a new ring counts as read
            if (threadIdx.x == 0) each_tile([&](int row, int col) {
                load<DEEP>(x, w, row, col, s.depth);
                load<!DEEP>(h, v, row, col, s.more);
            });
        } else {
            more_registers<232>();
            int half = group - 1;
            each_tile([&](int row, int col) {
                float d[COLS / 2];
                int last = -1;
                multiply<DEEP>(d, half, s.depth, last);
                multiply<!DEEP>(d, half, s.more, last);
                finish(d, last, row + 64 * half, col);
                store(d, half, row + 64 * half, col);
            });
            if (threadIdx.x % 128 == 0) copies_out_wait<0>();
        }
        __syncwarp();
        cluster_sync(); // the other block may still be told something
    }

    // This block's tiles. Those of one panel of w are done side by side.
    template <class F> __device__ void each_tile(F f) {
        for (int i = blockIdx.x / 2; i < tiles; i += gridDim.x / 2) f((i % groups * 2 + rank) * product_rows, i / groups * COLS);
    }
    __device__ void next() {
        if (++stage == stages) stage = 0, parity ^= 1;
    }

    // Copies the stages of a depth. A block brings its own rows, and half of the right side for both.
    template <bool RIGHT_DEEP> __device__ void load(const TensorMap *left, const TensorMap *right, int row, int col, int depth) {
        for (int k = 0; k < depth; k += product_depth) {
            unsigned char *to = ring + stage * stage_bytes;
            barrier_wait(empty + stage, parity);
            barrier_arrive_expecting(full + stage, stage_bytes);
            copy_box(to, left, k, row, full + stage);
            to += left_bytes;
            if (RIGHT_DEEP) {
#pragma unroll
                for (int p = 0; p < COLS / 64; p++)
                    copy_box_to_both(to + p * panel_bytes + rank * (panel_bytes / 2), right, col + 64 * p, k + 32 * rank, full + stage);
            } else {
                copy_box_to_both(to + rank * (right_bytes / 2), right, k, col + rank * (COLS / 2), full + stage);
            }
            next();
        }
    }

    // d = the stages of a depth, + d if there was a stage before. The last one stays under way.
    template <bool RIGHT_DEEP> __device__ void multiply(float (&d)[COLS / 2], int half, int depth, int &last) {
        for (int k = 0; k < depth; k += product_depth) {
            const unsigned char *at = ring + stage * stage_bytes;
            barrier_wait(full + stage, parity);
            unsigned long long left = panel_descriptor(at + half * panel_bytes, false, 0);
            unsigned long long right = panel_descriptor(at + left_bytes, RIGHT_DEEP, panel_bytes);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < product_depth / 16; i++)
                Wgmma<COLS, RIGHT_DEEP>::run(d, left + i * depth_step<false>, right + i * depth_step<RIGHT_DEEP>, last >= 0 || i > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (last >= 0) release(last);
            last = stage;
            next();
        }
    }
    __device__ void release(int used) {
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + used, 0), barrier_arrive(empty + used, 1);
    }

    // Waits for the last stage, and adds plus, which is read meanwhile.
    __device__ void finish(float (&d)[COLS / 2], int last, int row, int col) {
        if (!plus) {
            wgmma_wait_for(d);
            release(last);
            return;
        }
        int lane = threadIdx.x % 32;
        row += threadIdx.x / 32 % 4 * 16 + lane / 4, col += lane % 4 * 2;
        unsigned p[COLS / 4];
#pragma unroll
        for (int i = 0; i < COLS / 4; i++) {
            int r = row + i % 2 * 8, c = col + i / 2 * 8;
            p[i] = r < s.rows && c < s.cols ? *(const unsigned *)(plus + (long long)r * s.stride + c) : 0;
        }
        wgmma_wait_for(d);
        release(last);
#pragma unroll
        for (int i = 0; i < COLS / 4; i++) {
            d[2 * i] += __uint_as_float(p[i] << 16);
            d[2 * i + 1] += __uint_as_float(p[i] & 0xffff0000u);
        }
    }

    // Writes 64 rows of a tile.
    __device__ void store(const float (&d)[COLS / 2], int half, int row, int col) {
        int lane = threadIdx.x % 32, r = threadIdx.x / 32 % 4 * 16 + lane % 16;
        bool leader = threadIdx.x % 128 == 0;
#pragma unroll
        for (int j = 0; j < COLS / 64; j++) {
            unsigned char *panel = out + (2 * half + j % 2) * panel_bytes;
            if (leader) { // of a tile with an odd number of panels, the last one lay where the next tile's first does
                if (j == 0 && COLS / 64 % 2 != 0)
                    copies_out_read<0>();
                else
                    copies_out_read<1>();
            }
            threads_sync(1 + half, 128);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *f = d + 32 * j + 8 * i;
                stmatrix(panel + r * 128 + (2 * i + lane / 16 ^ r & 7) * 16, pack(f[0], f[1]), pack(f[2], f[3]), pack(f[4], f[5]), pack(f[6], f[7]));
            }
            shared_for_copies();
            threads_sync(1 + half, 128);
            if (leader) copy_box_out(y, col + 64 * j, row, panel);
        }
    }
};

#define PRODUCT(NAME, COLS, DEEP)                                                                                                         \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(product_threads, 1)                                            \
        NAME##_##COLS(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap h,        \
                      const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap y, const bf16 *plus, Extent s) {              \
        Product<COLS, DEEP>{&x, &w, &h, &v, &y, plus, s}.run();                                                                           \
    }
PRODUCT(product_along, 256, false)
PRODUCT(product_along, 192, false)
PRODUCT(product_along, 128, false)
PRODUCT(product_deep, 256, true)
PRODUCT(product_deep, 192, true)
PRODUCT(product_deep, 128, true)
