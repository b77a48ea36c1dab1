// What stream_sm90.cu is told of a model and its schedule, as stream.go lays it out, and how its blocks talk to each other.
#pragma once
#include "hopper.cuh"

constexpr int stream_stage = 64 * 128 * 2; // bytes: 64 columns of 128 rows
constexpr int stream_step_size = 6144; // bytes for what a block remembers
constexpr int stream_sequences = 64, stream_experts = 256, stream_active = 128, stream_splits = 16;

// The linear layers of a block, as in kernels.StepLayer, and the output projection.
enum Target { stream_q_proj, stream_k_proj, stream_v_proj, stream_o_proj, stream_gate_proj, stream_up_proj, stream_down_proj, stream_targets };

// How a layer's weights are copied: those of the targets, their A and their B, keys and values.
constexpr int stream_maps = 3 * stream_targets + 2;

// Work on one target: `count` stages of 64 columns from a column on of 128 rows; or, of a group of 16 rows of A, of the experts in use, stages of 512
// columns; or what B adds to 128 rows.
enum Kind { stream_weights, stream_down, stream_up };
struct StreamRun {
    int kind, target, row, column, count;
};

// A block's work in a phase: runs, which need these columns of the activations.
struct StreamPart {
    int first_run, runs, first_column, columns;
    int slice, keeps; // which columns these are; whether this block keeps them for others
};

struct StreamTarget {
    int rows, stride;    // of the sums
    int complete;        // what a counter of 128 rows comes to
    int counter_at;      // of the first 128 rows
    int hidden_counter;  // of x·A
    int down_stages;     // what it comes to for each 16 rows of A, in stages
    long long sums_at, hidden_at;
};

struct StreamLayer {
    const float *input_norm, *post_norm, *q_norm, *k_norm, *bias[stream_targets];
    bf16 *keys, *values; // (S·P, K·d)
};

struct StreamModel {
    const TensorMap *maps; // stream_maps to a layer, and that of the output projection
    const StreamLayer *layer;
    const StreamRun *runs;
    const StreamPart *parts; // a block's, phase by phase
    const bf16 *embed;
    const float *norm, *rope;
    long long *sums;   // three slots
    long long *logits; // (S, V)
    float *stream, *between, *squares, *logit_squares, *part_scale, *part_sums;
    const int *tokens, *pos, *ids;
    const float *weights;
    int *turn, *bad;
    long long slot_size, early_size; // of a slot, and of what of it attention's output projection ends with
    int layers, width, heads, kv_heads, positions, sequences, window;
    int experts, rank, chosen, most_ranks;
    int slices;                                   // of the width
    int squares_at, squares_mlp_at, attended_at; // counters
    int stages, under_way, x_size, gated_size;
    float eps, scale, softmax_scale;
    StreamTarget target[stream_targets + 1];
};

// Sums in units of 2^-31.
__device__ inline float from_fixed(long long v) { return (float)v * 0x1p-31f; }
// Adds v. What has no such number, or none that leaves room for sums, makes the step's logits NaN.
__device__ inline void add_fixed(long long *to, float v, int *bad) {
    if (!(fabsf(v) < 0x1p29f)) {
        *bad = 1;
        return;
    }
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(__float2ll_rn(v * 0x1p31f)) : "memory");
}

__device__ inline void fence_card() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ inline void add_to(int *counter, int n) { asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(n) : "memory"); }
// Waits until a counter comes to a value, but not for ever: a step that hangs is a fault that is reported.
__device__ inline void wait_for(const int *counter, int value) {
    for (long long i = 0;; i++) {
        int n;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory");
        if (n >= value) return;
        if (i == 1ll << 26) asm volatile("trap;");
    }
}
// What other blocks wrote, past the nearest cache.
__device__ inline long long read(const long long *p) { return __ldcg(p); }
__device__ inline float read(const float *p) { return __ldcg(p); }

// copy_box for what is read once in a step.
__device__ inline void copy_box_once(void *to, const TensorMap *map, int x, int y, Barrier *full) {
    unsigned long long policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
                     shared_at(to)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_at(full)), "l"(policy)
                 : "memory");
}
