#include "fibers.h"

#include <link.h>
#include <stdarg.h>
#include <sys/mman.h>

#include <algorithm>

#include "switch.h"

__thread emulated::Thread *emulated_thread;

namespace emulated {

__thread Worker *worker = nullptr;

// SplitMix64 (Steele, Lea, Flood, 2014).
uint64_t shuffled(uint64_t &state) {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

bool Worker::protect(const std::function<void()> &f) {
    make_stacks();
    failed = in_block = false;
    running = nullptr;
    fault = 0;
    worker = this;
    if (sigsetjmp(refused, 1) == 0)
        f();
    else
        failed = true;
    worker = nullptr;
    emulated_thread = nullptr;
    return !failed;
}

void Worker::make_stacks() {
    if (shared_end) return;
    const size_t page = 64 << 10;  // a multiple of one page on every system
    size_t each = stack_bytes + stack_shifts + page, dynamic_room = (max_shared + page - 1) / page * page;
    size_t bytes = max_threads * each + dynamic_room + page;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    unsigned char *at = (unsigned char *)memory;
    for (Fiber &f : fibers) {
        if (mprotect(at, page, PROT_NONE)) abort();
        f.bottom = at + page;
        at += each;
    }
    shared_end = at + dynamic_room;
    if (mprotect(shared_end, page, PROT_NONE)) abort();
}

void Worker::run(const Launch &l, uint64_t index) {
    prepare(l, index);
    while (Fiber *f = next()) {
        running = f;
        emulated_thread = &f->thread;
        emulated_switch(&home, f->stack);
        if (failed) siglongjmp(refused, 1);
    }
    running = nullptr;
    if (alive > 0) stuck();
    check_shared();
    in_block = false;
}

void Worker::prepare(const Launch &l, uint64_t index) {
    launch = &l;
    running = nullptr;
    random = l.order + index;
    threads = alive = (int)(l.threads.x * l.threads.y * l.threads.z);
    waiting = yeses = counted = queued = 0;
    boxes.clear();
    memset(named, 0, sizeof named);
    clear_shared(l);
    block = {(unsigned)(index % l.blocks.x), (unsigned)(index / l.blocks.x % l.blocks.y),
             (unsigned)(index / l.blocks.x / l.blocks.y)};
    in_block = true;
    for (int i = 0; i < threads; i++) {
        Fiber &f = fibers[i];
        unsigned t = (unsigned)i;
        uint3 at = {t % l.threads.x, t / l.threads.x % l.threads.y, t / l.threads.x / l.threads.y};
        f.thread = {at, block, l.threads, l.blocks, i % 32, dynamic.at};
        f.stack = new_stack(f.bottom + stack_bytes + i * stack_shift % stack_shifts, start);
        f.copies.clear();
        f.groups = 0;
        if (i % 32 == 0) warps[i / 32].meetings.clear();
    }
    for (int i = 0; i < threads; i++) wake(fibers[l.order == backward ? i : threads - 1 - i]);
}

void Worker::start() {
    Worker *w = worker;
    w->launch->kernel->run(w->launch->args);
    if (!w->self().copies.empty()) emulated_fail("returned with %zu asynchronous copies under way", w->self().copies.size());
    w->self().state = finished;
    w->alive--;
    emulated_switch(&w->self().stack, w->home);
    __builtin_unreachable();
}

// Threads woken together are pushed highest first, forwards, so that the lowest runs next.
void Worker::wake(Fiber &f) {
    f.state = ready;
    queue[queued++] = &f;
}

void Worker::wake_lanes(unsigned mask) {
    for (int i = 0; i < 32; i++) {
        int l = launch->order == backward ? i : 31 - i;
        if (mask >> l & 1) wake(lane(l));
    }
}

Fiber *Worker::next() {
    if (queued == 0) return nullptr;
    if (launch->order > late) {
        std::swap(queue[queued - 1], queue[shuffled(random) % (uint64_t)queued]);
    }
    return queue[--queued];
}

// Lets the next thread run that can, or run see that there is none.
void Worker::rest() {
    Fiber &f = self();
    Fiber *n = next();
    if (n == &f) return;
    if (n) {
        running = n;
        emulated_thread = &n->thread;
    }
    emulated_switch(&f.stack, n ? n->stack : home);
}

void Worker::wait(State s) {
    self().state = s;
    rest();
}

// Puts the running thread behind all others that can run.
void Worker::yield() {
    Fiber &f = self();
    f.state = ready;
    memmove(queue + 1, queue, (size_t)queued * sizeof *queue);
    queue[0] = &f;
    queued++;
    rest();
}

void Worker::fall_behind() {
    const dim3 &all = launch->blocks;
    if (launch->order != late || number(*running) >= 32 || block.x + 1 != all.x || block.y + 1 != all.y || block.z + 1 != all.z) return;
    for (int turns = 300; turns > 0; turns--) yield();
}

void Worker::leave() {
    failed = true;
    if (running) emulated_switch(&self().stack, home);
    siglongjmp(refused, 1);
}

void Worker::say(const char *text) {
    size_t n = 0;
    if (in_block) n += (size_t)snprintf(message, message_bytes, "block (%u, %u, %u)", block.x, block.y, block.z);
    if (running) {
        const uint3 &t = running->thread.at;
        n += (size_t)snprintf(message + n, message_bytes - n, ", thread (%u, %u, %u)", t.x, t.y, t.z);
    }
    if (n > 0) n += (size_t)snprintf(message + n, message_bytes - n, ": ");
    snprintf(message + n, message_bytes - n, "%s", text);
}

int Worker::barrier(bool yes) {
    yeses += yes;
    if (++waiting < threads) {
        wait(at_barrier);
        return counted;
    }
    counted = yeses;
    waiting = yeses = 0;
    for (int i = 0; i < threads; i++) {
        Fiber &f = fibers[launch->order == backward ? i : threads - 1 - i];
        if (f.state == at_barrier) wake(f);
    }
    return counted;
}

// Says which threads wait for which.
void Worker::stuck() {
    int barred = 0, first = -1, other = -1;
    for (int i = 0; i < threads; i++) {
        if (fibers[i].state == at_barrier) {
            barred++;
            if (first < 0) first = i;
        } else if (other < 0 || fibers[i].state == in_warp) {
            other = i;
        }
    }
    if (other >= 0 && fibers[other].state == in_warp) {
        const Fiber &f = fibers[other];
        const char *what[] = {"__syncwarp", "a shuffle", "a vote", "mma", "ldmatrix"};
        unsigned missing = f.mask;
        for (const Meeting &m : warps[other / 32].meetings)
            if (m.mask == f.mask) missing &= ~m.came;
        int lane = __builtin_ctz(missing), absent = other / 32 * 32 + lane;
        const char *why = absent >= threads                         ? "does not exist"
                          : fibers[absent].state == finished        ? "has returned"
                          : fibers[absent].state == at_barrier      ? "waits at __syncthreads"
                                                                    : "waits in an operation with another mask";
        emulated_fail("thread %d waits in %s of mask %#x for lane %d, which %s", other, what[f.what], f.mask, lane, why);
    }
    emulated_fail("%d of %d threads, thread %d first, wait at __syncthreads; thread %d has returned", barred, threads, first, other);
}

// --- shared memory

struct Search {
    void *anchor;
    Span found;
};

// The span of a library's variables for this thread that the anchor is one of.
static int look(dl_phdr_info *info, size_t, void *data) {
    Search *s = (Search *)data;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &p = info->dlpi_phdr[i];
        Span span = {(unsigned char *)info->dlpi_tls_data, p.p_memsz};
        if (p.p_type == PT_TLS && span.at && span.holds(s->anchor, 1)) {
            s->found = span;
            return 1;
        }
    }
    return 0;
}

static Span static_shared(const Library &l) {
    static thread_local std::vector<std::pair<void *, Span>> known;
    void *anchor = l.anchor();
    for (auto &k : known)
        if (k.first == anchor) return k.second;
    Search s = {anchor, {}};
    dl_iterate_phdr(look, &s);
    known.push_back({anchor, s.found});
    return s.found;
}

// Shared memory is whatever was left there, on a GPU: NaN finds what is read before it is written.
void Worker::clear_shared(const Launch &l) {
    size_t room = (l.shared + 1023) / 1024 * 1024;
    dynamic = {shared_end - room, l.shared};
    memset(dynamic.at, 0xff, room);
    fixed = static_shared(l.library);
    if (fixed.at) memset(fixed.at, 0xff, fixed.bytes);
}

void Worker::check_shared() {
    for (unsigned char *p = dynamic.at + dynamic.bytes; p < shared_end; p++)
        if (*p != 0xff) emulated_fail("written %zd bytes behind the %zu of dynamic shared memory", p - dynamic.at - dynamic.bytes, dynamic.bytes);
}

}  // namespace emulated

using emulated::worker;

int emulated_barrier(bool yes) { return worker->barrier(yes); }

void emulated_fail(const char *format, ...) {
    char text[emulated::message_bytes];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    worker->say(text);
    worker->leave();
}
