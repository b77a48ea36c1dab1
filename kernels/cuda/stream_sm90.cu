// Run is logits[s] of the token that follows tokens[s], at position pos[s] of sequence s, and appends its keys and values to the cache: one
// decoding step of a whole model. Sequences with pos[s] < 0 are skipped, their logits are left as they are. In every linear layer that has
// experts, those of ids[s] are added with weights[s], as Experts does. logits (S, V) of type Param, tokens, pos (S) i32, ids (S, n) i32,
// weights (S, n); ids and weights none if the model has no experts.
//
// On Hopper, as one kernel whose blocks stay for the whole step, one to a multiprocessor. One warp of a block copies the weights that the schedule
// (stream_plan.go) gives to the block, layer after layer, to a ring in shared memory, and waits for nothing but room. Eight others multiply what
// has come with the activations of up to 8·TILES sequences. Activations go from block to block through memory: products are added up as
// integers, so that their order does not matter and a step repeats bit for bit, and a sum says itself whether it is complete (stream.cuh). What
// is added to must be zero: there are three slots for the sums of a layer, of which one more warp clears those that are not in use.
//
// A norm's factor is a number for a sequence, and all between two norms is linear: it is applied where a sum is read, so that no block needs a whole row.
//
// Why no more than three slots are needed: a sum of a layer's last projection is complete only if all blocks have read all that they need of the
// layer's projections into the MLP, and so have added all their products of earlier phases.
#include "hopper.cuh"
#include "mma.cuh"
#include "stream.cuh"

// Eight warps multiply, one copies, one clears; two more are there because registers are dealt to warps by fours.
constexpr int stream_warps = 8, stream_workers = 32 * stream_warps, stream_threads = stream_workers + 128;
constexpr int stream_registers = 224, stream_other_registers = 56; // of a thread that multiplies, of the others

constexpr int stream_items = 4;    // of attention's work whose queries a block reads at once
constexpr int stream_together = 2; // pairs of numbers that a thread reads at once

enum Phase { into_attention, out_of_attention, into_mlp, out_of_mlp, into_logits };

// What a block remembers of the step, in shared memory.
struct StreamStep {
    StreamBlock block;
    int pos[stream_sequences], first_block[stream_sequences], blocks[stream_sequences], splits[stream_sequences], items[stream_sequences + 1];
    int top, active; // sequences up to the last that is decoded; experts in use
    int turn;
    int expert[stream_active];
    int ids[stream_choices];
    float weights[stream_choices];
    float squares[stream_warps], rstd[stream_sequences];
    StreamLayer layer[2]; // that of an even number and that of an odd one
};

template <int TILES, int DIM, int GROUP> struct Stream {
    static constexpr int columns = 8 * TILES;

    const StreamModel &m;
    StreamStep &step;
    unsigned char *ring;
    Barrier *full, *empty;
    bf16 *x, *gated;
    const StreamPart *parts; // of this block, by their number among all; so are runs
    const StreamRun *runs;
    const int *added;
    Barrier *cleared;
    int stage = 0;
    unsigned parity = 0;

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

    // ---- The warp that copies.

    int ahead = 0, oldest = 0;
    unsigned oldest_parity = 0;

    // Waits for room, and until no more than some copies are under way: more of them delay what blocks tell each other.
    __device__ unsigned char *room(int bytes) {
        if (ahead == m.under_way) {
            barrier_wait(full + oldest, oldest_parity);
            if (++oldest == m.stages) oldest = 0, oldest_parity ^= 1;
        } else {
            ahead++;
        }
        barrier_wait(empty + stage, parity ^ 1);
        barrier_arrive_expecting(full + stage, bytes);
        return ring + stage * stream_stage;
    }

    __device__ void copy_runs(const TensorMap *maps, const StreamPart &part) {
        int ranks = step.active * m.rank;
#pragma unroll 1
        for (int i = 0; i < part.runs; i++) {
            const StreamRun &r = runs[part.first_run + i];
            bool down = r.kind == stream_down;
            if (down && 16 * r.row >= ranks) continue;
#pragma unroll 1
            for (int j = 0; j < r.count; j += down ? stream_warps : 1) {
                int from = r.column + 64 * j, n = down ? min(stream_warps, r.count - j) : 8;
                unsigned char *to = room(n * 2048);
                if (!down) copy_box_once(to, maps + r.target, from, r.row, full + stage);
#pragma unroll 1
                for (int e = 0; down && e < 2 * n; e++)
                    copy_box(to + 1024 * e, maps + stream_targets + r.target, from + e / 2 * 64, expert_row(2 * r.row + e % 2), full + stage);
                next();
            }
            if (r.kind != stream_weights_and_up) continue;
            // A box that lies wholly outside of its matrix never comes.
            int eights = ranks / 8, halves = r.row + 64 < m.target[r.target].rows ? 2 : 1;
#pragma unroll 1
            for (int k = 0; k < eights; k += 8) {
                int n = min(8, (eights - k + 1) / 2 * 2);
                unsigned char *to = room(n * halves * 1024);
#pragma unroll 1
                for (int e = 0; e < n * halves; e++) {
                    int j = e / halves, h = e % halves;
                    copy_box(to + 2048 * j + 1024 * h, maps + 2 * stream_targets + r.target, r.row + 64 * h, expert_row(k + j), full + stage);
                }
                next();
            }
        }
    }
    // The row, among those of all experts, of the i-th eight rows of the experts in use. Behind the last there is another time the last.
    __device__ int expert_row(int i) const {
        i = min(i, step.active * m.rank / 8 - 1);
        return step.expert[8 * i / m.rank] * m.rank + 8 * i % m.rank;
    }

    __device__ void copy_keys(const TensorMap *maps) {
        for (int i = blockIdx.x, s = 0; i < step.items[step.top]; i += gridDim.x) {
            Item it = item(i, s);
            int from, to;
            blocks_of(s, it.split, from, to);
            for (int b = from; b < to; b++)
                for (int v = 0; v < 2; v++) {
                    unsigned char *at = room(64 * DIM * 2);
                    copy_box(at, maps + 3 * stream_targets + v, it.head * DIM, s * m.positions + 64 * b, full + stage);
                    next();
                }
        }
    }

    // Brings the maps of a phase near, of which the first use would wait for them.
    __device__ void expect(const TensorMap *maps, int phase) const {
        constexpr int first[] = {stream_q_proj, stream_o_proj, stream_gate_proj, stream_down_proj, stream_targets, stream_targets + 1};
#pragma unroll 1
        for (int t = first[phase]; t < first[phase + 1]; t++)
            for (int i = 0; i < (m.adapted >> t & 1 ? 3 : 1); i++) prefetch_map(maps + i * stream_targets + t);
    }
    __device__ void copy() {
        expect(m.maps, into_attention);
#pragma unroll 1
        for (int i = 0; i <= 4 * m.layers; i++) {
            const TensorMap *maps = m.maps + i / 4 * stream_maps;
            int phase = i == 4 * m.layers ? into_logits : i % 4;
            if (i < 4 * m.layers) expect(m.maps + (i + 1) / 4 * stream_maps, i + 1 == 4 * m.layers ? into_logits : (i + 1) % 4);
            if (phase == into_attention) prefetch_map(maps + 3 * stream_targets), prefetch_map(maps + 3 * stream_targets + 1);
            for (int k = step.block.first_part[phase]; k < step.block.first_part[phase + 1]; k++) copy_runs(maps, parts[k]);
            if (phase == into_attention) copy_keys(maps);
        }
    }

    // ---- Attention's work: a sequence, a key-value head and some blocks of 64 keys.

    struct Item {
        int s, head, split;
        bool last; // of the sequence's splits, which has the token's own key
    };
    // The i-th of all; s is a sequence that is not behind its, and becomes that.
    __device__ Item item(int i, int &s) const {
        while (i >= step.items[s + 1]) s++;
        int j = i - step.items[s], splits = step.splits[s];
        return {s, j / splits, j % splits, j % splits == splits - 1};
    }
    __device__ void blocks_of(int s, int split, int &from, int &to) const {
        from = step.first_block[s] + step.blocks[s] * split / step.splits[s];
        to = step.first_block[s] + step.blocks[s] * (split + 1) / step.splits[s];
    }

    // ---- The warps that multiply.

    int warp, lane;

    __device__ void meet() const { threads_sync(1, stream_workers); }

    // Where this thread begins to read its warp's 16 rows in a stage, and of x in shared memory, of rows stride apart, for ldmatrix. Chunks
    // of 16 bytes lie swapped by their row; two chunks further is one bit of the address.
    __device__ unsigned rows_at() const {
        int r = lane % 8 + lane / 8 % 2 * 8;
        return warp * 2048 + r * 128 + (lane / 16 ^ r & 7) * 16;
    }
    __device__ unsigned columns_at(int stride) const { return shared_at(x) + ((lane % 8) * stride + lane / 8 * 8) * 2; }

    // d += the 16 rows at `rows` times 64 columns at `columns`, for each eight sequences. Two sums for each, so that products do not wait for
    // each other.
    __device__ static void multiply(float (&d)[2][TILES][4], unsigned rows, unsigned columns, int stride) {
        unsigned a[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) ldmatrix(a[i], rows ^ 32 * i);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            unsigned b[2][4];
            ldmatrix(b[0], columns + 16 * t * stride);
            ldmatrix(b[1], columns + 16 * t * stride + 64);
#pragma unroll
            for (int i = 0; i < 4; i++) mma(d[i % 2][t], a[i], b[i / 2] + i % 2 * 2);
        }
    }
    // d += this warp's rows of `count` stages times the columns of x from k on.
    __device__ void multiply_stages(float (&d)[2][TILES][4], int count, int k, int stride) {
        unsigned rows = shared_at(ring) + rows_at(), columns = columns_at(stride) + 2 * k;
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
            if (8 * t >= step.top) break;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int s = 8 * t + lane % 4 * 2 + i % 2;
                if (s < step.top && row + lane / 4 + i / 2 * 8 < rows)
                    overflow |= add_to_sum(sums + (long long)(8 * t + i % 2) * stride + i / 2 * 8, d[t][i]);
            }
        }
        if (overflow) *m.bad = 1;
    }

    // The runs of a part. ready is the targets of the phase whose hidden numbers are in `gated`.
    __device__ void run_all(const StreamPart &part, long long *sums, unsigned &ready) {
        int stride = part.columns + 8, ranks = step.active * m.rank;
#pragma unroll 1
        for (int i = 0; i < part.runs; i++) {
            const StreamRun &r = runs[part.first_run + i];
            const StreamTarget &t = m.target[r.target];
            bool down = r.kind == stream_down;
            if (down && 16 * r.row >= ranks) continue;
            float both[2][TILES][4] = {};
            if (down)
                multiply_down(both, r.count, r.column - part.first_column, stride);
            else
                multiply_stages(both, r.count, r.column - part.first_column, stride);
            float(&d)[TILES][4] = both[0];
#pragma unroll
            for (int i = 0; i < 4 * TILES; i++) d[i / 4][i % 4] += both[1][i / 4][i % 4];
            if (down && m.local) {
                keep_hidden(d, 16 * r.row);
                if (16 * r.row + 16 >= ranks) gate_local(t.place), ready |= 1 << r.target;
                continue;
            }
            if (r.kind == stream_weights_and_up) {
                if (!(ready >> r.target & 1)) gate(t, sums);
                ready |= 1 << r.target;
#pragma unroll 1
                for (int k = 0; k < ranks; k += 64) {
                    barrier_wait(full + stage, parity);
                    multiply_up(d, ring + stage * stream_stage, gated_of(t.place), k, min(4, (ranks - k + 15) / 16));
                    release();
                }
            }
            int row = down ? 16 * r.row : r.row + 16 * warp;
            add(d, sums + (down ? t.hidden_at : t.sums_at), row, down ? ranks : t.rows, down ? m.most_ranks : t.stride);
        }
    }
    __device__ void release() {
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + stage);
        next();
    }

    // The hidden numbers of a phase's targets as right sides for multiply_up, and where a block adds up its own.
    __device__ bf16 *gated_of(int place) const { return gated + place * columns * (m.most_ranks + 8); }
    __device__ float *hidden() const { return (float *)gated_of(3); }

    // s·weights[s, k] of the expert of a row of those in use.
    __device__ float gate_of(int s, int row) const {
        if (s >= step.top || step.pos[s] < 0) return 0;
        int e = step.expert[row / m.rank];
        float g = 0;
#pragma unroll 1
        for (int j = 0; j < m.chosen; j++)
            if (step.ids[s * m.chosen + j] == e) g += step.weights[s * m.chosen + j];
        return m.scale * g;
    }
    // Makes a target's right sides of hidden(s, k), row k of sequence s, times their gates. What columns behind the last sequence hold does not matter:
    // nobody adds what comes of them.
    template <class F> __device__ void gate_all(int place, F hidden) const {
        bf16 *to = gated_of(place);
        int ranks = step.active * m.rank, rows = (ranks + 15) / 16 * 16, parts = (rows + 31) / 32;
#pragma unroll 1
        for (int i = warp; i < step.top * parts; i += stream_warps) {
            int s = i / parts, k = (i - s * parts) * 32 + lane;
            if (k < rows) to[s * (m.most_ranks + 8) + k] = to_bf16(k < ranks ? gate_of(s, k) * hidden(s, k) : 0.f);
        }
        meet();
    }
    // The experts' hidden numbers, once all blocks' parts of them are there, times their gates.
    __device__ void gate(const StreamTarget &t, const long long *sums) {
        gate_all(t.place, [&](int s, int k) { return complete(sums + t.hidden_at + (long long)s * m.most_ranks + k, t.hidden_adds); });
    }
    // A sum of n numbers, when it has them.
    __device__ float complete(const long long *sum, int n) const {
        Patience patience;
        for (;;) {
            long long v = glance(sum);
            if (additions(v) == n) return sum_of(v, n);
            patience.wait();
        }
    }
    // This warp's part of 16 rows of hidden numbers.
    __device__ void keep_hidden(const float (&d)[TILES][4], int row) const {
        float *to = hidden() + ((row / 16 * stream_warps + warp) * 32 + lane) * 4 * TILES;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) to[4 * t + i] = d[t][i];
    }
    __device__ void gate_local(int place) const {
        meet();
        gate_all(place, [&](int s, int k) {
            // Where a fragment has row k % 16 of column s % 8.
            const float *from = hidden() + k / 16 * stream_warps * 128 * TILES + (k % 8 * 4 + s % 8 / 2) * 4 * TILES + s / 8 * 4 + k % 16 / 8 * 2 + s % 2;
            float v = 0;
#pragma unroll
            for (int w = 0; w < stream_warps; w++) v += from[w * 128 * TILES];
            return v;
        });
    }
    __device__ void multiply_up(float (&d)[TILES][4], const unsigned char *at, const bf16 *hidden, int k, int steps) const {
        int stride = m.most_ranks + 8, chunk = 2 * (warp % 4) + lane / 8 % 2, r = lane % 8;
        for (int i = 0; i < steps; i++) {
            unsigned a[4];
            ldmatrix_transposed(a, at + (2 * i + lane / 16) * 2048 + warp / 4 * 1024 + r * 128 + (chunk ^ r) * 16);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const bf16 *from = hidden + (8 * t + lane / 4) * stride + k + 16 * i + lane % 4 * 2;
                unsigned b[2] = {*(const unsigned *)from, *(const unsigned *)(from + 8)};
                mma(d[t], a, b);
            }
        }
    }

    // ---- What a phase multiplies with: its part's columns of x.

    // For each sequence s that this warp has: for its pairs of columns c, c + 1 of a part load(s, c, v), which reads what is not in v yet, until v is
    // ready, and then store(s, c, v); end(s). Several loads are under way at once. A sequence is that of one warp or, if there are few, of several.
    template <class T, class L, class S, class E> __device__ void each_pair(const StreamPart &part, L load, S store, E end) const {
        constexpr int together = stream_together;
        int each = share(), own = 2 * (threadIdx.x % (32 * each)), next = 64 * each, sequences = stream_warps / each;
        for (int s = warp / each, c = own; s < step.top;) {
            T v[together];
            auto several = [&](auto f) { // the next pairs of columns, of as many sequences as they take
                int at = s, d = c;
#pragma unroll
                for (int i = 0; i < together; i++) {
                    if (at < step.top && d < part.columns) f(i, at, d);
                    if ((d += next) - own >= part.columns) d = own, at += sequences;
                }
            };
            Patience patience;
            for (bool ready = false; !ready; patience.wait()) {
                ready = true;
                several([&](int i, int s, int c) { load(s, c, v[i]); });
                several([&](int i, int, int) { ready &= v[i].ready(); });
            }
#pragma unroll
            for (int i = 0; i < together; i++) {
                if (s >= step.top) break;
                if (c < part.columns) store(s, c, v[i]);
                if ((c += next) - own < part.columns) continue;
                __syncwarp();
                end(s);
                c = own, s += sequences;
            }
        }
    }
    // Where this warp keeps the factor of a sequence; warps that share one have it each for themselves.
    __device__ int rstd_at(int s) const { return share() > 1 ? warp : s; }
    // The warps to a sequence.
    __device__ int share() const { return step.top <= 1 ? 8 : step.top <= 2 ? 4 : step.top <= 4 ? 2 : 1; }

    // Two columns of the residual stream: the embedding's, or sums.
    struct Pair {
        longlong2 sum = {0, 0};
        float2 embedding, norm;
        int adds = 0;
        __device__ bool ready() const { return additions(sum.x) == adds && additions(sum.y) == adds; }
    };

    // The residual stream before a phase of layer l, times its norm's weight: the embedding or the sums of the linear layer before, to which it has
    // been added. What this block keeps of the columns it adds, with its bias, to the sums of the linear layer that comes next, and tells others
    // the sums of their squares.
    __device__ void fill_stream(int phase, int l, const StreamPart &part) {
        const StreamLayer &layer = step.layer[l & 1]; // none behind the last
        const float *norm = phase == into_logits ? m.norm : phase == into_mlp ? layer.post_norm : layer.input_norm;
        const StreamTarget &before = m.target[phase == into_mlp ? stream_o_proj : stream_down_proj];
        const long long *sums = slot(phase == into_mlp ? l : l - 1) + before.sums_at;
        bool embedded = phase == into_attention && l == 0;
        int after = phase == into_mlp ? stream_down_proj : stream_o_proj;
        long long *keep = phase == into_logits ? nullptr : slot(l) + m.target[after].sums_at;
        const float *bias = phase == into_logits ? nullptr : layer.bias[after];
        Said *squares = phase == into_mlp ? m.squares_mlp : phase == into_attention ? m.squares : m.logit_squares;
        int stride = part.columns + 8;
        bool kept = part.keep_slice >= 0;
        float square = 0;
        bool overflow = false;
        each_pair<Pair>(
            part,
            [&](int s, int c, Pair &v) {
                int d = part.first_column + c;
                long long at = (long long)s * m.width + d;
                v.norm = *(const float2 *)(norm + d), v.embedding = make_float2(0, 0);
                if (step.pos[s] < 0) return;
                if (embedded) {
                    unsigned e = *(const unsigned *)(m.embed + (long long)m.tokens[s] * m.width + d);
                    v.embedding = make_float2(__uint_as_float(e << 16), __uint_as_float(e & 0xffff0000u));
                } else {
                    v.adds = adds(before, d), v.sum = glance((const longlong2 *)(sums + at));
                }
            },
            [&](int s, int c, const Pair &v) {
                int d = part.first_column + c;
                float2 y = make_float2(v.embedding.x + sum_of(v.sum.x, v.adds), v.embedding.y + sum_of(v.sum.y, v.adds));
                if (kept && step.pos[s] >= 0) {
                    if (keep) {
                        long long *to = keep + (long long)s * m.width + d;
                        overflow |= add_to_sum(to, y.x + (bias ? bias[d] : 0.f)), overflow |= add_to_sum(to + 1, y.y + (bias ? bias[d + 1] : 0.f));
                    }
                    square = fmaf(y.x, y.x, fmaf(y.y, y.y, square));
                }
                *(unsigned *)(x + s * stride + c) = pack(y.x * v.norm.x, y.y * v.norm.y);
            },
            [&](int s) {
                if (!kept) return;
                float sum = warp_sum(square);
                square = 0;
                if (lane != 0) return;
                if (share() == 1)
                    say(squares + part.keep_slice * stream_sequences + s, sum, when(l));
                else
                    step.squares[warp] = sum;
            });
        if (overflow) *m.bad = 1;
        meet();
        if (kept && share() > 1 && (int)threadIdx.x < step.top) {
            float sum = 0;
            for (int w = 0; w < share(); w++) sum += step.squares[threadIdx.x * share() + w];
            say(squares + part.keep_slice * stream_sequences + threadIdx.x, sum, when(l));
        }
    }
    // The norm's factor of a sequence, for a whole warp, when its squares are there.
    __device__ float rstd_of(const Said *squares, int layer, int s) const {
        Patience patience;
        Said v = {0, 0};
        if (lane < m.slices)
            while ((v = glance(squares + lane * stream_sequences + s)).when != when(layer)) patience.wait();
        __syncwarp();
        return rsqrtf(warp_sum(v.number) / m.width + m.eps);
    }

    // ---- The warp that clears.

    __device__ void clear(long long *from, int n) const { // n even
        int share = (n / 2 + step.block.clearers - 1) / step.block.clearers, end = min(n / 2, share * (step.block.clear + 1));
#pragma unroll 1
        for (int i = share * step.block.clear + lane; i < end; i += 32) ((longlong2 *)from)[i] = make_longlong2(0, 0);
    }
    __device__ void clear_all() const {
        if (!step.block.clearers) return;
        const StreamTarget &t = m.target[stream_down_proj];
        for (int l = 0; l < m.layers; l++) {
            if (l > 0 && lane == 0) complete(slot(l - 1) + t.sums_at + (long long)(step.top - 1) * t.stride, adds(t, 0));
            __syncwarp();
            clear(slot(l - 1), m.early_size);
            clear(slot(l - 2) + m.early_size, m.slot_size - m.early_size);
            fence_card();
            __syncwarp();
            if (lane == 0) barrier_arrive(cleared);
        }
    }

    // One loop over all phases: the code of a step must stay in the cache for instructions.
    __device__ void multiply_all() {
        fetch_layer(0);
#pragma unroll 1
        for (int i = 0; i <= 4 * m.layers; i++) {
            int l = i / 4, phase = i == 4 * m.layers ? into_logits : i % 4;
            int first = step.block.first_part[phase], end = step.block.first_part[phase + 1];
            unsigned ready = 0;
#pragma unroll 1
            for (int k = first; k < end; k++) {
                const StreamPart &part = parts[k];
                meet(); // x is free
                if (phase == out_of_attention)
                    fill_attended(l, part);
                else if (phase == out_of_mlp)
                    fill_mlp(l, part, step.layer[l & 1], slot(l));
                else
                    fill_stream(phase, l, part);
                meet();
                if (phase == into_mlp && k == first) barrier_wait(cleared, l & 1); // those who see these sums may use what this block has cleared
                run_all(part, phase == into_logits ? m.logits : slot(l), ready);
            }
            if (phase != into_attention) continue;
            attend(l, step.layer[l & 1], slot(l));
            meet(); // nobody uses the layer before any more
            if (l + 1 < m.layers) fetch_layer(l + 1);
        }
    }
    __device__ void fetch_layer(int l) const {
        for (int i = threadIdx.x; i < (int)sizeof(StreamLayer) / 8; i += stream_workers) ((long long *)&step.layer[l & 1])[i] = ((const long long *)(m.layer + l))[i];
    }
    __device__ int group_size() const { return m.heads / m.kv_heads; }

    // Attention's output: its parts, each times its share of the softmax.
    struct Attended {
        float2 v;
        bool there = false;
        __device__ bool ready() const { return there; }
    };
    __device__ void fill_attended(int l, const StreamPart &part) {
        int stride = part.columns + 8, now = when(l);
        each_pair<Attended>(
            part,
            [&](int s, int c, Attended &a) {
                if (a.there) return;
                int d = part.first_column + c, n = step.splits[s];
                a.v = make_float2(0, 0), a.there = true;
                if (n == 0) return;
                long long at = (long long)(s * m.heads + d / DIM) * stream_splits;
                const Said2 *scales = (const Said2 *)m.part_scale + at, *outs = (const Said2 *)(m.part_sums + at * DIM + d % DIM);
                float most = -INFINITY, sum = 0;
#pragma unroll 1
                for (int j = 0; j < n; j += 2) {
                    Said2 scale[2], o[2];
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (j + i < n) scale[i] = glance(scales + j + i), o[i] = glance(outs + (j + i) * (DIM / 2));
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if (j + i >= n) break;
                        a.there &= scale[i].a.when == now && scale[i].b.when == now && o[i].a.when == now && o[i].b.when == now;
                        float top = fmaxf(most, scale[i].a.number), keep = exp2_fast(most - top), w = exp2_fast(scale[i].a.number - top);
                        sum = fmaf(sum, keep, w * scale[i].b.number), a.v.x = fmaf(a.v.x, keep, w * o[i].a.number);
                        a.v.y = fmaf(a.v.y, keep, w * o[i].b.number), most = top;
                    }
                }
                a.v.x /= sum, a.v.y /= sum;
            },
            [&](int s, int c, const Attended &a) { *(unsigned *)(x + s * stride + c) = pack(a.v.x, a.v.y); }, [](int) {});
    }
    struct GateUp {
        longlong2 gate = {0, 0}, up = {0, 0};
        int gates = 0, ups = 0;
        __device__ bool has_gate() const { return additions(gate.x) == gates && additions(gate.y) == gates; }
        __device__ bool has_up() const { return additions(up.x) == ups && additions(up.y) == ups; }
        __device__ bool ready() const { return has_gate() && has_up(); }
    };
    __device__ void fill_mlp(int l, const StreamPart &part, const StreamLayer &layer, const long long *sums) {
        const StreamTarget &g = m.target[stream_gate_proj], &u = m.target[stream_up_proj];
        const float *gate_bias = layer.bias[stream_gate_proj], *up_bias = layer.bias[stream_up_proj];
        int stride = part.columns + 8, before = -1;
        float rstd = 0;
        for (int s = warp / share(); s < step.top; s += stream_warps / share()) {
            float r = step.pos[s] < 0 ? 0.f : rstd_of(m.squares_mlp, l, s);
            if (lane == 0) step.rstd[rstd_at(s)] = r;
        }
        __syncwarp();
        each_pair<GateUp>(
            part,
            [&](int s, int c, GateUp &v) {
                int d = part.first_column + c;
                if (step.pos[s] < 0) return;
                v.gates = adds(g, d), v.ups = adds(u, d);
                if (!v.has_gate()) v.gate = glance((const longlong2 *)(sums + g.sums_at + (long long)s * g.stride + d));
                if (!v.has_up()) v.up = glance((const longlong2 *)(sums + u.sums_at + (long long)s * u.stride + d));
            },
            [&](int s, int c, const GateUp &v) {
                int d = part.first_column + c;
                if (s != before) rstd = step.rstd[rstd_at(s)], before = s;
                float a[2] = {rstd * sum_of(v.gate.x, v.gates), rstd * sum_of(v.gate.y, v.gates)}, b[2] = {rstd * sum_of(v.up.x, v.ups), rstd * sum_of(v.up.y, v.ups)};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (gate_bias) a[i] += gate_bias[d + i];
                    if (up_bias) b[i] += up_bias[d + i];
                    a[i] = a[i] / (1 + exp2_fast(-1.4426950408889634f * a[i])) * b[i];
                }
                *(unsigned *)(x + s * stride + c) = pack(a[0], a[1]);
            },
            [](int) {});
    }

    // ---- Attention.

    // This warp's head of a row of sums, of sequence s: times the norm's factor, with bias, normed, turned by its position. A lane has the elements
    // lane + 32·j.
    __device__ void head_of(float (&v)[DIM / 32], int l, int s, const long long *sums, int adds, const float *bias, const float *norm,
                            const float *rope) const {
        constexpr int n = DIM / 32;
        float squares = 0, turn[n] = {};
        if (rope)
#pragma unroll
            for (int j = 0; j < n; j++) turn[j] = rope[lane + 32 * j];
        long long sum[n];
        Said part = {0, when(l)}; // of the residual stream's squares
        Patience patience;
        for (bool ready = false; !ready; patience.wait()) {
            if (lane < m.slices) part = glance(m.squares + lane * stream_sequences + s);
#pragma unroll
            for (int j = 0; j < n; j++) sum[j] = glance(sums + lane + 32 * j);
            ready = part.when == when(l);
#pragma unroll
            for (int j = 0; j < n; j++) ready &= additions(sum[j]) == adds; // a head lies in one panel
        }
        __syncwarp();
        float rstd = rsqrtf(warp_sum(part.number) / m.width + m.eps);
#pragma unroll
        for (int j = 0; j < n; j++) {
            int i = lane + 32 * j;
            v[j] = rstd * sum_of(sum[j], adds);
            if (bias) v[j] += bias[i];
            squares = fmaf(v[j], v[j], squares);
        }
        if (norm) {
            float r = rsqrtf(warp_sum(squares) / DIM + m.eps);
#pragma unroll
            for (int j = 0; j < n; j++) v[j] *= r * norm[lane + 32 * j];
        }
        if (!rope) return;
#pragma unroll
        for (int j = 0; j < n / 2; j++) {
            float c = turn[j], w = turn[j + n / 2], a = v[j], b = v[j + n / 2];
            v[j] = a * c - b * w, v[j + n / 2] = b * c + a * w;
        }
    }
    // Row i of what an item needs: its query heads, then, if it is its sequence's last, the token's key and value, which are also kept.
    __device__ void attend_row(int l, const StreamLayer &layer, const long long *sums, const Item &it, int i, float *to) const {
        int group = group_size(), pos = step.pos[it.s];
        int target = i < group ? stream_q_proj : i == group ? stream_k_proj : stream_v_proj, at = (i < group ? it.head * group + i : it.head) * DIM;
        const StreamTarget &t = m.target[target];
        float v[DIM / 32];
        head_of(v, l, it.s, sums + t.sums_at + (long long)it.s * t.stride + at, added[t.panel + at / 128], layer.bias[target] ? layer.bias[target] + at : nullptr,
                i < group ? layer.q_norm : i == group ? layer.k_norm : nullptr, i <= group ? m.rope + (long long)pos * DIM : nullptr);
        bf16 *kept = (i == group ? layer.keys : layer.values) + ((long long)it.s * m.positions + pos) * m.kv_heads * DIM + it.head * DIM;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            int c = lane + 32 * j;
            if (i < group) {
                to[c] = v[j] * m.softmax_scale;
            } else {
                bf16 b = to_bf16(v[j]);
                kept[c] = b;
                to[c] = to_float(b); // as later steps will read it
            }
        }
    }

    // This block's items, of which it reads what some need at once.
    __device__ void attend(int l, const StreamLayer &layer, const long long *sums) {
        int group = group_size(), rows = group + 2, total = step.items[step.top];
        // x is not needed now.
        float *heads = (float *)x, *scales = heads + stream_items * rows * DIM, *outs = scales + 2 * stream_warps * group;
        for (int i = blockIdx.x, s = 0; i < total; i += stream_items * gridDim.x) {
            int n = min(stream_items, (total - 1 - i) / (int)gridDim.x + 1);
            meet();
            for (int r = warp, of = s; r < n * rows; r += stream_warps) {
                Item it = item(i + r / rows * gridDim.x, of);
                if (r % rows < group || it.last) attend_row(l, layer, sums, it, r % rows, heads + r * DIM);
            }
            for (int j = 0; j < n; j++) {
                meet();
                const float *q = heads + j * rows * DIM;
                Item it = item(i + j * gridDim.x, s);
                attend_item(when(l), it, q, q + group * DIM, scales, outs);
            }
        }
    }

    __device__ void attend_item(int now, const Item &it, const float *q, const float *fresh, float *scales, float *outs) {
        constexpr int each = DIM / 32; // numbers of an output that a lane has
        int group = group_size(), pos = step.pos[it.s], first = m.window > 0 ? max(0, pos - m.window + 1) : 0, from, to;
        blocks_of(it.s, it.split, from, to);
        float most[GROUP], sum[GROUP], out[GROUP][each];
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
            most[h] = -INFINITY, sum[h] = 0;
#pragma unroll
            for (int i = 0; i < each; i++) out[h][i] = 0;
        }
        for (int b = from; b < to; b++) {
            // Four lanes to a key.
            float p[GROUP];
            barrier_wait(full + stage, parity);
            const unsigned char *key = ring + stage * stream_stage + (8 * warp + lane / 4) * DIM * 2 + lane % 4 * 16;
#pragma unroll
            for (int h = 0; h < GROUP; h++) p[h] = 0;
#pragma unroll
            for (int i = 0; i < DIM / 32; i++) {
                uint4 k = *(const uint4 *)(key + 64 * i);
                unsigned w[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
                for (int h = 0; h < GROUP; h++) {
                    if (h >= group) break;
                    const float4 *qh = (const float4 *)(q + h * DIM + 32 * i + lane % 4 * 8);
                    float4 a = qh[0], c = qh[1];
                    p[h] = fmaf(a.x, __uint_as_float(w[0] << 16), p[h]), p[h] = fmaf(a.y, __uint_as_float(w[0] & 0xffff0000u), p[h]);
                    p[h] = fmaf(a.z, __uint_as_float(w[1] << 16), p[h]), p[h] = fmaf(a.w, __uint_as_float(w[1] & 0xffff0000u), p[h]);
                    p[h] = fmaf(c.x, __uint_as_float(w[2] << 16), p[h]), p[h] = fmaf(c.y, __uint_as_float(w[2] & 0xffff0000u), p[h]);
                    p[h] = fmaf(c.z, __uint_as_float(w[3] << 16), p[h]), p[h] = fmaf(c.w, __uint_as_float(w[3] & 0xffff0000u), p[h]);
                }
            }
            release();
            int at = 64 * b + 8 * warp;
            bool seen = at + lane / 4 >= first && at + lane / 4 < pos;
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                if (h >= group) break;
                float a = p[h];
                a += __shfl_xor_sync(0xffffffffu, a, 1), a += __shfl_xor_sync(0xffffffffu, a, 2);
                if (!seen) a = -INFINITY;
                float top = fmaxf(most[h], warp_max(a));
                float keep = top == -INFINITY ? 1.f : exp2_fast(most[h] - top);
                p[h] = seen ? exp2_fast(a - top) : 0.f;
                sum[h] = fmaf(sum[h], keep, p[h]), most[h] = top;
#pragma unroll
                for (int i = 0; i < each; i++) out[h][i] *= keep;
            }
            barrier_wait(full + stage, parity);
            const unsigned char *value = ring + stage * stream_stage + 8 * warp * DIM * 2 + lane * each * 2;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float v[each];
#pragma unroll
                for (int i = 0; i < each / 2; i++) {
                    unsigned w = at + j >= first && at + j < pos ? *(const unsigned *)(value + j * DIM * 2 + 4 * i) : 0; // others may be anything
                    v[2 * i] = __uint_as_float(w << 16), v[2 * i + 1] = __uint_as_float(w & 0xffff0000u);
                }
#pragma unroll
                for (int h = 0; h < GROUP; h++) {
                    if (h >= group) break;
                    float w = __shfl_sync(0xffffffffu, p[h], 4 * j);
#pragma unroll
                    for (int i = 0; i < each; i++) out[h][i] = fmaf(w, v[i], out[h][i]);
                }
            }
            release();
        }
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
            if (h >= group) break;
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 4), sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 8);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 16);
            if (it.last && warp == 0) { // the token's own key
                float a = 0;
#pragma unroll
                for (int i = 0; i < each; i++) a = fmaf(q[h * DIM + lane * each + i], fresh[lane * each + i], a);
                a = warp_sum(a);
                float top = fmaxf(most[h], a), keep = exp2_fast(most[h] - top), w = exp2_fast(a - top);
                sum[h] = fmaf(sum[h], keep, w), most[h] = top;
#pragma unroll
                for (int i = 0; i < each; i++) out[h][i] = fmaf(out[h][i], keep, w * fresh[DIM + lane * each + i]);
            }
            if (lane == 0) scales[(h * stream_warps + warp) * 2] = most[h], scales[(h * stream_warps + warp) * 2 + 1] = sum[h];
#pragma unroll
            for (int i = 0; i < each; i++) outs[(h * stream_warps + warp) * DIM + lane * each + i] = out[h][i];
        }
        meet();
        for (int i = threadIdx.x; i < group * DIM; i += stream_workers) {
            int h = i / DIM;
            const float *scale = scales + h * stream_warps * 2, *o = outs + h * stream_warps * DIM + i % DIM;
            float top = -INFINITY, total = 0, y = 0;
#pragma unroll
            for (int w = 0; w < stream_warps; w++) top = fmaxf(top, scale[2 * w]);
#pragma unroll
            for (int w = 0; w < stream_warps; w++) {
                float f = scale[2 * w] == -INFINITY ? 0.f : exp2_fast(scale[2 * w] - top);
                total = fmaf(f, scale[2 * w + 1], total), y = fmaf(f, o[w * DIM], y);
            }
            long long at = (long long)(it.s * m.heads + it.head * group + h) * stream_splits + it.split;
            say(m.part_sums + at * DIM + i % DIM, y, now);
            if (i % DIM == 0) say(m.part_scale + 2 * at, top, now), say(m.part_scale + 2 * at + 1, total, now);
        }
    }
};

// What all blocks find out alike before the step: which sequences there are, how their keys are divided, which experts they use.
template <int GROUP> __device__ void stream_begin(const StreamModel &m, StreamStep &step, StreamPart *parts, StreamRun *runs) {
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
        step.top = 0, step.turn = *m.turn;
#pragma unroll 1
        for (int s = 0; s < m.sequences; s++)
            if (step.pos[s] >= 0) live++, step.top = s + 1;
        // So many parts of the keys of a sequence's head that all blocks have something to do.
        int wanted = min(stream_splits, max(1, (int)gridDim.x / max(1, live * m.kv_heads)));
        step.items[0] = 0;
#pragma unroll 1
        for (int s = 0; s < step.top; s++) {
            int pos = step.pos[s], from = m.window > 0 ? max(0, pos - m.window + 1) / 64 : 0;
            step.first_block[s] = from, step.blocks[s] = pos < 0 ? 0 : (pos + 63) / 64 - from;
            int splits = step.splits[s] = pos < 0 ? 0 : max(1, min(wanted, step.blocks[s]));
            step.items[s + 1] = step.items[s] + splits * m.kv_heads;
        }
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
}

template <int TILES, int DIM, int GROUP> __device__ void stream(const StreamModel &m) {
    DYNAMIC_SHARED(unsigned char, memory);
    unsigned char *end = memory + m.stages * stream_stage;
    bf16 *x = (bf16 *)end;
    bf16 *gated = (bf16 *)(end += m.x_size);
    StreamStep &step = *(StreamStep *)(end += m.gated_size);
    static_assert(sizeof(StreamStep) <= stream_step_size);
    Barrier *full = (Barrier *)(end += stream_step_size);
    Barrier *cleared = full + 2 * m.stages;
    int *added = (int *)(cleared + 2);
    StreamPart *parts = (StreamPart *)(added + m.panels);
    StreamRun *runs = (StreamRun *)(parts + m.parts_of_block);
#pragma unroll 1
    for (int i = threadIdx.x; i < m.panels; i += stream_threads) added[i] = m.adds[i];
    if (threadIdx.x == 0) {
        barrier_init(cleared, 1);
#pragma unroll 1
        for (int i = 0; i < m.stages; i++) barrier_init(full + i, 1), barrier_init(full + m.stages + i, stream_warps);
        barriers_init_done();
    }
    stream_begin<GROUP>(m, step, parts, runs);
    __syncthreads();
    Stream<TILES, DIM, GROUP> s{m, step, memory, full, full + m.stages, x, gated, parts - step.block.first_part[0], runs - parts[0].first_run, added, cleared};
    s.warp = threadIdx.x / 32, s.lane = threadIdx.x % 32;
    if (step.top == 0) return;
    if (s.warp < stream_warps) {
        more_registers<stream_registers>();
        s.multiply_all();
        return;
    }
    fewer_registers<stream_other_registers>();
    if (s.warp == stream_warps && s.lane == 0) s.copy();
    if (s.warp == stream_warps + 1) s.clear_all();
}

#ifdef EMULATED
#define STREAM_GROUP(n) 8 // takes all others' heads, and is compiled once
#else
#define STREAM_GROUP(n) n
#endif
#define STREAM(TILES, DIM, GROUP)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(stream_threads, 1) stream_##TILES##_##DIM##_##GROUP(const __grid_constant__ StreamModel m) { \
        stream<TILES, DIM, STREAM_GROUP(GROUP)>(m);                                                                                                \
    }                                                                                                                                              \
    KERNEL(stream_##TILES##_##DIM##_##GROUP)
#define STREAM_TILES(DIM, GROUP) STREAM(1, DIM, GROUP) STREAM(2, DIM, GROUP) STREAM(8, DIM, GROUP)
STREAM_TILES(64, 1)
STREAM_TILES(64, 4)
STREAM_TILES(64, 8)
STREAM_TILES(128, 1)
STREAM_TILES(128, 4)
STREAM_TILES(128, 8)

// logits = the sums, times the last norm's factor; the sums are cleared for the next step, and the slots take a turn. A row of blocks to a sequence.
extern "C" __global__ void stream_logits(float *logits, long long *sums, const Said *squares, const int *pos, int *turn, const int *bad, int vocab,
                                         int width, int slices, int layers, float eps) {
    if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0) {
        bool any = false;
        for (int s = 0; s < (int)gridDim.y; s++) any |= pos[s] >= 0;
        if (any) *turn = (*turn + layers) % (3 << 28); // of three slots, so that it may begin again
    }
    int s = blockIdx.y, i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (pos[s] < 0 || i >= vocab) return;
    float sum = 0;
    for (int j = 0; j < slices; j++) sum += squares[j * stream_sequences + s].number;
    float r = *bad ? __uint_as_float(0x7fc00000u) : rsqrtf(sum / width + eps);
    for (int j = i; j < min(i + 4, vocab); j++) {
        long long at = (long long)s * vocab + j;
        logits[at] = r * sum_of(sums[at], additions(sums[at]));
        sums[at] = 0;
    }
}
KERNEL(stream_logits)
