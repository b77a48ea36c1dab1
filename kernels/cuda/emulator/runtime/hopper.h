// What hopper.cuh has, but for wgmma and clusters. Included there.
#pragma once

// Where p is in dynamic shared memory.
inline unsigned shared_at(const void *p) { return (unsigned)((const unsigned char *)p - emulated_thread->shared); }

typedef unsigned long long Barrier;

#pragma GCC visibility push(default)
extern "C" {
void emulated_barrier_init(Barrier *b, int arrivals);
// Arrives and expects so many more bytes of copies.
void emulated_barrier_arrive(Barrier *b, int bytes);
void emulated_barrier_wait(Barrier *b, unsigned parity);
void emulated_copy_box(void *to, const TensorMap *map, int x, int y, Barrier *full);
void emulated_threads_sync(int barrier, int threads);
void emulated_threads_arrive(int barrier, int threads);
// Lets the other threads run: for those that wait for memory.
void emulated_yield();
}
#pragma GCC visibility pop

inline void barrier_init(Barrier *b, int arrivals) { emulated_barrier_init(b, arrivals); }
inline void barriers_init_done() {}
inline void barrier_arrive_expecting(Barrier *b, int bytes) { emulated_barrier_arrive(b, bytes); }
inline void barrier_arrive(Barrier *b) { emulated_barrier_arrive(b, 0); }
inline void barrier_wait(Barrier *b, unsigned parity) { emulated_barrier_wait(b, parity); }
inline void copy_box(void *to, const TensorMap *map, int x, int y, Barrier *full) { emulated_copy_box(to, map, x, y, full); }
template <int n> void more_registers() {}
template <int n> void fewer_registers() {}
inline void threads_sync(int barrier, int threads) { emulated_threads_sync(barrier, threads); }
inline void threads_arrive(int barrier, int threads) { emulated_threads_arrive(barrier, threads); }
