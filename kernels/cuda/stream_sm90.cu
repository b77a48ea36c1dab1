// Run is logits[s] of the token that follows tokens[s], at position pos[s] of sequence s, and appends its keys and values to the cache: one
// decoding step of a whole model. Sequences with pos[s] < 0 are skipped, their logits are left as they are. In every linear layer that has
// experts, those of ids[s] are added with weights[s], as Experts does. logits (S, V) of type Param, tokens, pos (S) i32, ids (S, n) i32,
// weights (S, n); ids and weights none if the model has no experts.
//
// On Hopper, as one kernel whose blocks stay for the whole step, one to a multiprocessor. One warp of a block copies the weights that the schedule
// (stream_plan.go) gives to the block, layer after layer, to a ring in shared memory, and waits for nothing but room and its own copies. Eight others
// multiply what has come with the activations of up to SEQUENCES sequences. Activations go from block to block through memory: products are added up
// as integers, so that their order does not matter and a step repeats bit for bit, and a sum says itself whether it is complete (stream.cuh). What is
// added to must be zero: there are three slots for the sums of a layer, of which one more warp clears those that are not in use.
//
// A norm's factor is a number for a sequence, and all between two norms is linear: it is applied where a sum is read, so that no block needs a whole row.
//
// stream.cuh            what the host tells the kernel, and how blocks talk to each other
// stream_block.cuh      what the warps of a block know
// stream_others.cuh     the warps that copy, clear and find norms' factors
// stream_fill.cuh       what a phase multiplies with: a sequence alone makes it in each block, of several blocks share the work
// stream_attention.cuh  attention
// and here the products.
//
// Why no more than three slots are needed: a sum of a layer's last projection is complete only if all blocks have read all that they need of the
// layer's projections into the MLP, and so have added all their products of earlier phases. Who reads a slot must know that it has been cleared, see
// wait_for. Blocks that nobody waits for, which have nothing to do in a phase or in a step, may find others to be layers ahead.
#include "stream_attention.cuh"
#include "stream_others.cuh"

// The warps that multiply. LOCAL: whether runs have all of their experts.
template <int SEQUENCES, int DIM, bool LOCAL> struct Stream : StreamAttention<(SEQUENCES > 1), DIM> {
    static constexpr int TILES = (SEQUENCES + 7) / 8, columns = 8 * TILES;

    using Attention = StreamAttention<(SEQUENCES > 1), DIM>;
    using Attention::fill, Attention::meet, Attention::read_words, Attention::shared;
    using StreamWarp::cleared, StreamWarp::complete, StreamWarp::eights, StreamWarp::empty, StreamWarp::full, StreamWarp::gated, StreamWarp::lane;
    using StreamWarp::m, StreamWarp::next, StreamWarp::normed, StreamWarp::parity, StreamWarp::parts, StreamWarp::ring, StreamWarp::runs, StreamWarp::slot;
    using StreamWarp::stage, StreamWarp::step, StreamWarp::warp, StreamWarp::x;

    // Where this thread begins to read its warp's 16 rows in a stage, and of x in shared memory, of rows stride apart, for ldmatrix. Chunks
    // of 16 bytes lie swapped by their row; two chunks further is one bit of the address.
    __device__ unsigned rows_at() const {
        int r = lane % 8 + lane / 8 % 2 * 8;
        return warp * 2048 + r * 128 + (lane / 16 ^ r & 7) * 16;
    }
    __device__ unsigned columns_at(int stride) const { return shared_at(x) + ((lane % 8) * stride + lane / 8 * 8) * 2; }

    // 16 rows and 64 columns of weights, as tensor cores take them.
    using Tile = unsigned[4][4];
    Tile held; // see hold
    __device__ static void load_rows(Tile &a, unsigned rows) {
#pragma unroll
        for (int i = 0; i < 4; i++) ldmatrix(a[i], rows ^ 32 * i);
    }
    // d += a times 64 columns at `columns`, for each eight sequences. Two sums for each, so that products do not wait for each other.
    __device__ static void multiply(float (&d)[2][TILES][4], const Tile &a, unsigned columns, int stride) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            unsigned b[2][4];
            ldmatrix(b[0], columns + 16 * t * stride);
            ldmatrix(b[1], columns + 16 * t * stride + 64);
#pragma unroll
            for (int i = 0; i < 4; i++) mma(d[i % 2][t], a[i], b[i / 2] + i % 2 * 2);
        }
    }
    // The same of the 16 rows at `rows`.
    __device__ static void multiply(float (&d)[2][TILES][4], unsigned rows, unsigned columns, int stride) {
        Tile a;
        load_rows(a, rows);
        multiply(d, a, columns, stride);
    }
    // d += this warp's rows of `count` stages times the columns of x from k on; the first is in `held` if this holds.
    __device__ void multiply_stages(float (&d)[2][TILES][4], int count, int k, int stride, bool holds) {
        unsigned rows = shared_at(ring) + rows_at(), columns = columns_at(stride) + 2 * k;
        if (holds) multiply(d, held, columns, stride), count--, columns += 128;
#pragma unroll 1
        for (; count > 0; count--, columns += 128) {
            barrier_wait(full + stage, parity);
            multiply(d, rows + stage * stream_stage, columns, stride);
            release();
        }
    }
    // The same of 16 rows of A: each warp has the columns of every eighth 64, of `count` in all.
    __device__ void multiply_down(float (&d)[2][TILES][4], int count, int k, int stride) {
        unsigned rows = shared_at(ring) + rows_at(), columns = columns_at(stride) + 2 * (k + 64 * warp);
#pragma unroll 1
        for (int left = count - warp; left + warp > 0; left -= stream_warps, columns += 128 * stream_warps) {
            barrier_wait(full + stage, parity);
            if (left > 0) multiply(d, rows + stage * stream_stage, columns, stride);
            release();
        }
    }

    // Adds 16 rows from `row` on, of which there are rows, to sums whose sequences are stride apart.
    __device__ void add(const float (&d)[TILES][4], long long *sums, int row, int rows, int stride) const {
        sums += row + lane / 4 + (long long)(lane % 4 * 2) * stride;
        bool overflow = false;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (shared && 8 * t >= step.top) break;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int s = 8 * t + lane % 4 * 2 + i % 2;
                if ((shared ? step.live >> s & 1 : s == 0) && row + lane / 4 + i / 2 * 8 < rows)
                    overflow |= add_to_sum(sums + (long long)(8 * t + i % 2) * stride + i / 2 * 8, d[t][i]);
            }
        }
        if (overflow) *m.bad = 1;
    }

    // The runs of a part. ready is the targets of the phase whose hidden numbers are in `gated`.
    __device__ void run_all(const StreamPart &part, long long *sums, unsigned &ready) {
        int stride = shared ? part.columns + 8 : 0, ranks = step.active * m.rank; // a sequence alone is all columns
#pragma unroll 1
        for (int i = 0; i < part.runs; i++) {
            const StreamRun r = runs[part.first_run + i];
            const StreamTarget &t = m.target[r.target];
            bool down = !LOCAL && r.kind == stream_down;
            if (down && 16 * r.row >= ranks) continue;
            float both[2][TILES][4] = {};
            if (down)
                multiply_down(both, r.count, r.column - part.first_column, stride);
            else
                multiply_stages(both, r.count, r.column - part.first_column, stride, !shared && i == 0);
            float(&d)[TILES][4] = both[0];
#pragma unroll
            for (int i = 0; i < 4 * TILES; i++) d[i / 4][i % 4] += both[1][i / 4][i % 4];
            if constexpr (LOCAL)
                if (r.kind == stream_weights_and_experts) multiply_experts(d[0], r.count, r.column - part.first_column, ranks);
            if (!LOCAL && r.kind == stream_weights_and_up) {
                if (!(ready >> r.target & 1)) gate(t, sums);
                ready |= 1 << r.target;
#pragma unroll 1
                for (int k = 0; k < ranks; k += 64) {
                    barrier_wait(full + stage, parity);
                    multiply_up(d, ring + stage * stream_stage, gated_of(t.place), k, min(4, (ranks - k + 15) / 16));
                    release();
                }
            }
            if (down && warp >= r.count) continue; // it has none of these columns
            int row = down ? 16 * r.row : r.row + 16 * warp;
            add(d, sums + (down ? t.hidden_at : t.sums_at), row, down ? ranks : t.rows, down ? m.most_ranks : t.stride);
        }
    }
    // A sequence alone takes this warp's rows of a part's first stage to registers before it waits for what they are multiplied with, if it is of weights.
    __device__ void hold(const StreamPart &part) {
        if (!LOCAL && runs[part.first_run].kind == stream_down) return;
        barrier_wait(full + stage, parity);
        load_rows(held, shared_at(ring) + rows_at() + stage * stream_stage);
        release();
    }
    __device__ void release() {
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + stage);
        next();
    }

    // What the experts in use add to this warp's rows, of a sequence alone: what A makes of the columns of a run is gated and multiplied with B by itself,
    // since all of it is linear.
    __device__ void multiply_experts(float (&d)[4], int count, int k, int ranks) {
        constexpr int most = stream_local_ranks / 16;
        float h[most][2][TILES][4] = {};
        unsigned b[most][4], rows = shared_at(ring) + rows_at() - warp * 2048; // all warps have the same
        if (ranks == 0) return;
#pragma unroll
        for (int q = 0; q < most; q++) {
            if (16 * q >= ranks) break;
            unsigned columns = columns_at(0) + 2 * k;
#pragma unroll 1
            for (int left = count; left > 0; left -= stream_warps) {
                barrier_wait(full + stage, parity);
#pragma unroll 1
                for (int j = 0; j < min(left, stream_warps); j++, columns += 128) multiply(h[q], rows + stage * stream_stage + j * 2048, columns, 0);
                release();
            }
        }
        barrier_wait(full + stage, parity);
#pragma unroll
        for (int q = 0; q < most; q++)
            if (16 * q < ranks) up_of(b[q], ring + stage * stream_stage, q);
        release();
#pragma unroll
        for (int q = 0; q < most; q++) {
            if (16 * q >= ranks) break;
            unsigned hidden[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float *x = h[q][0][0] + 2 * i, *y = h[q][1][0] + 2 * i;
                hidden[i] = transpose(pack(gates[q][i] * (x[0] + y[0]), gates[q][i] * (x[1] + y[1])));
            }
            mma(d, b[q], hidden);
        }
    }
    float gates[stream_local_ranks / 16][2]; // of the rows of the experts in use of which a lane has hidden numbers, of a sequence alone

    // The hidden numbers of a phase's targets as right sides for multiply_up.
    __device__ bf16 *gated_of(int place) const { return gated + place * columns * (m.most_ranks + 8); }

    // s·weights[s, k] of the expert of a row of those in use.
    __device__ float gate_of(int s, int row) const {
        if (s >= step.top || step.pos[s] < 0) return 0;
        int e = eights[row / 8].expert;
        float g = 0;
#pragma unroll 1
        for (int j = 0; j < m.chosen; j++)
            if (step.ids[s * m.chosen + j] == e) g += step.weights[s * m.chosen + j];
        return m.scale * g;
    }
    // A target's right sides: the experts' hidden numbers, once all blocks' parts of them are there, times their gates. What columns behind the last
    // sequence hold does not matter: nobody adds what comes of them.
    __device__ void gate(const StreamTarget &t, const long long *sums) const {
        bf16 *to = gated_of(t.place);
        int ranks = step.active * m.rank, rows = (ranks + 15) / 16 * 16, parts = (rows + 31) / 32;
#pragma unroll 1
        for (int i = warp; i < step.top * parts; i += stream_warps) {
            int s = i / parts, k = (i - s * parts) * 32 + lane;
            const long long *from = sums + t.hidden_at + (long long)s * m.most_ranks + k;
            bool any = k < ranks && step.live >> s & 1;
            if (k < rows) to[s * (m.most_ranks + 8) + k] = to_bf16(any ? gate_of(s, k) * complete(from, t.hidden_adds) : 0.f);
        }
        meet();
    }
    // This warp's 16 rows of B's 16 columns i of a stage of them.
    __device__ void up_of(unsigned (&a)[4], const unsigned char *at, int i) const {
        int chunk = 2 * (warp % 4) + lane / 8 % 2, r = lane % 8;
        ldmatrix_transposed(a, at + warp / 4 * 8192 + (2 * i + lane / 16) * 1024 + r * 128 + (chunk ^ r) * 16);
    }
    __device__ void multiply_up(float (&d)[TILES][4], const unsigned char *at, const bf16 *hidden, int k, int steps) const {
        int stride = m.most_ranks + 8;
        for (int i = 0; i < steps; i++) {
            unsigned a[4];
            up_of(a, at, i);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const bf16 *from = hidden + (8 * t + lane / 4) * stride + k + 16 * i + lane % 4 * 2;
                unsigned b[2] = {*(const unsigned *)from, *(const unsigned *)(from + 8)};
                mma(d[t], a, b);
            }
        }
    }

    // Waits until the layer before one is over, which who says the first squares before its attention has seen. Then all sums and words of a slot that are
    // used now have been cleared since they were used last: whoever is to clear them does it before he adds his products into the MLP. Others may be
    // at a later layer by now, for nobody need wait for this block yet.
    __device__ void wait_for(int layer) const {
        Patience patience;
        if (lane == 0)
            while (!since(glance(m.squares + step.top - 1).when, this->when(layer), m.layers - layer)) patience.wait();
        __syncwarp();
    }
    // The same of the last layer, for a block that has nothing to do in any.
    __device__ void wait_for_last() const {
        Patience patience;
        if (lane == 0)
            while (glance(m.squares_mlp + step.top - 1).when != this->when(m.layers - 1)) patience.wait();
        __syncwarp();
    }
    // Whether a part has something to do in this step: parts of A alone may be of experts that are not in use.
    __device__ bool used(const StreamPart &part) const {
        const StreamRun *first = runs + part.first_run;
        return LOCAL || first[part.runs - 1].kind != stream_down || 16 * first->row < step.active * m.rank;
    }

    // One loop over all phases: the code of a step must stay in the cache for instructions. known is the layer of which this block knows that the one before
    // it is over. It knows if it has seen the residual stream before the layer; a sequence alone, if it has seen anything of the layer but the MLP's sums.
    // For the logits it is enough that the last layer but one is over.
    __device__ void multiply_all() {
        keep_layer(0, of_layer(0));
        if constexpr (LOCAL)
#pragma unroll
            for (int i = 0; i < stream_local_ranks / 8; i++) {
                int row = 8 * i + lane / 4;
                gates[i / 2][i % 2] = row < step.active * m.rank ? gate_of(0, row) : 0.f;
            }
        meet();
        int known = 0;
#pragma unroll 1
        for (int i = 0; i <= 4 * m.layers; i++) {
            int l = i / 4, phase = i == 4 * m.layers ? into_logits : i % 4;
            int first = step.block.first_part[phase], end = step.block.first_part[phase + 1];
            unsigned ready = 0;
            if constexpr (shared) {
                if (phase == into_attention) meet(); // the layer has been fetched
                if (step.block.sharers) {
                    fills(true);
                    bool seen = fill(phase, l, {});
                    // One warp is enough: all meet before they use it.
                    if (phase == into_attention && l > 0 && warp == stream_warps - 1 && !seen) wait_for(l);
                    if (phase == into_attention || phase == into_logits) known = l;
                }
            }
            if (phase == into_logits && !step.block.sharers) wait_for_last(), known = l;
#pragma unroll 1
            for (int k = first; k < end; k++) {
                const StreamPart part = parts[k];
                if (!used(part)) continue;
                if (known != l && (shared || phase == out_of_mlp)) wait_for(l);
                known = l;
                // Those who see these sums may use what this block has cleared.
                if (phase == into_mlp && step.block.clearers) barrier_wait(cleared, l & 1);
                if constexpr (!shared) hold(part);
                meet(); // x is free
                if constexpr (shared)
                    read_words(phase, l, part);
                else
                    fill(phase, l, part);
                meet();
                fills(false);
                run_all(part, phase == into_logits ? m.logits : slot(l), ready);
            }
            fills(false);
            if (phase != into_attention) continue;
            long long next = l + 1 < m.layers ? of_layer(l + 1) : 0; // comes meanwhile
            this->attend(l);
            if (threadIdx.x == 0) {
                barrier_wait(normed, l & 1);
                if (l > 0) barrier_wait(normed + 1, (l - 1) & 1);
            }
            __syncwarp();
            meet(); // nobody uses the layer before any more
            threads_arrive(stream_used, stream_workers + 32); // nor the factors of its MLP and of this layer's attention
            keep_layer(l + 1, next);
        }
    }
    // Tells the copying warp whether this block waits for what others tell.
    __device__ void fills(bool yes) const {
        if (shared && threadIdx.x == 0) atomicExch(&step.filling, (unsigned)yes);
    }
    // A thread's share of a layer, and where it goes.
    static_assert(sizeof(StreamLayer) <= 8 * stream_workers);
    __device__ long long of_layer(int l) const { return threadIdx.x < sizeof(StreamLayer) / 8 ? ((const long long *)(m.layer + l))[threadIdx.x] : 0; }
    __device__ void keep_layer(int l, long long share) const {
        if (threadIdx.x < sizeof(StreamLayer) / 8) ((long long *)&step.layer[l & 1])[threadIdx.x] = share;
    }
};

template <int SEQUENCES, int DIM, bool LOCAL> __device__ void stream(const StreamModel &m) {
    DYNAMIC_SHARED(unsigned char, memory);
    unsigned char *end = memory + m.stages * stream_stage;
    bf16 *x = (bf16 *)end, *gated = (bf16 *)(end += m.x_size);
    StreamStep &step = *(StreamStep *)(end += m.gated_size);
    static_assert(sizeof(StreamStep) <= stream_step_size);
    StreamItem *items = (StreamItem *)(end += stream_step_size);
    Barrier *full = (Barrier *)(items + m.items_of_block), *empty = full + m.stages, *cleared = empty + m.stages, *normed = cleared + 1;
    StreamEight *eights = (StreamEight *)(normed + 2);
    int *added = (int *)(eights + m.most_ranks / 8);
    StreamPart *parts = (StreamPart *)(added + m.panels);
    StreamRun *runs = (StreamRun *)(parts + m.parts_of_block);
#pragma unroll 1
    for (int i = threadIdx.x; i < m.panels; i += stream_threads) added[i] = m.adds[i];
    stream_begin(m, step, parts, runs, items, eights);
    if (threadIdx.x == 0) {
        int norming = max(1, min(32, step.top)); // lanes that find factors
        barrier_init(cleared, 1), barrier_init(normed, norming), barrier_init(normed + 1, norming);
#pragma unroll 1
        for (int i = 0; i < m.stages; i++) barrier_init(full + i, 1), barrier_init(empty + i, stream_warps);
        barriers_init_done();
    }
    __syncthreads();
    if (step.top == 0) return;
    StreamWarp me({step, memory, full, empty, cleared, normed, x, gated, parts - step.block.first_part[0], runs - parts[0].first_run, added, items, eights}, m);
    if (me.warp < stream_warps) {
        more_registers<stream_registers<SEQUENCES>>();
        Stream<SEQUENCES, DIM, LOCAL>{me}.multiply_all();
        return;
    }
    fewer_registers<stream_other_registers<SEQUENCES>>();
    if (me.warp == stream_warps) StreamCopier<DIM, (SEQUENCES > 1)>{me}.copy_all();
    if (me.warp == stream_warps + 1) StreamClearer{me}.clear_all();
    if (me.warp == stream_warps + 2) StreamNormer<(SEQUENCES > 1)>{me}.norm_all();
}

#define STREAM(NAME, SEQUENCES, DIM, LOCAL)                                                                                        \
    extern "C" __global__ void __launch_bounds__(stream_threads, 1) stream_##NAME##_##DIM(const __grid_constant__ StreamModel m) { \
        stream<SEQUENCES, DIM, LOCAL>(m);                                                                                          \
    }                                                                                                                              \
    KERNEL(stream_##NAME##_##DIM)
#define STREAMS(DIM) STREAM(local, 1, DIM, true) STREAM(1, 1, DIM, false) STREAM(8, 8, DIM, false) STREAM(16, 16, DIM, false) STREAM(64, 64, DIM, false)
STREAMS(64)
STREAMS(128)

// logits = the sums, times the last norm's factor; the sums are cleared for the next step, but those of skipped sequences, to which nothing was added,
// and the slots take a turn. A row of blocks to a sequence.
extern "C" __global__ void stream_logits(float *logits, long long *sums, const Said *squares, const int *pos, int *turn, const int *bad, int vocab,
                                         int width, int squares_of_one, int layers, float eps) {
    if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0) {
        bool any = false;
        for (int s = 0; s < (int)gridDim.y; s++) any |= pos[s] >= 0;
        if (any) *turn = (*turn + layers) % (3 << 28); // of three slots, so that it may begin again
    }
    int s = blockIdx.y, i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (pos[s] < 0 || i >= vocab) return;
    float sum = 0;
#pragma unroll 8
    for (int j = 0; j < squares_of_one; j++) sum += squares[j * stream_sequences + s].number;
    float r = *bad ? __uint_as_float(0x7fc00000u) : rsqrtf(sum / width + eps);
    for (int j = i; j < min(i + 4, vocab); j++) {
        long long at = (long long)s * vocab + j;
        logits[at] = r * sum_of(sums[at], additions(sums[at]));
        sums[at] = 0;
    }
}
KERNEL(stream_logits)
