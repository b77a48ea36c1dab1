// What the warps of a block of stream_sm90.cu know of a decoding step.
#pragma once
#include "hopper.cuh"
#include "stream.cuh"

// Eight warps multiply; of the four behind them, one copies, one clears and one finds norms' factors. There are four because registers are dealt to
// warps by fours.
constexpr int stream_warps = 8, stream_workers = 32 * stream_warps, stream_threads = stream_workers + 128;
// Registers of a thread that multiplies and of the others. With 56, the copying warp read pointers from memory for each stage.
template <int SEQUENCES> constexpr int stream_registers = SEQUENCES > 16 ? 216 : 208;
template <int SEQUENCES> constexpr int stream_other_registers = SEQUENCES > 16 ? 72 : 88;

// Barriers: where the warps that multiply meet, all of them and each four, and where they tell the warp that finds norms' factors that they have used
// those of a layer.
enum { stream_meet = 1, stream_meet_four, stream_used = stream_meet_four + 2 };

enum Phase { into_attention, out_of_attention, into_mlp, out_of_mlp, into_logits };
__device__ inline int phase_of(int target) {
    return target <= stream_v_proj ? into_attention : target == stream_o_proj ? out_of_attention : target <= stream_up_proj ? into_mlp
           : target == stream_down_proj ? out_of_mlp : into_logits;
}

// Attention's work: a sequence's key-value head and some blocks of 64 keys, one of `splits` shares of its keys.
struct StreamItem {
    short s, head, split, last; // whether it is the share with the token's own key
    int from, to;
};
// What the two fours of warps that multiply attend to at a time: an item each or, if there is but one left, its blocks in turn.
struct StreamShares {
    const StreamItem *items;
    bool two; // whether there are two items

    __device__ StreamShares(const StreamItem *items, int left) : items(items), two(left > 1) {}
    __device__ const StreamItem &item(int four) const { return items[two ? four : 0]; }
    // The block of keys of a four in a round, and whether there is one.
    __device__ int block(int four, int round) const { return item(four).from + (two ? round : 2 * round + four); }
    __device__ bool has(int four, int round) const { return block(four, round) < item(four).to; }
    __device__ int rounds() const {
        int a = items[0].to - items[0].from;
        return two ? max(a, items[1].to - items[1].from) : (a + 1) / 2;
    }
};
// Eight rows of the experts in use: whose they are, and where among those of all experts.
struct StreamEight {
    int expert, row;
};

// What a block remembers of the step, in shared memory.
struct StreamStep {
    StreamBlock block;
    int pos[stream_sequences], splits[stream_sequences], items[stream_sequences + 1];
    unsigned long long live; // a bit for each sequence that is decoded
    int top, active;         // sequences up to the last that is decoded; experts in use
    unsigned per_top;        // 2^32 / top, rounded up
    int mine;                // this block's items
    int turn;
    unsigned filling; // see fills
    int expert[stream_active];
    int ids[stream_choices];
    float weights[stream_choices];
    float rstd[2][2][stream_sequences]; // before attention and before the MLP, of layers with an even number and with an odd one
    StreamLayer layer[2];               // that of an even number and that of an odd one
};

// Pointers are to shared memory. Parts and runs are by their number among those of all blocks.
struct StreamShared {
    StreamStep &step;
    unsigned char *ring;
    Barrier *full, *empty, *cleared, *normed; // normed: before attention and before the MLP
    bf16 *x, *gated;
    const StreamPart *parts;
    const StreamRun *runs;
    const int *added;
    const StreamItem *items;
    const StreamEight *eights;
};

struct StreamWarp : StreamShared {
    const StreamModel &m;
    int warp, lane;
    int stage = 0; // of the ring, that comes next
    unsigned parity = 0;

    __device__ StreamWarp(const StreamShared &shared, const StreamModel &m) : StreamShared(shared), m(m), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}

    __device__ void next() {
        if (++stage == m.stages) stage = 0, parity ^= 1;
    }
    // Where the sums of a layer are.
    __device__ long long *slot(int layer) const {
        int turn = (step.turn + layer + 3) % 3;
        return m.sums + turn * m.slot_size;
    }
    // What marks numbers said in a layer.
    __device__ int when(int layer) const { return step.turn + layer + 1; }
    // The additions to the rows of a target from row d on, which are those of its panel.
    __device__ int adds(const StreamTarget &t, int d) const { return added[t.panel + d / 128]; }
    // A sum of n numbers, when it has them.
    __device__ float complete(const long long *sum, int n) const {
        Patience patience;
        for (;;) {
            long long v = glance(sum);
            if (additions(v) == n) return sum_of(v, n);
            patience.wait();
        }
    }
};

// What all blocks find out alike before the step: which sequences there are, how their keys are divided, which experts they use; and what this one has
// to do. parts, runs, items and eights are where it goes.
__device__ inline void stream_begin(const StreamModel &m, StreamStep &step, StreamPart *parts, StreamRun *runs, StreamItem *items, StreamEight *eights) {
    __shared__ unsigned used[stream_experts / 32];
    if (threadIdx.x == 0) step.block = m.blocks[blockIdx.x];
#pragma unroll 1
    for (int i = threadIdx.x; i < stream_experts / 32; i += stream_threads) used[i] = 0;
#pragma unroll 1
    for (int s = threadIdx.x; s < m.sequences; s += stream_threads) step.pos[s] = m.pos[s];
    __syncthreads();
    int first = step.block.first_part[0], n = step.block.first_part[stream_phases] - first;
#pragma unroll 1
    for (int i = threadIdx.x; i < n * (int)sizeof(StreamPart) / 4; i += stream_threads) ((int *)parts)[i] = ((const int *)(m.parts + first))[i];
    __syncthreads();
    if (n > 0) {
        int before = parts[0].first_run, end = parts[n - 1].first_run + parts[n - 1].runs;
#pragma unroll 1
        for (int i = threadIdx.x; i < (end - before) * (int)sizeof(StreamRun) / 4; i += stream_threads) ((int *)runs)[i] = ((const int *)(m.runs + before))[i];
    }
    if (threadIdx.x == 0) {
        int live = 0;
        step.live = 0, step.top = 0, step.turn = *m.turn, step.filling = 0;
#pragma unroll 1
        for (int s = 0; s < m.sequences; s++)
            if (step.pos[s] >= 0) live++, step.top = s + 1, step.live |= 1ull << s;
        step.per_top = 0xffffffffu / max(1, step.top) + 1;
        // So many parts of the keys of a sequence's head that all blocks have something to do.
        int wanted = min(stream_splits, max(1, (int)gridDim.x / max(1, live * m.kv_heads)));
        step.items[0] = 0;
#pragma unroll 1
        for (int s = 0; s < step.top; s++) {
            int pos = step.pos[s], blocks = pos < 0 ? 0 : (pos + 63) / 64 - first_seen(m, pos) / 64;
            step.splits[s] = pos < 0 ? 0 : max(1, min(wanted, blocks));
            step.items[s + 1] = step.items[s] + step.splits[s] * m.kv_heads;
        }
        step.mine = max(0, (step.items[step.top] - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x);
    }
    if (m.chosen > 0)
#pragma unroll 1
        for (int i = threadIdx.x; i < m.sequences * m.chosen; i += stream_threads) {
            int e = step.ids[i] = m.ids[i];
            step.weights[i] = m.weights[i];
            if (step.pos[i / m.chosen] >= 0 && e >= 0 && e < m.experts) atomicOr(&used[e / 32], 1u << e % 32);
        }
    __syncthreads();
    if (threadIdx.x == 0) {
        int n = 0;
#pragma unroll 1
        for (int e = 0; e < m.experts; e++)
            if (used[e / 32] >> e % 32 & 1) step.expert[n++] = e;
        step.active = n;
    }
#pragma unroll 1
    for (int i = threadIdx.x, s = 0; i < step.mine; i += stream_threads) {
        int of = blockIdx.x + i * gridDim.x;
        while (of >= step.items[s + 1]) s++;
        of -= step.items[s];
        int pos = step.pos[s], splits = step.splits[s], split = of % splits, from = first_seen(m, pos) / 64, blocks = (pos + 63) / 64 - from;
        items[i] = {(short)s, (short)(of / splits), (short)split, split == splits - 1, from + blocks * split / splits, from + blocks * (split + 1) / splits};
    }
    if (m.chosen == 0) return;
    __syncthreads();
    // Behind the last there is another time the last, for rows are multiplied by sixteens.
    int each = m.rank / 8, last = step.active * each - 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < m.most_ranks / 8 && last >= 0; i += stream_threads) {
        int k = min(i, last), e = step.expert[k / each];
        eights[i] = {e, e * m.rank + k % each * 8};
    }
}
