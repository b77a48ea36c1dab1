// Attention of a decoding step.
#pragma once
#include "stream_fill.cuh"

constexpr int stream_items = 4; // of attention's work whose queries a block reads at once

template <bool SHARED, int DIM> struct StreamAttention : StreamFill<SHARED, DIM> {
    using Fill = StreamFill<SHARED, DIM>;
    using Fill::shared, Fill::meet, Fill::words, Fill::put_word;
    using StreamWarp::adds, StreamWarp::empty, StreamWarp::full, StreamWarp::items, StreamWarp::lane, StreamWarp::m, StreamWarp::next, StreamWarp::normed,
        StreamWarp::parity, StreamWarp::ring, StreamWarp::slot, StreamWarp::stage, StreamWarp::step, StreamWarp::warp, StreamWarp::when, StreamWarp::x;

    // Rows of what an item needs and of the scores of 64 keys lie so that fragments of them are read without conflicts.
    static constexpr int head_stride = DIM + 8, score_stride = 72;

    // A row of what an item needs: one of its query heads or, if it is its sequence's last, the token's key or value, which are also kept. A lane has
    // the elements lane + 32·j.
    struct Row {
        const StreamItem *item = nullptr;
        int i, adds;
        const long long *from;
        long long sum[DIM / 32];
        float turn[DIM / 32]; // the rotation's cosines, then its sines

        __device__ void look() {
            if (item)
#pragma unroll
                for (int j = 0; j < DIM / 32; j++) sum[j] = glance(from + 32 * j);
        }
        __device__ bool ready() const {
            bool all = true;
#pragma unroll
            for (int j = 0; j < DIM / 32; j++) all &= additions(sum[j]) == adds; // a head lies in one panel
            return all || !item;
        }
    };
    // The rows of an item follow each other, those of n items, too.
    __device__ Row row_of(const StreamItem *of, int n, int i, const long long *sums) const {
        int group = m.group, rows = group + 2;
        for (; i >= rows; i -= rows) of++, n--;
        Row r;
        if (n <= 0 || i >= group && !of->last) return r;
        const float *rope = m.rope + (long long)step.pos[of->s] * DIM + lane;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) r.turn[j] = rope[32 * j]; // they come while the sums are waited for
        int at = (i < group ? of->head * group + i : of->head) * DIM;
        const StreamTarget &t = m.target[i < group ? stream_q_proj : i == group ? stream_k_proj : stream_v_proj];
        r.item = of, r.i = i, r.adds = adds(t, at), r.from = sums + t.sums_at + (long long)of->s * t.stride + at + lane;
        return r;
    }
    // The row itself: times the norm's factor, with bias, normed, turned by its position.
    __device__ void finish(const Row &r, int l, bf16 *to) const {
        constexpr int n = DIM / 32;
        if (!r.item) return;
        const StreamLayer &layer = step.layer[l & 1];
        int group = m.group, s = r.item->s, head = r.item->head, pos = step.pos[s];
        bool query = r.i < group, key = r.i == group;
        const float *bias = layer.bias[query ? stream_q_proj : key ? stream_k_proj : stream_v_proj];
        const float *norm = query ? layer.q_norm : key ? layer.k_norm : nullptr;
        float v[n], rstd = step.rstd[0][l & 1][s], squares = 0;
#pragma unroll
        for (int j = 0; j < n; j++) {
            v[j] = rstd * sum_of(r.sum[j], r.adds);
            if (bias) v[j] += bias[(query ? head * group + r.i : head) * DIM + lane + 32 * j];
            squares = fmaf(v[j], v[j], squares);
        }
        if (norm) {
            float f = rsqrtf(warp_sum(squares) / DIM + m.eps);
#pragma unroll
            for (int j = 0; j < n; j++) v[j] *= f * norm[lane + 32 * j];
        }
        if (query || key) {
#pragma unroll
            for (int j = 0; j < n / 2; j++) {
                float c = r.turn[j], w = r.turn[j + n / 2], a = v[j], b = v[j + n / 2];
                v[j] = a * c - b * w, v[j + n / 2] = b * c + a * w;
            }
        }
        bf16 *kept = (key ? layer.keys : layer.values) + ((long long)s * m.positions + pos) * m.kv_heads * DIM + head * DIM + lane;
#pragma unroll
        for (int j = 0; j < n; j++) {
            bf16 b = to_bf16(query ? v[j] * m.softmax_scale : v[j]);
            if (!query) kept[32 * j] = b;
            to[lane + 32 * j] = b;
        }
    }

    // This block's items, of which it reads what some need at once.
    __device__ void attend(int l) {
        constexpr int together = shared ? 2 : 1; // rows that a warp reads at once
        int group = m.group, rows = group + 2;
        // x is not needed now.
        float *scores = (float *)x, *outs = scores + 4 * group * score_stride, *scales = outs + 2 * group * DIM;
        bf16 *heads = (bf16 *)(scales + 4 * group);
#pragma unroll 1
        for (int i = 0; i < step.mine; i += stream_items) {
            int n = min(stream_items, step.mine - i);
            meet();
#pragma unroll 1
            for (int r = warp; r < n * rows; r += together * stream_warps) {
                Row row[together];
#pragma unroll
                for (int k = 0; k < together; k++) row[k] = row_of(items + i, n, r + k * stream_warps, slot(l));
                barrier_wait(normed, l & 1);
                this->await(row);
#pragma unroll
                for (int k = 0; k < together; k++) finish(row[k], l, heads + (r + k * stream_warps) * head_stride);
            }
            meet();
#pragma unroll 1
            for (int j = 0; j < n; j += 2) {
                StreamShares both(items + i + j, n - j);
                attend_shares(l, both, heads + (j + (both.two ? warp / 4 : 0)) * rows * head_stride, scores, outs, scales);
            }
        }
    }

    // Waits for n stages, one or two, and is the first and the second; let_go says that this warp has read them.
    struct Stages {
        int n, first, second;
        __device__ int operator[](int i) const { return i ? second : first; }
    };
    __device__ Stages stages(int n) {
        Stages s = {n, stage, 0};
        barrier_wait(full + stage, parity);
        next(), s.second = stage;
        if (n == 2) barrier_wait(full + stage, parity), next();
        return s;
    }
    __device__ void let_go(const Stages &s) const {
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + s.first);
        if (lane == 0 && s.n == 2) barrier_arrive(empty + s.second);
    }

    // Outputs by tensor cores: each four of warps has its share's keys, 64 at a time. A warp has the scores of 16 of them, then a head's softmax in four
    // lanes, then 16 of each 64 elements of the outputs. Columns behind the last head repeat it. heads: those of this four.
    __device__ void attend_shares(int l, const StreamShares &both, const bf16 *heads, float *scores, float *outs, float *scales) {
        constexpr int parts = DIM / 64;
        int four = warp / 4, quad = lane % 4, element = 16 * (warp % 4) + lane / 4;
        const StreamItem &it = both.item(four);
        int group = m.group, pos = step.pos[it.s], first = first_seen(m, pos), end = min(pos, 64 * it.to), head = min(lane / 4, group - 1);
        unsigned q[DIM / 16][2];
        const bf16 *mine = heads + head * head_stride;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++)
            q[i][0] = *(const unsigned *)(mine + 16 * i + 2 * quad), q[i][1] = *(const unsigned *)(mine + 16 * i + 2 * quad + 8);
        float most = -INFINITY, sum = 0, out[parts][4] = {};
        if (it.last && (both.two || four == 0)) { // the token's own key
            const bf16 *key = heads + group * head_stride, *value = key + head_stride + element;
            float a = 0;
#pragma unroll
            for (int i = 0; i < DIM / 32; i++) {
                uint4 u = *(const uint4 *)(mine + 32 * i + 8 * quad), k = *(const uint4 *)(key + 32 * i + 8 * quad);
                a = two_products(u.x, k.x, two_products(u.y, k.y, two_products(u.z, k.z, two_products(u.w, k.w, a))));
            }
            a += __shfl_xor_sync(0xffffffffu, a, 1);
            most = a + __shfl_xor_sync(0xffffffffu, a, 2), sum = quad == 0 ? 1.f : 0.f;
#pragma unroll
            for (int t = 0; t < parts; t++) out[t][0] = out[t][1] = to_float(value[64 * t]), out[t][2] = out[t][3] = to_float(value[64 * t + 8]);
        }
        float *said = scores + 2 * four * group * score_stride, *other = said + group * score_stride;
        int rounds = both.rounds();
#pragma unroll 1
        for (int r = 0; r < rounds; r++) {
            bool has = both.has(four, r);
            int n = both.has(0, r) + both.has(1, r), own = four && n == 2, at = 64 * both.block(four, r);
            Stages k = stages(n);
            if (has) score(q, k[own], said);
            let_go(k);
            threads_sync(stream_meet_four + four, stream_workers / 2);
            Stages v = stages(n);
            if (has) {
                float p[16];
                bool part = at < first || at + 64 > end; // some are not to be seen, which may be anything
                float keep = soften(p, most, sum, said + head * score_stride + 2 * quad, at + 2 * quad, part, first, end);
                // Columns of an output are heads as the fours of lanes are of the softmax.
                float keeps[2] = {__shfl_sync(0xffffffffu, keep, 8 * quad), __shfl_sync(0xffffffffu, keep, 8 * quad + 4)};
#pragma unroll
                for (int i = 0; i < 4 * parts; i++) out[i / 4][i % 4] *= keeps[i % 2];
                const unsigned char *values =
                    ring + v[own] * stream_stage + lane / 16 * 1024 + lane % 8 * 128 + ((2 * (warp % 4) + lane / 8 % 2) ^ lane % 8) * 16;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    unsigned w[2] = {pack(p[4 * i], p[4 * i + 1]), pack(p[4 * i + 2], p[4 * i + 3])}, seen[2];
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        int c = at + 16 * i + 8 * h + 2 * quad;
                        seen[h] = (c >= first && c < end ? 0xffffu : 0) | (c + 1 >= first && c + 1 < end ? 0xffff0000u : 0);
                    }
#pragma unroll
                    for (int t = 0; t < parts; t++) {
                        unsigned a[4];
                        ldmatrix_transposed(a, values + 8192 * t + 2048 * i);
                        if (part) a[0] &= seen[0], a[1] &= seen[0], a[2] &= seen[1], a[3] &= seen[1];
                        mma(out[t], a, w);
                    }
                }
            }
            let_go(v);
            float *next = said;
            said = other, other = next;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1), sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (warp % 4 == 0 && quad == 0 && lane / 4 < group) scales[(four * group + head) * 2] = most, scales[(four * group + head) * 2 + 1] = sum;
#pragma unroll
        for (int i = 0; i < 4 * parts; i++)
            if (int h = 2 * quad + i % 2; h < group) outs[(four * group + h) * DIM + 64 * (i / 4) + element + i % 4 / 2 * 8] = out[i / 4][i % 4];
        tell(l, both, outs, scales);
    }
    // Tells others the outputs of both fours, or what they make together.
    __device__ void tell(int l, const StreamShares &both, const float *outs, const float *scales) const {
        bool two = both.two;
        int four = two ? warp / 4 : 0, group = m.group;
        const StreamItem &it = both.item(four);
        if (two)
            threads_sync(stream_meet_four + four, stream_workers / 2);
        else
            meet();
        outs += four * group * DIM, scales += four * group * 2;
        unsigned *all = words(out_of_attention, l);
        int threads = two ? stream_workers / 2 : stream_workers;
#pragma unroll 1
        for (int i = threadIdx.x % threads; i < group * DIM; i += threads) {
            int h = i / DIM;
            float top = scales[2 * h], total = scales[2 * h + 1], y = outs[i];
            if (!two) {
                float a = scales[2 * (group + h)], most = fmaxf(top, a), keep = exp2_fast(top - most), keep_a = exp2_fast(a - most);
                top = most, total = fmaf(total, keep, scales[2 * (group + h) + 1] * keep_a), y = fmaf(y, keep, outs[group * DIM + i] * keep_a);
            }
            if (shared && step.splits[it.s] == 1) {
                y /= total;
                float beside = __shfl_down_sync(0xffffffffu, y, 1);
                if (lane % 2 == 0) put_word(all + ((it.s * m.heads + it.head * group) * DIM + i) / 2, y, beside);
                continue;
            }
            long long at = (long long)(it.s * m.heads + it.head * group + h) * stream_splits + it.split;
            say(m.part_sums + at * DIM + i % DIM, y, when(l));
            if (i % DIM == 0) say(m.part_scale + 2 * at, top, when(l)), say(m.part_scale + 2 * at + 1, total, when(l));
        }
        // What has been read may be written again.
        if (two)
            threads_sync(stream_meet_four + four, stream_workers / 2);
        else
            meet();
    }
    // a + the products of two pairs of bf16.
    __device__ static float two_products(unsigned x, unsigned y, float a) {
        a = fmaf(__uint_as_float(x << 16), __uint_as_float(y << 16), a);
        return fmaf(__uint_as_float(x & 0xffff0000u), __uint_as_float(y & 0xffff0000u), a);
    }
    // The scores of this warp's 16 keys of a stage, for each head.
    __device__ void score(const unsigned (&q)[DIM / 16][2], int from, float *to) const {
        float d[2][4] = {};
        int r = 16 * (warp % 4) + lane % 8 + lane / 8 % 2 * 8;
        unsigned rows = shared_at(ring) + from * stream_stage + r * 128 + (lane / 16 ^ r & 7) * 16;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            unsigned a[4];
            ldmatrix(a, (rows ^ 32 * (i % 4)) + 8192 * (i / 4));
            mma(d[i % 2], a, q[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (int h = lane % 4 * 2 + i % 2; h < m.group) to[h * score_stride + 16 * (warp % 4) + lane / 4 + i / 2 * 8] = d[0][i] + d[1][i];
    }
    // From scores the weights of keys `at`, at + 1, at + 8, at + 9, at + 16 and so on; and what of all before is left.
    __device__ static float soften(float (&p)[16], float &most, float &sum, const float *scores, int at, bool part, int first, int end) {
        float top = most;
#pragma unroll
        for (int i = 0; i < 16; i += 2) {
            float2 u = *(const float2 *)(scores + 4 * i);
            p[i] = u.x, p[i + 1] = u.y;
            if (part) {
                int k = at + 4 * i;
                if (k < first || k >= end) p[i] = -INFINITY;
                if (k + 1 < first || k + 1 >= end) p[i + 1] = -INFINITY;
            }
            top = fmaxf(top, fmaxf(p[i], p[i + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1)), top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        float keep = top == -INFINITY ? 1.f : exp2_fast(most - top), shift = top == -INFINITY ? 0.f : top;
        sum *= keep, most = top;
#pragma unroll
        for (int i = 0; i < 16; i++) p[i] = exp2_fast(p[i] - shift), sum += p[i];
        return keep;
    }
};
