// The warps of a block that do not multiply: one that copies, one that clears and one that finds norms' factors.
#pragma once
#include "stream_block.cuh"

// Copies all that a block multiplies, keys and values, too, to the ring, in the order in which it is used.
template <int DIM, bool SHARED> struct StreamCopier : StreamWarp {
    int ahead = 0, oldest = 0;
    unsigned oldest_parity = 0;

    // Waits for room, and until no more than some copies are under way: more of them delay what blocks tell each other.
    __device__ unsigned char *room(int bytes) {
        int most = m.under_way;
        // One lane looks, atomically as it is written.
        if (SHARED && __shfl_sync(0xffffffffu, lane == 0 ? atomicOr(&step.filling, 0u) : 0u, 0)) most = m.under_way_filling;
#pragma unroll 1
        for (; ahead >= most; ahead--) {
            barrier_wait(full + oldest, oldest_parity);
            if (++oldest == m.stages) oldest = 0, oldest_parity ^= 1;
        }
        ahead++;
        barrier_wait(empty + stage, parity ^ 1);
        if (lane == 0) barrier_arrive_expecting(full + stage, bytes);
        __syncwarp();
        return ring + stage * stream_stage;
    }

    __device__ void copy_runs(const TensorMap *maps, const StreamPart &part) {
        int ranks = step.active * m.rank;
#pragma unroll 1
        for (int i = 0; i < part.runs; i++) {
            const StreamRun &r = runs[part.first_run + i];
            const TensorMap *down = maps + stream_targets + r.target;
            if (r.kind == stream_down) {
                if (16 * r.row < ranks) copy_down(down, r.column, r.count, r.row);
                continue;
            }
#pragma unroll 1
            for (int j = 0; j < r.count; j++) {
                unsigned char *to = room(stream_stage);
                if (lane == 0) copy_box_once(to, maps + r.target, r.column + 64 * j, r.row, full + stage);
                next();
            }
            if (r.kind == stream_weights) continue;
#pragma unroll 1
            for (int q = 0; 16 * q < ranks && r.kind == stream_weights_and_experts; q++) copy_down(down, r.column, r.count, q);
            copy_up(down + stream_targets, r, ranks / 8);
        }
    }
    // 16 rows of A, by stages of eight times 64 columns, of which a lane copies a box.
    __device__ void copy_down(const TensorMap *map, int column, int count, int group) {
        int boxes = 16 / m.down_box;
#pragma unroll 1
        for (int j = 0; j < count; j += stream_warps) {
            int n = min(stream_warps, count - j), c = boxes == 2 ? lane / 2 : lane, e = boxes == 2 ? lane % 2 : 0;
            unsigned char *to = room(n * 2048);
            if (c < n) copy_box(to + 2048 * c + 1024 * e, map, column + 64 * (j + c), eights[2 * group + e].row, full + stage);
            next();
        }
    }
    // What of B a run's 128 rows are multiplied with, of `ranks` eights, by stages of 64.
    __device__ void copy_up(const TensorMap *map, const StreamRun &r, int ranks) {
        // A box that lies wholly outside of its matrix never comes.
        int halves = r.row + 64 < m.target[r.target].rows ? 2 : 1, h = lane % 2, j = lane / 2 * (m.up_box / 8);
#pragma unroll 1
        for (int k = 0; k < ranks; k += 8) {
            int n = min(8, (ranks - k + 1) / 2 * 2);
            unsigned char *to = room(n * halves * 1024);
            if (j < n && h < halves) copy_box(to + 8192 * h + 1024 * j, map, r.row + 64 * h, eights[k + j].row, full + stage);
            next();
        }
    }
    // In each round the keys of both fours of warps, then the values.
    __device__ void copy_keys(const TensorMap *maps) {
#pragma unroll 1
        for (int i = 0; i < step.mine; i += 2) {
            StreamShares both(items + i, step.mine - i);
            int rounds = both.rounds();
#pragma unroll 1
            for (int j = 0; j < 4 * rounds; j++) {
                int four = j % 2, round = j / 4;
                if (!both.has(four, round)) continue;
                const StreamItem &it = both.item(four);
                unsigned char *to = room(64 * DIM * 2);
                if (lane < DIM / 64)
                    copy_box_once(to + 8192 * lane, maps + j / 2 % 2, it.head * DIM + 64 * lane, it.s * m.positions + 64 * both.block(four, round), full + stage);
                next();
            }
        }
    }

    // Brings the maps of a phase near, of which the first use would wait for them.
    __device__ void expect(const TensorMap *maps, int phase) const {
        int t = lane / 3; // the output projection's is behind those of a layer
        if (t <= stream_targets && phase_of(t) == phase && (lane % 3 == 0 || m.adapted >> t & 1)) prefetch_map(maps + lane % 3 * stream_targets + t);
    }
    __device__ void copy_all() {
        expect(m.maps, into_attention);
#pragma unroll 1
        for (int i = 0; i <= 4 * m.layers; i++) {
            const TensorMap *maps = m.maps + i / 4 * stream_maps;
            int phase = i == 4 * m.layers ? into_logits : i % 4;
            if (i < 4 * m.layers) expect(m.maps + (i + 1) / 4 * stream_maps, i + 1 == 4 * m.layers ? into_logits : (i + 1) % 4);
            if (phase == into_attention && lane < 2) prefetch_map(maps + 3 * stream_targets + lane);
#pragma unroll 1
            for (int k = step.block.first_part[phase]; k < step.block.first_part[phase + 1]; k++) copy_runs(maps, parts[k]);
            if (phase == into_attention) copy_keys(maps + 3 * stream_targets);
        }
    }
};

// Clears the sums that are not in use. A layer's may be used again when those who see its additions into the MLP know that this is done.
struct StreamClearer : StreamWarp {
    __device__ void clear(long long *from, int n) const { // n even
        int share = (n / 2 + step.block.clearers - 1) / step.block.clearers, end = min(n / 2, share * (step.block.clear + 1));
#pragma unroll 1
        for (int i = share * step.block.clear + lane; i < end; i += 32) ((longlong2 *)from)[i] = make_longlong2(0, 0);
    }
    __device__ void clear_all() const {
        if (!step.block.clearers) return;
        const StreamTarget &t = m.target[stream_down_proj];
#pragma unroll 1
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
};

// Finds the factors of the norms before attention and before the MLP, when all sums of squares are there. A lane has every 32nd sequence or, of a
// sequence alone, every 32nd of its sums. In a block that nobody waits for, others may already be at a later layer: then what it finds is of no use to
// anybody, but it must not wait for ever. Between a layer's two norms it waits for its own block's warps, of which one has waited for all factors before:
// it neither passes them nor writes what they read.
template <bool SHARED> struct StreamNormer : StreamWarp {
    static constexpr int together = SHARED ? 16 : 4; // sums that are looked at at once

    // The sum of a sequence's sums number first, first + every and so on.
    __device__ float squares_of(const Said *squares, int first, int every, int l) const {
        float sum;
        Patience patience;
        for (bool ready = false; !ready; patience.wait()) {
            ready = true, sum = 0;
#pragma unroll together
            for (int j = first; j < m.squares_of_one; j += every) {
                Said v = glance(squares + j * stream_sequences);
                ready &= since(v.when, when(l), m.layers - l), sum += v.number;
            }
        }
        return sum;
    }
    __device__ void norm_all() const {
#pragma unroll 1
        for (int i = 0; i < 2 * m.layers; i++) {
            int l = i / 2, mlp = i % 2;
            if (mlp) threads_sync(stream_used, stream_workers + 32);
            const Said *squares = mlp ? m.squares_mlp : m.squares;
            float *factor = step.rstd[mlp][l & 1];
            if constexpr (SHARED) {
#pragma unroll 1
                for (int s = lane; s < step.top; s += 32)
                    if (step.pos[s] >= 0) factor[s] = rsqrtf(squares_of(squares + s, 0, 1, l) / m.width + m.eps);
            } else {
                float sum = squares_of(squares, lane, 32, l);
                __syncwarp();
                sum = warp_sum(sum);
                if (lane == 0) *factor = rsqrtf(sum / m.width + m.eps);
            }
            if (lane < step.top) barrier_arrive(normed + mlp);
            __syncwarp();
        }
    }
};
