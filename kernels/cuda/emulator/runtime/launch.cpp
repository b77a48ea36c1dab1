// What the Go side calls, the workers' processor threads, and what the processor refuses.
#include <signal.h>
#include <stdlib.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "fibers.h"

namespace emulated {

namespace {

class Pool {
  public:
    Pool() {
        for (Worker *&w : workers) {
            w = new Worker;
            std::thread([this, w] { serve(*w); }).detach();
        }
    }

    void run(int count, const std::function<void(Worker &)> &f) {
        std::lock_guard<std::mutex> one(callers);
        std::unique_lock<std::mutex> lock(mutex);
        job = &f;
        places = running = count;
        wanted.notify_all();
        done.wait(lock, [this] { return running == 0; });
        job = nullptr;
    }

  private:
    void serve(Worker &w) {
        own_signal_stack();
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wanted.wait(lock, [this] { return places > 0; });
            places--;
            const std::function<void(Worker &)> *f = job;
            lock.unlock();
            (*f)(w);
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    // A fiber that has used up its stack has none left for the handler.
    static void own_signal_stack() {
        stack_t s = {};
        s.ss_size = 64 << 10;
        s.ss_sp = malloc(s.ss_size);
        sigaltstack(&s, nullptr);
    }

    Worker *workers[all_workers];
    std::mutex callers, mutex;
    std::condition_variable wanted, done;
    const std::function<void(Worker &)> *job = nullptr;
    int places = 0, running = 0;
};

struct sigaction before[65];

// Turns what the processor refuses a kernel into an error of the launch; all else is for whoever was asked before.
void refused(int signal, siginfo_t *info, void *context) {
    if (Worker *w = worker) {
        w->fault = (uintptr_t)info->si_addr;
        w->say("access outside of memory");
        siglongjmp(w->refused, 1);
    }
    const struct sigaction &b = before[signal];
    if (b.sa_flags & SA_SIGINFO)
        b.sa_sigaction(signal, info, context);
    else if (b.sa_handler != SIG_DFL && b.sa_handler != SIG_IGN)
        b.sa_handler(signal);
    else {
        sigaction(signal, &b, nullptr);
        raise(signal);
    }
}

void catch_signals() {
    for (int s : {SIGSEGV, SIGBUS}) {
        sigaction(s, nullptr, &before[s]);
        struct sigaction mine = before[s];
        mine.sa_flags |= SA_SIGINFO | SA_ONSTACK;
        mine.sa_sigaction = refused;
        sigaction(s, &mine, nullptr);
    }
}

std::mutex first;

}  // namespace

bool on_workers(int count, const Job &job, char *message, uintptr_t *fault) {
    static Pool *pool = [] {
        catch_signals();
        return new Pool;
    }();
    std::atomic<bool> failed = false;
    std::function<void(Worker &)> guarded = [&](Worker &w) {
        if (w.protect([&] { job(w, failed); })) return;
        std::lock_guard<std::mutex> lock(first);
        if (failed) return;
        failed = true;
        memcpy(message, w.message, message_bytes);
        *fault = w.fault;
    };
    pool->run(std::min(count, all_workers), guarded);
    return !failed;
}

}  // namespace emulated

using namespace emulated;

#pragma GCC visibility push(default)
extern "C" {

// One line for each kernel of a library: its name, and kind and size of each argument.
const char *emulated_describe(const Kernel *(*kernels)()) {
    static thread_local std::string text;
    text.clear();
    for (const Kernel *k = kernels(); k; k = k->next) {
        text += k->name;
        for (int i = 0; i < k->count; i++) text += std::string(" ") + k->kinds[i] + std::to_string(k->sizes[i]);
        text += "\n";
    }
    return text.c_str();
}

struct Request {
    Library library;
    uint64_t kernel;  // which line of emulated_describe
    unsigned char *args;  // each at a multiple of 8 bytes
    uint32_t blocks[3], threads[3];
    uint64_t shared, order;
    char *message;
    uintptr_t fault;
};

int emulated_launch(Request *r) {
    const Kernel *kernel = r->library.kernels();
    for (uint64_t i = 0; i < r->kernel; i++) kernel = kernel->next;
    std::vector<void *> args;
    size_t at = 0;
    for (int i = 0; i < kernel->count; i++) {
        args.push_back(r->args + at);
        at += (kernel->sizes[i] + 7) / 8 * 8;
    }
    Launch l = {r->library, kernel, args.data(), {r->blocks[0], r->blocks[1], r->blocks[2]},
                {r->threads[0], r->threads[1], r->threads[2]}, r->shared, r->order};
    uint64_t count = (uint64_t)l.blocks.x * l.blocks.y * l.blocks.z;
    std::atomic<uint64_t> next = 0;
    // A random order is i ↦ start + i·step, which meets all blocks if step and count have no common divisor.
    uint64_t seed = l.order, step = 1, start = 0;
    if (l.order > late) {
        start = shuffled(seed) % count;
        do step = shuffled(seed) % count + 1;
        while (std::__gcd(step, count) != 1);
    }
    return on_workers((int)std::min<uint64_t>(count, all_workers), [&](Worker &w, const std::atomic<bool> &stop) {
        for (uint64_t i; !stop && (i = next++) < count;) {
            uint64_t block = l.order == backward ? count - 1 - i : (uint64_t)((start + (unsigned __int128)i * step) % count);
            w.run(l, block);
        }
    }, r->message, &r->fault);
}
}
#pragma GCC visibility pop
