// What only Hopper has: barriers in shared memory that count bytes too, and copies of boxes that arrive at them.
#include "fibers.h"

using namespace emulated;

struct TensorMap;
typedef unsigned long long Barrier;

namespace {

// How often a thread looks, in some seconds, until nobody else can be at work.
constexpr int patience = 1 << 19;

struct Counts {
    unsigned short pending, arrivals;
    unsigned bytes : 31, phase : 1; // bytes that are still to come

    void done() {
        if (pending > 0 || bytes > 0) return;
        phase ^= 1;
        pending = arrivals;
    }
};
static_assert(sizeof(Counts) == sizeof(Barrier));

Counts &counts(Barrier *b, const char *what) {
    if ((uintptr_t)b % 8 || !worker->in_shared(b, 8)) emulated_fail("%s: a barrier at %p, which is not in shared memory", what, (void *)b);
    return *(Counts *)b;
}

// What Device.Boxes writes: a matrix of bf16 and the shape of its boxes. Chunks of 16 bytes of a row lie swapped if the box is 64 columns wide
// and swapped is not 0.
struct Map {
    const unsigned char *at;
    long long stride;  // bytes
    int rows, cols, box_rows, box_cols, swapped;
};

void arrive(const BoxCopy &c) {
    const Map &m = *(const Map *)c.map;
    for (int r = 0; r < m.box_rows; r++)
        for (int chunk = 0; chunk < m.box_cols / 8; chunk++) {
            unsigned short values[8] = {};
            for (int i = 0; i < 8; i++) {
                long long row = (long long)c.y + r, col = (long long)c.x + 8 * chunk + i;
                if (row >= 0 && row < m.rows && col >= 0 && col < m.cols) memcpy(values + i, m.at + row * m.stride + col * 2, 2);
            }
            memcpy(c.to + r * m.box_cols * 2 + (m.swapped ? chunk ^ r % 8 : chunk) * 16, values, 16);
        }
    Counts &n = *(Counts *)c.full;
    unsigned bytes = (unsigned)(m.box_rows * m.box_cols * 2);
    if (n.bytes < bytes) emulated_fail("a box of %u bytes arrives at a barrier that expects %u", bytes, (unsigned)n.bytes);
    n.bytes -= bytes;
    n.done();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void emulated_yield() { worker->yield(); }

void emulated_barrier_init(Barrier *b, int arrivals) {
    Counts &c = counts(b, "mbarrier.init");
    c = {(unsigned short)arrivals, (unsigned short)arrivals, 0, 0};
}

void emulated_barrier_arrive(Barrier *b, int bytes) {
    Counts &c = counts(b, "mbarrier.arrive");
    if (c.pending == 0) emulated_fail("mbarrier.arrive: more than the %d arrivals of a phase", c.arrivals);
    c.bytes += (unsigned)bytes;
    c.pending--;
    c.done();
}

// Boxes arrive when somebody waits for them. Until then what they are copied to is NaN.
void emulated_barrier_wait(Barrier *b, unsigned parity) {
    Counts &c = counts(b, "mbarrier.try_wait");
    for (int looks = 0;; worker->yield()) {
        std::vector<BoxCopy> coming;
        for (const BoxCopy &box : std::exchange(worker->boxes, {})) (box.full == b ? coming : worker->boxes).push_back(box);
        for (const BoxCopy &box : coming) arrive(box);
        if (c.phase != (parity & 1)) return;
        if (++looks == patience)
            emulated_fail("waits in vain at a barrier in shared memory, for %d arrivals and %u bytes", c.pending, (unsigned)c.bytes);
    }
}

void emulated_copy_box(void *to, const TensorMap *map, int x, int y, Barrier *full) {
    const Map &m = *(const Map *)map;
    size_t bytes = (size_t)m.box_rows * (size_t)m.box_cols * 2;
    if (x >= m.cols || y >= m.rows || x + m.box_cols <= 0 || y + m.box_rows <= 0)
        emulated_fail("a box at column %d, row %d, wholly outside of its matrix (%d, %d): it would never come", x, y, m.rows, m.cols);
    if ((uintptr_t)to % 128 || !worker->in_shared(to, bytes)) emulated_fail("a box of %zu bytes to %p, which is not in shared memory", bytes, to);
    counts(full, "cp.async.bulk.tensor");
    memset(to, 0xff, bytes);
    worker->boxes.push_back({(unsigned char *)to, map, x, y, full});
}

void emulated_threads_arrive(int barrier, int threads) {
    Worker::Named &n = worker->named[barrier & 15];
    if (++n.came == threads) n.came = 0, n.turn++;
}
void emulated_threads_sync(int barrier, int threads) {
    worker->fall_behind();
    Worker::Named &n = worker->named[barrier & 15];
    int turn = n.turn;
    emulated_threads_arrive(barrier, threads);
    for (int looks = 0; n.turn == turn; worker->yield())
        if (++looks == patience) emulated_fail("waits in vain at barrier %d, where %d threads are of %d", barrier, n.came, threads);
}
}
#pragma GCC visibility pop
