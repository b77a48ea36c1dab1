// What a phase of a decoding step multiplies with. A sequence alone: each block makes the columns of its parts of it. Several: blocks share the work,
// and each then reads its columns of what all have made.
#pragma once
#include "mma.cuh"
#include "stream_block.cuh"

constexpr int stream_together = 2;      // pairs of numbers that a thread reads at once, of a sequence alone
constexpr int stream_together_read = 8; // fours of words, of several sequences

// SHARED: whether blocks share the work.
template <bool SHARED, int DIM> struct StreamFill : StreamWarp {
    static constexpr bool shared = SHARED;

    __device__ void meet() const { threads_sync(stream_meet, stream_workers); }

    // Looks at all of v, as often as some are not ready. One look follows the other as fast as they can, for nothing else says that something has come:
    // a look that finds nothing must be no more than loads and comparisons.
    template <class T, int n> __device__ static void await(T (&v)[n]) {
        Patience patience;
        for (bool ready = false; !ready; patience.wait()) {
            ready = true;
#pragma unroll
            for (int i = 0; i < n; i++) v[i].look();
#pragma unroll
            for (int i = 0; i < n; i++) ready &= v[i].ready();
        }
    }

    // For each pair of columns c, c + 1 of a part prepare(0, c, v), which says where v is to be seen, and store(0, c, v) once v is ready. A new v is.
    template <class T, class P, class S> __device__ void each_pair(const StreamPart &part, P prepare, S store) const {
#pragma unroll 1
        for (int c = 2 * threadIdx.x; c < part.columns; c += 2 * stream_workers * stream_together) {
            T v[stream_together];
#pragma unroll
            for (int i = 0; i < stream_together; i++)
                if (int d = c + 2 * stream_workers * i; d < part.columns) prepare(0, part.first_column + d, v[i]);
            await(v);
#pragma unroll
            for (int i = 0; i < stream_together; i++)
                if (int d = c + 2 * stream_workers * i; d < part.columns) store(0, part.first_column + d, v[i]);
        }
    }

    // The same, prepare(s, c, v) and store(s, c, v), of this warp's share of all blocks' pairs, but those of skipped sequences: it has slices of some columns of
    // a sequence each, of `slices` in a sequence, and end(s, slice) behind each. It reads `together` pairs at once. Returns whether there were any.
    template <class T, int together, class P, class S, class E>
    __device__ bool each_shared(int width, int slices, int columns, P prepare, S store, E end) const {
        int n = slices * step.top, sharers = step.block.sharers * stream_warps;
        bool any = false;
        // Slices of all sequences are counted. A warp has 64 columns at a time, from c on.
        for (int i = step.block.share + step.block.sharers * warp, c = 0; i < n;) {
            int s[together], slice[together], at[together];
            bool live[together], over[together];
#pragma unroll
            for (int j = 0; j < together; j++) {
                slice[j] = step.top == 1 ? i : (int)((unsigned long long)i * step.per_top >> 32), s[j] = i - slice[j] * step.top;
                at[j] = slice[j] * columns + c + 2 * lane;
                any |= live[j] = i < n && step.pos[s[j]] >= 0;
                over[j] = (c += 64) >= min(columns, width - slice[j] * columns);
                if (over[j]) c = 0, i += sharers;
            }
            T v[together];
#pragma unroll
            for (int j = 0; j < together; j++)
                if (live[j]) prepare(s[j], at[j], v[j]);
            await(v);
#pragma unroll
            for (int j = 0; j < together; j++)
                if (live[j]) {
                    store(s[j], at[j], v[j]);
                    if (over[j]) __syncwarp(), end(s[j], slice[j]);
                }
        }
        __syncwarp();
        return any;
    }

    // Where all find what a phase of layer l multiplies with, rows of its columns: a word of two is 0 until it is there, and its complement then.
    __device__ unsigned *words(int phase, int l) const { return (unsigned *)(slot(phase == into_logits ? l - 1 : l) + m.x_at[phase]); }
    // Two columns of a row, to this block's part or to all; `width` columns are in a row of `to`.
    __device__ void put(const StreamPart &part, unsigned *to, int width, int s, int c, float a, float b) const {
        if constexpr (shared)
            put_word(to + ((long long)s * width + c) / 2, a, b);
        else
            *(unsigned *)(x + c - part.first_column) = pack(a, b);
    }
    __device__ static void put_word(unsigned *to, float a, float b) {
        unsigned w = ~pack(a, b);
        store_word(to, w + !w); // NaN of all ones is another NaN then
    }
    // Four words.
    struct Words {
        const uint4 *from = nullptr;
        uint4 v = {~0u, ~0u, ~0u, ~0u};
        __device__ bool ready() const { return v.x && v.y && v.z && v.w; }
        __device__ void look() {
            if (from) v = glance(from);
            if (ready()) from = nullptr;
        }
    };
    // A part's columns of what all have made. Threads read four words each, which follow each other by columns, then by sequence.
    __device__ void read_words(int phase, int l, const StreamPart &part) const {
        constexpr int together = stream_together_read;
        int width = phase == out_of_mlp ? m.target[stream_gate_proj].rows : phase == out_of_attention ? m.heads * DIM : m.width;
        const unsigned *from = words(phase, l) + part.first_column / 2;
        int n = part.columns / 8, s = threadIdx.x / n, c = threadIdx.x - s * n, rows = stream_workers / n, rest = stream_workers - rows * n;
        auto advance = [&](int &s, int &c) {
            s += rows, c += rest;
            if (c >= n) c -= n, s++;
        };
#pragma unroll 1
        while (s < step.top) {
            Words w[together];
            int r = s, d = c;
#pragma unroll
            for (int j = 0; j < together; j++) {
                if (r < step.top && step.live >> r & 1) w[j].v.x = 0, w[j].from = (const uint4 *)(from + (long long)r * (width / 2)) + d;
                advance(r, d);
            }
            await(w);
#pragma unroll
            for (int j = 0; j < together; j++) {
                const uint4 &v = w[j].v;
                if (s < step.top) *(uint4 *)(x + s * (part.columns + 8) + 8 * c) = make_uint4(~v.x, ~v.y, ~v.z, ~v.w);
                advance(s, c);
            }
        }
    }

    // Two columns' sums; of the residual stream the norm's weights, too, and before the first layer the embedding and no sums.
    struct Pair {
        const longlong2 *from = nullptr;
        longlong2 sum = {0, 0};
        float2 embedding, norm;
        int adds = 0;
        __device__ bool ready() const { return additions(sum.x) == adds && additions(sum.y) == adds; }
        __device__ void look() {
            if (from) sum = glance(from);
        }
    };
    // The residual stream before a phase of layer l, times its norm's weight: the embedding or the sums of the linear layer before, to which it has
    // been added. It is added, with its bias, to the sums of the linear layer that comes next, and others are told the sums of its squares: by whoever
    // makes it for all, or by each warp of one block of those that make a slice for themselves. Returns whether this warp has seen any sums, if
    // blocks share the work.
    __device__ bool fill_stream(int phase, int l, const StreamPart &part) {
        const StreamLayer &layer = step.layer[l & 1]; // none behind the last
        const float *norm = phase == into_logits ? m.norm : phase == into_mlp ? layer.post_norm : layer.input_norm;
        const StreamTarget &before = m.target[phase == into_mlp ? stream_o_proj : stream_down_proj];
        const long long *sums = slot(phase == into_mlp ? l : l - 1) + before.sums_at;
        bool embedded = phase == into_attention && l == 0;
        int after = phase == into_mlp ? stream_down_proj : stream_o_proj;
        long long *keep = phase == into_logits ? nullptr : slot(l) + m.target[after].sums_at;
        const float *bias = phase == into_logits ? nullptr : layer.bias[after];
        Said *squares = phase == into_mlp ? m.squares_mlp : phase == into_attention ? m.squares : m.logit_squares;
        bool kept = shared || part.keep_slice >= 0;
        unsigned *to = words(phase, l);
        float square = 0;
        bool overflow = false, any = true;
        auto prepare = [&](int s, int c, Pair &v) {
            v.norm = *(const float2 *)(norm + c), v.embedding = make_float2(0, 0);
            if (embedded) {
                unsigned e = *(const unsigned *)(m.embed + (long long)m.tokens[s] * m.width + c);
                v.embedding = make_float2(__uint_as_float(e << 16), __uint_as_float(e & 0xffff0000u));
            } else {
                v.adds = adds(before, c), v.from = (const longlong2 *)(sums + (long long)s * m.width + c);
            }
        };
        auto store = [&](int s, int c, const Pair &v) {
            float2 y = make_float2(v.embedding.x + sum_of(v.sum.x, v.adds), v.embedding.y + sum_of(v.sum.y, v.adds));
            put(part, to, m.width, s, c, y.x * v.norm.x, y.y * v.norm.y);
            if (kept) {
                if (keep) {
                    long long *to = keep + (long long)s * m.width + c;
                    overflow |= add_to_sum(to, y.x + (bias ? bias[c] : 0.f)), overflow |= add_to_sum(to + 1, y.y + (bias ? bias[c + 1] : 0.f));
                }
                square = fmaf(y.x, y.x, fmaf(y.y, y.y, square));
            }
        };
        if constexpr (shared) {
            any = each_shared<Pair, 2>(m.width, m.slices, m.slice_width, prepare, store, [&](int s, int slice) {
                float sum = warp_sum(square);
                square = 0;
                if (lane == 0) say(squares + slice * stream_sequences + s, sum, when(l));
            });
        } else {
            each_pair<Pair>(part, prepare, store);
            if (kept) {
                float sum = warp_sum(square);
                if (lane == 0) say(squares + (part.keep_slice * stream_warps + warp) * stream_sequences, sum, when(l));
            }
        }
        if (overflow) *m.bad = 1;
        return any;
    }

    // Attention's output: its parts, each times its share of the softmax. What is in one part has been made already if blocks share the work.
    struct Attended {
        const Said2 *scales, *outs;
        int n = 0, now; // parts that are not there, and what marks them
        float2 v;
        float sum; // of the softmax, by which v is still to be divided
        __device__ bool ready() const { return n == 0; }
        __device__ void look() {
            if (n == 0) return;
            float most = -INFINITY;
            sum = v.x = v.y = 0;
#pragma unroll 1
            for (int j = 0; j < n; j += 2) {
                Said2 scale[2], o[2];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (j + i < n) scale[i] = glance(scales + j + i), o[i] = glance(outs + (j + i) * (DIM / 2));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (j + i >= n) break;
                    if (!(scale[i].a.when == now && scale[i].b.when == now && o[i].a.when == now && o[i].b.when == now)) return;
                    float top = fmaxf(most, scale[i].a.number), keep = exp2_fast(most - top), w = exp2_fast(scale[i].a.number - top);
                    sum = fmaf(sum, keep, w * scale[i].b.number), v.x = fmaf(v.x, keep, w * o[i].a.number);
                    v.y = fmaf(v.y, keep, w * o[i].b.number), most = top;
                }
            }
            n = 0;
        }
    };
    __device__ void fill_attended(int l, const StreamPart &part) {
        int width = m.heads * DIM;
        unsigned *to = words(out_of_attention, l);
        auto prepare = [&](int s, int c, Attended &a) {
            int n = step.splits[s];
            if (shared && n == 1) return;
            long long at = (long long)(s * m.heads + c / DIM) * stream_splits;
            a.n = n, a.now = when(l), a.scales = (const Said2 *)m.part_scale + at, a.outs = (const Said2 *)(m.part_sums + at * DIM + c % DIM);
        };
        auto store = [&](int s, int c, const Attended &a) {
            if (!shared || step.splits[s] > 1) put(part, to, width, s, c, a.v.x / a.sum, a.v.y / a.sum);
        };
        if constexpr (shared)
            each_shared<Attended, 1>(width, width / 64, 64, prepare, store, [](int, int) {});
        else
            each_pair<Attended>(part, prepare, store);
    }

    // The MLP's gate and what it lets through.
    struct GateUp {
        Pair gate, up;
        __device__ bool ready() const { return gate.ready() && up.ready(); }
        __device__ void look() {
            if (!gate.ready()) gate.look();
            if (!up.ready()) up.look();
        }
    };
    __device__ void fill_mlp(int l, const StreamPart &part) {
        const StreamLayer &layer = step.layer[l & 1];
        const long long *sums = slot(l);
        const StreamTarget &g = m.target[stream_gate_proj], &u = m.target[stream_up_proj];
        const float *gate_bias = layer.bias[stream_gate_proj], *up_bias = layer.bias[stream_up_proj], *factor = step.rstd[1][l & 1];
        unsigned *to = words(out_of_mlp, l);
        auto prepare = [&](int s, int c, GateUp &v) {
            v.gate.adds = adds(g, c), v.gate.from = (const longlong2 *)(sums + g.sums_at + (long long)s * g.stride + c);
            v.up.adds = adds(u, c), v.up.from = (const longlong2 *)(sums + u.sums_at + (long long)s * u.stride + c);
        };
        auto store = [&](int s, int c, const GateUp &v) {
            barrier_wait(normed + 1, l & 1);
            float rstd = factor[s];
            float a[2] = {rstd * sum_of(v.gate.sum.x, v.gate.adds), rstd * sum_of(v.gate.sum.y, v.gate.adds)};
            float b[2] = {rstd * sum_of(v.up.sum.x, v.up.adds), rstd * sum_of(v.up.sum.y, v.up.adds)};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (gate_bias) a[i] += gate_bias[c + i];
                if (up_bias) b[i] += up_bias[c + i];
                a[i] = a[i] / (1 + exp2_fast(-1.4426950408889634f * a[i])) * b[i];
            }
            put(part, to, g.rows, s, c, a[0], a[1]);
        };
        if constexpr (shared)
            each_shared<GateUp, 3>(g.rows, g.rows / 64, 64, prepare, store, [](int, int) {});
        else
            each_pair<GateUp>(part, prepare, store);
    }

    // Makes what a phase multiplies with, for a part or, if blocks share the work, this block's share. Returns whether this warp has seen sums of the
    // residual stream.
    __device__ bool fill(int phase, int l, const StreamPart &part) {
        if (phase != out_of_attention && phase != out_of_mlp) return fill_stream(phase, l, part);
        if (phase == out_of_attention)
            fill_attended(l, part);
        else
            fill_mlp(l, part);
        return false;
    }
};
