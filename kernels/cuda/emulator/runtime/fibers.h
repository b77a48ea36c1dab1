// Workers run blocks; the threads of a block are fibers, which a worker runs in turn.
#pragma once

#include <setjmp.h>

#include <atomic>
#include <functional>
#include <vector>

#include "emulator.h"

namespace emulated {

constexpr int max_threads = 1024;
constexpr size_t max_shared = 227 << 10;  // what a block of H100 can have
constexpr size_t max_static = 1 << 20;    // a library's static shared memory, of all its kernels
constexpr size_t stack_bytes = 128 << 10;
// Stacks begin at different places of their pages: the processor's caches hold few lines that lie at the same one, and threads meet often.
constexpr int stack_shift = 9 * 64, stack_shifts = 64 << 10;
constexpr size_t message_bytes = 512;

// A copy of 16 bytes that was asked for and may not have happened yet.
struct Copy {
    void *to;
    const void *from;
    bool valid;
    int group;
};

// A copy of a box that was asked for and has not arrived yet.
struct BoxCopy {
    unsigned char *to;
    const void *map;
    int x, y;
    unsigned long long *full;
};

enum State { ready, at_barrier, in_warp, finished };

struct Fiber {
    Thread thread;
    void *stack;  // the stack pointer while it does not run
    unsigned char *bottom;
    State state;
    // The warp operation that it waits in.
    Together what;
    unsigned mask;
    // Asynchronous copies under way.
    std::vector<Copy> copies;
    int groups;
};

// The lanes of one warp that wait for others of the same mask.
struct Meeting {
    unsigned mask, came;
    Together what;
};

struct Warp {
    void *brought[32];
    std::vector<Meeting> meetings;
};

struct Library {
    const Kernel *(*kernels)();
    void *(*anchor)();
};

struct Launch {
    Library library;
    const Kernel *kernel;
    void *const *args;
    dim3 blocks, threads;
    size_t shared;
    uint64_t order;
};

// The orders in which threads and blocks run. Any other number is the seed of a random one.
constexpr uint64_t forward = 0, backward = 1, late = 2;

struct Span {
    unsigned char *at;
    size_t bytes;
    bool holds(const void *p, size_t n) const {
        return (uintptr_t)p >= (uintptr_t)at && (uintptr_t)p + n <= (uintptr_t)at + bytes;
    }
};

class Worker {
  public:
    // Does f; false, with a message, if it failed or the processor refused.
    bool protect(const std::function<void()> &f);
    void run(const Launch &l, uint64_t index);

    // For the fiber that runs.
    Fiber &self() { return *running; }
    Warp &warp() { return warps[number(*running) / 32]; }
    Fiber &lane(int i) { return fibers[number(*running) / 32 * 32 + i]; }
    int number(const Fiber &f) const { return (int)(&f - fibers); }
    bool in_shared(const void *p, size_t n) const { return dynamic.holds(p, n) || fixed.holds(p, n); }
    void wait(State s);
    void wake(Fiber &f);
    void wake_lanes(unsigned mask);
    int barrier(bool yes);
    void yield();
    // Lets all others take some turns if this is the warp that comes late.
    void fall_behind();
    [[noreturn]] void leave();
    // Keeps a message, behind the block and the thread that it is about.
    void say(const char *text);

    std::vector<BoxCopy> boxes;
    // Barriers of some of a block's warps.
    struct Named {
        int came, turn;
    } named[16];

    char message[message_bytes];
    uintptr_t fault = 0;  // the address of a refused access
    sigjmp_buf refused;

  private:
    void make_stacks();
    void prepare(const Launch &l, uint64_t index);
    void clear_shared(const Launch &l);
    void check_shared();
    Fiber *next();
    void rest();
    [[noreturn]] void stuck();
    static void start();

    Fiber fibers[max_threads];
    Warp warps[max_threads / 32];
    Fiber *running = nullptr;  // none between threads
    uint3 block = {};
    bool in_block = false;
    Fiber *queue[max_threads];  // a stack of those that can run
    int queued = 0, threads = 0, alive = 0, waiting = 0, yeses = 0, counted = 0;
    void *home = nullptr;  // the stack pointer of run
    bool failed = false;
    const Launch *launch = nullptr;
    uint64_t random = 1;
    unsigned char *shared_end = nullptr;  // before a page that cannot be touched
    Span dynamic = {}, fixed = {};
};

// The worker of this processor thread.
extern __thread Worker *worker __attribute__((tls_model("initial-exec")));

uint64_t shuffled(uint64_t &state);

// Runs job on at most so many workers at once; false, with the message of the first that failed, upon which stop becomes true.
typedef std::function<void(Worker &, const std::atomic<bool> &stop)> Job;
bool on_workers(int count, const Job &job, char *message, uintptr_t *fault);
constexpr int all_workers = 4;

}  // namespace emulated
