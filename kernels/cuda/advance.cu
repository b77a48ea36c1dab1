// Advance puts each sequence's token behind those before it. With p = length[s], if 0 ≤ p < P: pos[s] = live[s] = p, rows[s] = s·P + p,
// spans[s] = (0, 0, s·P + f, s·P + p+1) with f = max(0, p+1-W), or 0 if W is 0, u[s] = ⌊Random(keys[s, 0], keys[s, 1], 0).At(p)/2⁴⁰⌋/2²⁴,
// experts[s] = ids[tokens[s]] and weights[s] = gates[tokens[s]], if there is a routing table, and length[s] becomes p+1. A sequence that
// is stopped or full does no harm: rows[s] and live[s] are -1, all else is 0, and length[s] stays. ids (V, n) i32, gates (V, n) of type Param.
//
// A thread for each sequence. A token that is no row of the table has experts 0 with weights that are NaN.
#include "random.cuh"

struct Advancing {
    const int *tokens;
    int *length;
    const int *keys;
    int *pos, *live, *rows, *spans;
    float *u;
    const int *ids;
    const float *gates;
    int *experts;
    float *weights;
    int n, room, window, vocabulary, chosen, unused;
};

extern "C" __global__ void advance(Advancing a) {
    int s = blockIdx.x * blockDim.x + threadIdx.x;
    if (s >= a.n) return;
    int p = a.length[s], token = a.tokens[s], from = s * a.room;
    bool runs = p >= 0 && p < a.room, row = token >= 0 && token < a.vocabulary;
    int first = a.window > 0 ? max(0, p + 1 - a.window) : 0;
    a.pos[s] = runs ? p : 0;
    a.live[s] = runs ? p : -1;
    a.rows[s] = runs ? from + p : -1;
    a.spans[4 * s] = a.spans[4 * s + 1] = 0;
    a.spans[4 * s + 2] = runs ? from + first : 0;
    a.spans[4 * s + 3] = runs ? from + p + 1 : 0;
    a.u[s] = runs ? random24(random_stream(a.keys + 2 * s, 0), p) * 0x1p-24f : 0.f;
    if (runs) a.length[s] = p + 1;
    for (int i = 0; i < a.chosen; i++) {
        long long at = token * (long long)a.chosen + i;
        a.experts[s * a.chosen + i] = runs && row ? a.ids[at] : 0;
        a.weights[s * a.chosen + i] = !runs ? 0.f : row ? a.gates[at] : __uint_as_float(0x7fffffffu);
    }
}
KERNEL(advance)
