// Run is logits[s] of the token that follows tokens[s], at position pos[s] of sequence s, and appends its keys and values to the cache: one
// decoding step of a whole model. Sequences with pos[s] < 0 are skipped, their logits are left as they are. In every linear layer that has
// experts, those of ids[s] are added with weights[s], as Experts does. logits (S, V) of type Param, tokens, pos (S) i32, ids (S, n) i32,
// weights (S, n); ids and weights none if the model has no experts.
//
// On Hopper, as one kernel whose blocks stay for the whole step, one to a multiprocessor. One warp of a block copies the weights that the schedule
// (stream_plan.go) gives to the block, layer after layer, to a ring in shared memory, and waits for nothing but room. The other eight multiply what
// has come with the activations of up to 8·TILES sequences. Activations go from block to block through memory: sums of products are added up as
// integers, units of 2^-31, so that their order does not matter and a step repeats bit for bit; counters say how much of them is there. What
// is added to must be zero: there are three slots for the sums of a layer, of which one is being cleared.
//
// A norm's factor is a number for a sequence, and all between two norms is linear: it is applied where a sum is read, so that no block needs a whole row.
#include "hopper.cuh"
#include "mma.cuh"
#include "stream.cuh"

// One warp copies, eight multiply.
constexpr int stream_warps = 8, stream_workers = 32 * stream_warps, stream_threads = stream_workers + 32;

enum Phase { into_attention, out_of_attention, into_mlp, out_of_mlp, into_logits, stream_phases };

// What a block remembers of the step, in shared memory.
struct StreamStep {
    StreamPart part[stream_phases];
    int pos[stream_sequences], first_block[stream_sequences], blocks[stream_sequences], splits[stream_sequences], items[stream_sequences + 1];
    int top, shares, active; // sequences up to the last that is decoded; attention's parts of each key-value head; experts in use
    int turn;
    int expert[stream_active];
    float rstd[stream_sequences];
    float squares[stream_warps][stream_sequences];
};

template <int TILES, int DIM, int GROUP> struct Stream {
    static constexpr int columns = 8 * TILES;

    const StreamModel &m;
    StreamStep &step;
    unsigned char *ring;
    Barrier *full, *empty;
    bf16 *x, *gated;
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
    __device__ int *counters(int layer) const { return (int *)slot(layer); }

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
        for (int i = 0; i < part.runs; i++) {
            StreamRun r = m.runs[part.first_run + i];
            if (r.kind == stream_weights) {
                for (int j = 0; j < r.count; j++) {
                    unsigned char *to = room(stream_stage);
                    copy_box_once(to, maps + r.target, r.column + 64 * j, r.row, full + stage);
                    next();
                }
            } else if (r.kind == stream_down) {
                if (16 * r.row >= step.active * m.rank) continue;
                int end = part.first_column + part.columns;
                for (int j = 0; j < r.count; j++) {
                    int from = r.column + 64 * stream_warps * j, n = min(stream_warps, (end - from) / 64);
                    unsigned char *to = room(n * 2048);
                    for (int w = 0; w < n; w++)
                        for (int h = 0; h < 2; h++)
                            copy_box(to + 2048 * w + 1024 * h, maps + stream_targets + r.target, from + 64 * w, expert_row(2 * r.row + h), full + stage);
                    next();
                }
            } else {
                int eights = step.active * m.rank / 8;
                for (int k = 0; k < eights; k += 8) {
                    int n = min(8, (eights - k + 1) / 2 * 2);
                    unsigned char *to = room(n * 2048);
                    for (int j = 0; j < n; j++)
                        for (int h = 0; h < 2; h++)
                            copy_box(to + 2048 * j + 1024 * h, maps + 2 * stream_targets + r.target, r.row + 64 * h, expert_row(k + j), full + stage);
                    next();
                }
            }
        }
    }
    // The row, among those of all experts, of the i-th eight rows of the experts in use. Behind the last there is another time the last.
    __device__ int expert_row(int i) const {
        i = min(i, step.active * m.rank / 8 - 1);
        return step.expert[8 * i / m.rank] * m.rank + 8 * i % m.rank;
    }

    __device__ void copy_keys(const TensorMap *maps) {
        each_item([&](int s, int head, int split, int, int) {
            int from, to;
            blocks_of(s, split, from, to);
            for (int b = from; b < to; b++)
                for (int v = 0; v < 2; v++) {
                    unsigned char *at = room(64 * DIM * 2);
                    copy_box(at, maps + 3 * stream_targets + v, head * DIM, s * m.positions + 64 * b, full + stage);
                    next();
                }
        });
    }

    __device__ void copy() {
        for (int l = 0; l < m.layers; l++) {
            const TensorMap *maps = m.maps + l * stream_maps;
            copy_runs(maps, step.part[into_attention]);
            copy_keys(maps);
            copy_runs(maps, step.part[out_of_attention]);
            copy_runs(maps, step.part[into_mlp]);
            copy_runs(maps, step.part[out_of_mlp]);
        }
        copy_runs(m.maps + m.layers * stream_maps, step.part[into_logits]);
    }

    // ---- Attention's work: a sequence, a key-value head and some blocks of 64 keys.

    template <class F> __device__ void each_item(F f) const {
        for (int i = blockIdx.x, s = 0; i < step.items[step.top]; i += gridDim.x) {
            while (i >= step.items[s + 1]) s++;
            int j = i - step.items[s];
            f(s, j / step.splits[s], j % step.splits[s], step.pos[s], step.splits[s]);
        }
    }
    __device__ void blocks_of(int s, int split, int &from, int &to) const {
        from = step.first_block[s] + step.blocks[s] * split / step.splits[s];
        to = step.first_block[s] + step.blocks[s] * (split + 1) / step.splits[s];
    }

    // ---- The warps that multiply.

    int warp, lane;

    __device__ void meet() const { threads_sync(1, stream_workers); }

    // Waits until n counters from c on have come to a value. The first warp looks, then all meet.
    __device__ void wait(const int *c, int n, int value) const {
        if (warp == 0)
            for (int i = lane; i < n; i += 32) wait_for(c + i, value);
    }
    // Tells that n more of something are there, for this warp.
    __device__ void tell(int *counter, int n) const {
        __syncwarp();
        if (lane == 0) {
            fence_card();
            add_to(counter, n);
        }
    }

    // d += the stage's 16 rows of this warp times 64 columns of x from k on.
    __device__ void multiply(float (&d)[TILES][4], const unsigned char *rows, const bf16 *from, int stride, int k) const {
        int r = lane % 8 + lane / 8 % 2 * 8;
        const bf16 *column = from + (lane % 8) * stride + k + lane / 8 * 8;
        unsigned a[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) ldmatrix(a[i], rows + r * 128 + ((2 * i + lane / 16) ^ r & 7) * 16);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            unsigned b[2][4];
            ldmatrix(b[0], column + 8 * t * stride);
            ldmatrix(b[1], column + 8 * t * stride + 32);
#pragma unroll
            for (int i = 0; i < 4; i++) mma(d[t], a[i], b[i / 2] + i % 2 * 2);
        }
    }

    // Adds 16 rows from `row` on, of which there are rows, to sums whose sequences are stride apart, and forgets them.
    __device__ void add(float (&d)[TILES][4], long long *sums, int row, int rows, int stride) const {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row + lane / 4 + i / 2 * 8, s = 8 * t + lane % 4 * 2 + i % 2;
                if (r < rows && s < step.top) add_fixed(sums + (long long)s * stride + r, d[t][i], m.bad);
                d[t][i] = 0;
            }
    }

    __device__ void run_all(int phase, long long *sums, long long *hidden, int *counter) {
        const StreamPart &part = step.part[phase];
        int stride = part.columns + 8, ranks = step.active * m.rank, gated_for = -1;
        float d[TILES][4] = {};
        for (int i = 0; i < part.runs; i++) {
            StreamRun r = m.runs[part.first_run + i];
            const StreamTarget &t = m.target[r.target];
            if (r.kind == stream_weights) {
                for (int j = 0; j < r.count; j++) {
                    barrier_wait(full + stage, parity);
                    multiply(d, ring + stage * stream_stage + warp * 2048, x, stride, r.column - part.first_column + 64 * j);
                    release();
                }
                add(d, sums + t.sums_at, r.row + 16 * warp, t.rows, t.stride);
                if (counter) tell(counter + t.counter_at + r.row / 128, r.count);
            } else if (r.kind == stream_down) {
                if (16 * r.row >= ranks) continue;
                for (int j = 0; j < r.count; j++) {
                    barrier_wait(full + stage, parity);
                    int k = r.column - part.first_column + 64 * (stream_warps * j + warp);
                    if (k < part.columns) multiply(d, ring + stage * stream_stage + warp * 2048, x, stride, k);
                    release();
                }
                add(d, hidden + t.hidden_at, 16 * r.row, ranks, m.most_ranks);
                tell(counter + t.hidden_counter, r.count);
            } else {
                if (gated_for != r.target) gate(hidden + t.hidden_at, counter + t.hidden_counter, t.down_stages * stream_warps * ((ranks + 15) / 16));
                gated_for = r.target;
                for (int k = 0; k < ranks; k += 64) {
                    barrier_wait(full + stage, parity);
                    multiply_up(d, ring + stage * stream_stage, k, min(4, (ranks - k + 15) / 16));
                    release();
                }
                add(d, sums + t.sums_at, r.row + 16 * warp, t.rows, t.stride);
                tell(counter + t.counter_at + r.row / 128, 1);
            }
        }
    }
    __device__ void release() {
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + stage);
        next();
    }

    // The experts' hidden numbers, once they are there, times their gates, as right sides for multiply_up.
    __device__ void gate(const long long *hidden, const int *counter, int value) {
        wait(counter, 1, value);
        meet();
        int ranks = step.active * m.rank, padded = (ranks + 15) / 16 * 16, stride = m.most_ranks + 8;
        for (int i = threadIdx.x; i < padded * columns; i += stream_workers) {
            int k = i % padded, s = i / padded;
            float v = 0;
            if (k < ranks && s < step.top && step.pos[s] >= 0) {
                int e = step.expert[k / m.rank];
                float g = 0;
                for (int j = 0; j < m.chosen; j++)
                    if (m.ids[s * m.chosen + j] == e) g += m.weights[s * m.chosen + j];
                v = m.scale * g * from_fixed(read(hidden + (long long)s * m.most_ranks + k));
            }
            gated[s * stride + k] = to_bf16(v);
        }
        meet();
    }
    __device__ void multiply_up(float (&d)[TILES][4], const unsigned char *at, int k, int steps) const {
        int stride = m.most_ranks + 8, chunk = 2 * (warp % 4) + lane / 8 % 2, r = lane % 8;
        for (int i = 0; i < steps; i++) {
            unsigned a[4];
            ldmatrix_transposed(a, at + (2 * i + lane / 16) * 2048 + warp / 4 * 1024 + r * 128 + (chunk ^ r) * 16);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const bf16 *from = gated + (8 * t + lane / 4) * stride + k + 16 * i + lane % 4 * 2;
                unsigned b[2] = {*(const unsigned *)from, *(const unsigned *)(from + 8)};
                mma(d[t], a, b);
            }
        }
    }

    // ---- What a phase multiplies with: its part's columns of x.

    // f(s, c) is an element of the residual stream; x is it times the norm's weight. The first of those who have these columns keeps the stream and
    // its squares for all.
    template <class F> __device__ void fill_stream(const StreamPart &part, const float *norm, float *keep, float *squares, F f) {
        int stride = part.columns + 8;
        for (int s = 0; s < step.top; s++) {
            float sum = 0;
            for (int c = 2 * threadIdx.x; c < part.columns; c += 2 * stream_workers) {
                float2 v = make_float2(0, 0);
                int d = part.first_column + c;
                if (step.pos[s] >= 0) {
                    v = f(s, d);
                    if (part.keeps && keep) *(float2 *)(keep + (long long)s * m.width + d) = v;
                }
                sum = fmaf(v.x, v.x, fmaf(v.y, v.y, sum));
                float2 w = *(const float2 *)(norm + d);
                *(unsigned *)(x + s * stride + c) = pack(v.x * w.x, v.y * w.y);
            }
            if (part.keeps) {
                sum = warp_sum(sum);
                if (lane == 0) step.squares[warp][s] = sum;
            }
        }
        meet();
        if (part.keeps && (int)threadIdx.x < step.top) {
            float sum = 0;
            for (int w = 0; w < stream_warps; w++) sum += step.squares[w][threadIdx.x];
            squares[part.slice * stream_sequences + threadIdx.x] = sum;
        }
    }
    // Tells that the squares are there.
    __device__ void tell_squares(const StreamPart &part, int *counter) const {
        if (!part.keeps) return;
        meet();
        if (threadIdx.x == 0) fence_card(), add_to(counter, 1);
    }
    // The norm's factor of each sequence.
    __device__ void find_rstd(const float *squares, const int *counter) {
        wait(counter, 1, m.slices);
        meet();
        if ((int)threadIdx.x < step.top) {
            float sum = 0;
            for (int i = 0; i < m.slices; i++) sum += read(squares + i * stream_sequences + threadIdx.x);
            step.rstd[threadIdx.x] = rsqrtf(sum / m.width + m.eps);
        }
        meet();
    }

    __device__ float2 embedding(int s, int d) const {
        unsigned v = *(const unsigned *)(m.embed + (long long)m.tokens[s] * m.width + d);
        return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
    }
    // base + the sums of a linear layer and its bias.
    __device__ float2 plus_sums(float2 base, const long long *sums, const float *bias, int s, int d) const {
        longlong2 v = __ldcg((const longlong2 *)(sums + (long long)s * m.width + d));
        base.x += from_fixed(v.x), base.y += from_fixed(v.y);
        if (bias) base.x += bias[d], base.y += bias[d + 1];
        return base;
    }
    __device__ float2 kept(const float *keep, int s, int d) const { return __ldcg((const float2 *)(keep + (long long)s * m.width + d)); }

    __device__ void clear(long long *from, int n) const { // n even
        int share = (n / 2 + gridDim.x - 1) / gridDim.x, end = min(n / 2, share * ((int)blockIdx.x + 1));
        for (int i = share * blockIdx.x + threadIdx.x; i < end; i += stream_workers) ((longlong2 *)from)[i] = make_longlong2(0, 0);
    }

    // The residual stream behind layer l - 1, into attention or, behind the last layer, into the logits.
    __device__ void fill_from_mlp(int l, const StreamPart &part, const float *norm, float *keep, float *squares) {
        if (l == 0)
            fill_stream(part, norm, nullptr, squares, [&](int s, int d) { return embedding(s, d); });
        else
            fill_stream(part, norm, keep, squares, [&](int s, int d) {
                return plus_sums(kept(m.between, s, d), slot(l - 1) + m.target[stream_down_proj].sums_at, m.layer[l - 1].bias[stream_down_proj], s, d);
            });
    }
    __device__ void wait_columns(const int *counter, const StreamTarget &t, const StreamPart &part) const {
        int first = part.first_column / 128, end = (part.first_column + part.columns + 127) / 128;
        wait(counter + t.counter_at + first, end - first, t.complete);
    }

    __device__ void multiply_all() {
        for (int l = 0; l < m.layers; l++) {
            const StreamLayer &layer = m.layer[l];
            long long *sums = slot(l);
            int *counter = counters(l), *before = counters(l - 1);
            float *squares = m.squares + (l & 1) * 2 * m.slices * stream_sequences, *squares_mlp = squares + m.slices * stream_sequences;
            {
                const StreamPart &part = step.part[into_attention];
                if (l > 0) wait_columns(before, m.target[stream_down_proj], part);
                meet();
                clear(slot(l - 1), m.early_size);
                clear(slot(l - 2) + m.early_size, m.slot_size - m.early_size);
                if (part.runs) {
                    fill_from_mlp(l, part, layer.input_norm, m.stream, squares);
                    tell_squares(part, counter + m.squares_at);
                    meet();
                    run_all(into_attention, sums, sums, counter);
                }
            }
            attend(l, layer, sums, counter, squares);
            if (const StreamPart &part = step.part[out_of_attention]; part.runs) {
                int first = part.first_column / DIM / group_size(), end = (part.first_column + part.columns - 1) / DIM / group_size() + 1;
                wait(counter + m.attended_at + first, end - first, step.shares);
                meet();
                fill_attended(part);
                meet();
                run_all(out_of_attention, sums, sums, counter);
            }
            if (const StreamPart &part = step.part[into_mlp]; part.runs) {
                wait_columns(counter, m.target[stream_o_proj], part);
                meet();
                const long long *o = sums + m.target[stream_o_proj].sums_at;
                const float *bias = layer.bias[stream_o_proj];
                fill_stream(part, layer.post_norm, m.between, squares_mlp, [&](int s, int d) {
                    return plus_sums(l == 0 ? embedding(s, d) : kept(m.stream, s, d), o, bias, s, d);
                });
                tell_squares(part, counter + m.squares_mlp_at);
                meet();
                run_all(into_mlp, sums, sums, counter);
            }
            if (const StreamPart &part = step.part[out_of_mlp]; part.runs) {
                wait_columns(counter, m.target[stream_gate_proj], part);
                wait_columns(counter, m.target[stream_up_proj], part);
                find_rstd(squares_mlp, counter + m.squares_mlp_at);
                fill_mlp(part, layer, sums);
                meet();
                run_all(out_of_mlp, sums, sums, counter);
            }
        }
        const StreamPart &part = step.part[into_logits];
        if (!part.runs) return;
        wait_columns(counters(m.layers - 1), m.target[stream_down_proj], part);
        meet();
        fill_from_mlp(m.layers, part, m.norm, nullptr, m.logit_squares);
        meet();
        run_all(into_logits, m.logits, nullptr, nullptr);
    }
    __device__ int group_size() const { return m.heads / m.kv_heads; }

    __device__ void fill_attended(const StreamPart &part) {
        int stride = part.columns + 8;
        for (int s = 0; s < step.top; s++) {
            int n = step.splits[s];
            for (int c = 2 * threadIdx.x; c < part.columns; c += 2 * stream_workers) {
                int d = part.first_column + c;
                float2 v = make_float2(0, 0);
                if (step.pos[s] >= 0) {
                    long long at = (long long)(s * m.heads + d / DIM) * stream_splits;
                    float most = -INFINITY, sum = 0;
                    for (int j = 0; j < n; j++) most = fmaxf(most, read(m.part_scale + 2 * (at + j)));
                    for (int j = 0; j < n; j++) {
                        float2 scale = __ldcg((const float2 *)(m.part_scale + 2 * (at + j)));
                        float2 o = __ldcg((const float2 *)(m.part_sums + (at + j) * DIM + d % DIM));
                        float w = exp2_fast(scale.x - most);
                        sum = fmaf(w, scale.y, sum), v.x = fmaf(w, o.x, v.x), v.y = fmaf(w, o.y, v.y);
                    }
                    v.x /= sum, v.y /= sum;
                }
                *(unsigned *)(x + s * stride + c) = pack(v.x, v.y);
            }
        }
    }
    __device__ void fill_mlp(const StreamPart &part, const StreamLayer &layer, const long long *sums) {
        const StreamTarget &g = m.target[stream_gate_proj], &u = m.target[stream_up_proj];
        const float *gate_bias = layer.bias[stream_gate_proj], *up_bias = layer.bias[stream_up_proj];
        int stride = part.columns + 8;
        for (int s = 0; s < step.top; s++)
            for (int c = 2 * threadIdx.x; c < part.columns; c += 2 * stream_workers) {
                int d = part.first_column + c;
                float y[2] = {0, 0};
                if (step.pos[s] >= 0) {
                    longlong2 a = __ldcg((const longlong2 *)(sums + g.sums_at + (long long)s * g.stride + d));
                    longlong2 b = __ldcg((const longlong2 *)(sums + u.sums_at + (long long)s * u.stride + d));
                    float r = step.rstd[s], ga[2] = {r * from_fixed(a.x), r * from_fixed(a.y)}, up[2] = {r * from_fixed(b.x), r * from_fixed(b.y)};
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if (gate_bias) ga[i] += gate_bias[d + i];
                        if (up_bias) up[i] += up_bias[d + i];
                        y[i] = ga[i] / (1 + exp2_fast(-1.4426950408889634f * ga[i])) * up[i];
                    }
                }
                *(unsigned *)(x + s * stride + c) = pack(y[0], y[1]);
            }
    }

    // ---- Attention.

    // This warp's head of a row of sums: times the norm's factor, with bias, normed, turned by its position. A lane has the elements lane + 32·j.
    __device__ void head_of(float (&v)[DIM / 32], const long long *sums, float rstd, const float *bias, const float *norm, const float *rope) const {
        constexpr int n = DIM / 32;
        float squares = 0;
#pragma unroll
        for (int j = 0; j < n; j++) {
            int i = lane + 32 * j;
            v[j] = rstd * from_fixed(read(sums + i));
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
            float c = rope[lane + 32 * j], w = rope[DIM / 2 + lane + 32 * j], a = v[j], b = v[j + n / 2];
            v[j] = a * c - b * w, v[j + n / 2] = b * c + a * w;
        }
    }

    __device__ void attend(int l, const StreamLayer &layer, const long long *sums, int *counter, const float *squares) {
        if ((int)blockIdx.x >= step.items[step.top]) return;
        find_rstd(squares, counter + m.squares_at);
        const StreamTarget &tq = m.target[stream_q_proj], &tk = m.target[stream_k_proj], &tv = m.target[stream_v_proj];
        int group = group_size();
        // x is not needed now.
        float *q = (float *)x, *fresh = q + GROUP * DIM, *scales = fresh + 2 * DIM, *outs = scales + 2 * stream_warps;
        each_item([&](int s, int head, int split, int pos, int splits) {
            bool last = split == splits - 1;
            wait(counter + tq.counter_at + head * group * DIM / 128, ((head + 1) * group * DIM + 127) / 128 - head * group * DIM / 128, tq.complete);
            if (last) {
                wait(counter + tk.counter_at + head * DIM / 128, 1, tk.complete);
                wait(counter + tv.counter_at + head * DIM / 128, 1, tv.complete);
            }
            meet();
            const float *rope = m.rope + (long long)pos * DIM;
            float rstd = step.rstd[s];
            for (int i = warp; i < group + (last ? 2 : 0); i += stream_warps) {
                float v[DIM / 32];
                if (i < group) {
                    int at = (head * group + i) * DIM;
                    head_of(v, sums + tq.sums_at + (long long)s * tq.stride + at, rstd, layer.bias[stream_q_proj] ? layer.bias[stream_q_proj] + at : nullptr,
                            layer.q_norm, rope);
                } else {
                    const StreamTarget &t = i == group ? tk : tv;
                    const float *bias = layer.bias[i == group ? stream_k_proj : stream_v_proj];
                    head_of(v, sums + t.sums_at + (long long)s * t.stride + head * DIM, rstd, bias ? bias + head * DIM : nullptr,
                            i == group ? layer.k_norm : nullptr, i == group ? rope : nullptr);
                }
                bf16 *row = (i == group ? layer.keys : layer.values) + ((long long)s * m.positions + pos) * m.kv_heads * DIM + head * DIM;
#pragma unroll
                for (int j = 0; j < DIM / 32; j++) {
                    int c = lane + 32 * j;
                    if (i < group) {
                        q[i * DIM + c] = v[j] * m.softmax_scale;
                    } else {
                        row[c] = to_bf16(v[j]);
                        fresh[(i - group) * DIM + c] = to_float(row[c]); // as later steps will read it
                    }
                }
            }
            meet();
            attend_item(s, head, split, pos, last, q, fresh, scales, outs);
            if (threadIdx.x == 0) fence_card(), add_to(counter + m.attended_at + head, 1);
        });
    }

    __device__ void attend_item(int s, int head, int split, int pos, bool last, const float *q, const float *fresh, float *scales, float *outs) {
        constexpr int each = DIM / 32; // numbers of an output that a lane has
        int group = group_size(), first = m.window > 0 ? max(0, pos - m.window + 1) : 0, from, to;
        blocks_of(s, split, from, to);
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
            if (last && warp == 0) { // the token's own key
                float a = 0;
#pragma unroll
                for (int i = 0; i < each; i++) a = fmaf(q[h * DIM + lane * each + i], fresh[lane * each + i], a);
                a = warp_sum(a);
                float top = fmaxf(most[h], a), keep = exp2_fast(most[h] - top), w = exp2_fast(a - top);
                sum[h] = fmaf(sum[h], keep, w), most[h] = top;
#pragma unroll
                for (int i = 0; i < each; i++) out[h][i] = fmaf(out[h][i], keep, w * fresh[DIM + lane * each + i]);
            }
            if (lane == 0) scales[2 * warp] = most[h], scales[2 * warp + 1] = sum[h];
#pragma unroll
            for (int i = 0; i < each; i++) outs[warp * DIM + lane * each + i] = out[h][i];
            meet();
            if (threadIdx.x < DIM) {
                float top = -INFINITY, total = 0, o = 0;
#pragma unroll
                for (int w = 0; w < stream_warps; w++) top = fmaxf(top, scales[2 * w]);
#pragma unroll
                for (int w = 0; w < stream_warps; w++) {
                    float f = scales[2 * w] == -INFINITY ? 0.f : exp2_fast(scales[2 * w] - top);
                    total = fmaf(f, scales[2 * w + 1], total), o = fmaf(f, outs[w * DIM + threadIdx.x], o);
                }
                long long at = (long long)(s * m.heads + head * group + h) * stream_splits + split;
                m.part_sums[at * DIM + threadIdx.x] = o;
                if (threadIdx.x == 0) m.part_scale[2 * at] = top, m.part_scale[2 * at + 1] = total;
            }
            meet();
        }
    }
};

// What all blocks find out alike before the step: which sequences there are, how their keys are divided, which experts they use.
template <int GROUP> __device__ void stream_begin(const StreamModel &m, StreamStep &step) {
    __shared__ unsigned used[stream_experts / 32];
    for (int i = threadIdx.x; i < stream_phases; i += stream_threads) step.part[i] = m.parts[blockIdx.x * stream_phases + i];
    for (int i = threadIdx.x; i < stream_experts / 32; i += stream_threads) used[i] = 0;
    for (int s = threadIdx.x; s < m.sequences; s += stream_threads) step.pos[s] = m.pos[s];
    __syncthreads();
    if (threadIdx.x == 0) {
        int live = 0;
        step.top = 0, step.turn = *m.turn % 3;
        for (int s = 0; s < m.sequences; s++)
            if (step.pos[s] >= 0) live++, step.top = s + 1;
        // So many parts of the keys of a sequence's head that all blocks have something to do.
        int wanted = min(stream_splits, max(1, (int)gridDim.x / max(1, live * m.kv_heads)));
        step.items[0] = step.shares = 0;
        for (int s = 0; s < step.top; s++) {
            int pos = step.pos[s], from = m.window > 0 ? max(0, pos - m.window + 1) / 64 : 0;
            step.first_block[s] = from, step.blocks[s] = pos < 0 ? 0 : (pos + 63) / 64 - from;
            int splits = step.splits[s] = pos < 0 ? 0 : max(1, min(wanted, step.blocks[s]));
            step.shares += splits;
            step.items[s + 1] = step.items[s] + splits * m.kv_heads;
        }
    }
    if (m.chosen > 0)
        for (int i = threadIdx.x; i < m.sequences * m.chosen; i += stream_threads) {
            int e = m.ids[i];
            if (step.pos[i / m.chosen] >= 0 && e >= 0 && e < m.experts) atomicOr(&used[e / 32], 1u << e % 32);
        }
    __syncthreads();
    if (threadIdx.x == 0) {
        int n = 0;
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
    Barrier *full = (Barrier *)(end + stream_step_size);
    if (threadIdx.x == 0) {
        for (int i = 0; i < m.stages; i++) barrier_init(full + i, 1), barrier_init(full + m.stages + i, stream_warps);
        barriers_init_done();
    }
    stream_begin<GROUP>(m, step);
    __syncthreads();
    Stream<TILES, DIM, GROUP> s{m, step, memory, full, full + m.stages, x, gated};
    s.warp = threadIdx.x / 32, s.lane = threadIdx.x % 32;
    if (step.top == 0) return;
    if (s.warp == stream_warps) {
        if (s.lane == 0) s.copy();
    } else {
        s.multiply_all();
    }
}

#define STREAM(TILES, DIM, GROUP)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(stream_threads, 1) stream_##TILES##_##DIM##_##GROUP(const __grid_constant__ StreamModel m) { \
        stream<TILES, DIM, GROUP>(m);                                                                                                              \
    }
STREAM(1, 64, 1)
STREAM(1, 64, 4)
STREAM(2, 64, 1)
STREAM(1, 128, 1)
STREAM(2, 128, 1)

// logits = the sums, times the last norm's factor; the sums are cleared for the next step, and the slots take a turn. A row of blocks to a sequence.
extern "C" __global__ void stream_logits(float *logits, long long *sums, const float *squares, const int *pos, int *turn, const int *bad, int vocab,
                                         int width, int slices, int layers, float eps) {
    if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0) {
        bool any = false;
        for (int s = 0; s < (int)gridDim.y; s++) any |= pos[s] >= 0;
        if (any) *turn = (*turn + layers) % 3;
    }
    int s = blockIdx.y, i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (pos[s] < 0 || i >= vocab) return;
    float sum = 0;
    for (int j = 0; j < slices; j++) sum += squares[j * stream_sequences + s];
    float r = *bad ? __uint_as_float(0x7fc00000u) : rsqrtf(sum / width + eps);
    for (int j = i; j < min(i + 4, vocab); j++) {
        long long at = (long long)s * vocab + j;
        logits[at] = r * from_fixed(sums[at]);
        sums[at] = 0;
    }
}
