// What stream_sm90.cu is told of a model and its schedule, as stream.go lays it out, and how its blocks talk to each other.
#pragma once
#include "hopper.cuh"

constexpr int stream_stage = 64 * 128 * 2; // bytes: 64 columns of 128 rows
constexpr int stream_step_size = 6144; // bytes for what a block remembers
constexpr int stream_sequences = 64, stream_experts = 256, stream_active = 128, stream_choices = 128, stream_splits = 16, stream_local_ranks = 32;

// The linear layers of a block, as in kernels.StepLayer, and the output projection.
enum Target { stream_q_proj, stream_k_proj, stream_v_proj, stream_o_proj, stream_gate_proj, stream_up_proj, stream_down_proj, stream_targets };

// A number that a block tells others, with a mark of when.
struct alignas(8) Said {
    float number;
    int when;
};
struct alignas(16) Said2 {
    Said a, b;
};
// How a layer's weights are copied: those of the targets, their A and their B, keys and values.
constexpr int stream_maps = 3 * stream_targets + 2;

// Work on one target: `count` stages of 64 columns from a column on of 128 rows, and what B adds to them if it is this run that does; or of a group of
// 16 rows of A, of the experts in use; or of 128 rows and of all that A and B make of these columns.
enum Kind { stream_weights, stream_weights_and_up, stream_down, stream_weights_and_experts };
struct StreamRun {
    int kind, target, row, column, count;
};

// A block's work on a slice of the columns in a phase: runs, which need these columns of the activations. Of one block for each slice of the residual
// stream what it makes of them is kept for all.
struct StreamPart {
    int first_run, runs, first_column, columns;
    int keep_slice; // -1: none
};

constexpr int stream_phases = 5;

// A block's work. The parts of a block follow each other, and so do their runs.
struct StreamBlock {
    int first_part[stream_phases + 1]; // of each phase, and the end of the last
    int clear, clearers;               // of the blocks that clear sums, which one this is; 0 of 0: none
    int share, sharers;                // the same of those that have weights of a layer, which share the work of making activations
};

struct StreamTarget {
    int rows, stride;  // of the sums
    int panel;         // where the numbers of additions to each of its 128 rows are
    int hidden_adds;   // the additions to x·A
    int place, unused; // among the targets of its phase
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
    const StreamPart *parts;
    const StreamBlock *blocks;
    const bf16 *embed;
    const float *norm, *rope;
    long long *sums;   // three slots
    long long *logits; // (S, V)
    Said *squares, *squares_mlp, *logit_squares, *part_scale, *part_sums;
    const int *adds; // to each row of a panel, panel by panel; one of them may be the residual stream's
    const int *tokens, *pos, *ids;
    const float *weights;
    int *turn, *bad;
    long long x_at[stream_phases];   // where in a slot what a phase multiplies with is, if blocks share the work of making it
    long long slot_size, early_size; // of a slot, and of what of it attention's output projection ends with
    int layers, width, heads, kv_heads, group, positions, sequences, window;
    int experts, rank, chosen, most_ranks, adapted; // adapted: a bit for each target
    int slices, slice_width; // of the width; the columns of one if blocks share the work
    int squares_of_one;      // sums of squares that others are told of a sequence's residual stream
    int down_box, up_box;    // rows that are copied at a time of A and of B
    int panels;              // of all targets
    int stages, under_way, under_way_filling, x_size, gated_size, parts_of_block, items_of_block; // at most
    float eps, scale, softmax_scale;
    StreamTarget target[stream_targets + 1];
};

// The first position that a token at pos sees.
__device__ inline int first_seen(const StreamModel &m, int pos) { return m.window > 0 ? max(0, pos - m.window + 1) : 0; }

// A sum is a number of units of 2^-27 in the lower 54 bits and, above them, how many numbers have been added. So whoever reads it sees whether it
// is complete, and nobody must wait for writes to arrive before he tells others of them.
constexpr int sum_bits = 54;
constexpr long long one_addition = 1ll << sum_bits;

__device__ inline int additions(long long v) { return (int)((v + (one_addition >> 1)) >> sum_bits); }
__device__ inline float sum_of(long long v, int n) { return (float)(v - n * one_addition) * 0x1p-27f; }

// Adds to a number that other blocks add to, too; reads and writes those that they are writing and reading.
#ifdef EMULATED
inline void add_relaxed(long long *to, long long v) { __atomic_fetch_add(to, v, __ATOMIC_RELAXED); }
inline long long glance(const long long *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline longlong2 glance(const longlong2 *p) { return {glance(&p->x), glance(&p->y)}; }
inline void store_relaxed(void *p, long long v) { __atomic_store_n((long long *)p, v, __ATOMIC_RELAXED); }
inline unsigned glance(const unsigned *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline uint4 glance(const uint4 *p) { return {glance(&p->x), glance(&p->y), glance(&p->z), glance(&p->w)}; }
inline void store_word(unsigned *p, unsigned v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
inline void fence_card() { __threadfence(); }
inline void prefetch_map(const TensorMap *) {}
inline void copy_box_once(void *to, const TensorMap *map, int x, int y, Barrier *full) { copy_box(to, map, x, y, full); }
inline void ldmatrix(unsigned (&r)[4], unsigned at) { emulated_ldmatrix(r, emulated_thread->shared + at, false); }
inline unsigned transpose(unsigned x) {
    int lane = threadIdx.x % 32, from = lane % 4 * 8 + lane / 8, half = lane / 4 % 2 * 16;
    unsigned low = __shfl_sync(0xffffffffu, x, from), high = __shfl_sync(0xffffffffu, x, from + 4);
    return low >> half & 0xffff | (high >> half & 0xffff) << 16;
}
inline void look_again() { emulated_yield(); }
inline void give_up() { __trap(); }
#else
__device__ inline void add_relaxed(long long *to, long long v) {
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
}
__device__ inline long long glance(const long long *p) {
    long long v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}
__device__ inline longlong2 glance(const longlong2 *p) {
    longlong2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p) : "memory");
    return v;
}
__device__ inline void store_relaxed(void *p, long long v) { asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
__device__ inline uint4 glance(const uint4 *p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ inline void store_word(unsigned *p, unsigned v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
__device__ inline void fence_card() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ inline void prefetch_map(const TensorMap *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// copy_box for what is read once in a step.
__device__ inline void copy_box_once(void *to, const TensorMap *map, int x, int y, Barrier *full) {
    unsigned long long policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
                     shared_at(to)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_at(full)), "l"(policy)
                 : "memory");
}
// Four matrices of 8 x 8 bf16 as mma.cuh's ldmatrix, at addresses of shared memory.
__device__ inline void ldmatrix(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
// An 8 x 8 matrix of bf16, of which a lane has two of row lane / 4, the other way round.
__device__ inline unsigned transpose(unsigned x) {
    unsigned y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
// Between one look and the next at what is not there yet.
__device__ inline void look_again() {}
__device__ inline void give_up() { asm volatile("trap;"); }
#endif

// Adds v, or nothing and says so if it leaves no room for other sums, which makes the logits of this step and of all that follow NaN.
__device__ inline bool add_to_sum(long long *to, float v) {
    bool bad = !(fabsf(v) < 0x1p17f);
    add_relaxed(to, one_addition + __float2ll_rn(bad ? 0.f : v * 0x1p27f));
    return bad;
}

__device__ inline Said said_of(long long v) { return {__uint_as_float((unsigned)v), (int)(v >> 32)}; }
__device__ inline Said glance(const Said *p) { return said_of(glance((const long long *)p)); }
__device__ inline Said2 glance(const Said2 *p) {
    longlong2 v = glance((const longlong2 *)p);
    return {said_of(v.x), said_of(v.y)};
}
__device__ inline void say(Said *p, float number, int when) {
    store_relaxed(p, (long long)((unsigned long long)__float_as_uint(number) | (unsigned long long)(unsigned)when << 32));
}

// Whether a mark is `when` or one of the others of so many layers.
__device__ inline bool since(int mark, int when, int layers) { return (unsigned)(mark - when) < (unsigned)layers; }

// Counts glances in vain: a step that hangs is a fault that is reported.
struct Patience {
    int left = 1 << 24;
    __device__ void wait() {
        if (--left == 0) give_up();
        look_again();
    }
};
