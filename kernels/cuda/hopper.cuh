// What only Hopper has (compute capability 9.0; PTX ISA: mbarrier, cp.async.bulk.tensor, wgmma, setmaxnreg, clusters of blocks). Kernels
// that include this are in files named _sm90.cu. Of these the emulator has but stream_sm90.cu: without wgmma and clusters.
#pragma once
#include "common.cuh"

// How copies see a matrix of bf16 in global memory, as cuTensorMapEncodeTiled writes it: by boxes of some rows of 64 elements, whose 16-byte
// chunks lie swapped in shared memory (CU_TENSOR_MAP_SWIZZLE_128B), and with zeros outside of the matrix.
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

#ifdef EMULATED
#include "hopper.h"
#else
__device__ inline unsigned shared_at(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// Barriers in shared memory. A phase ends when all arrivals and all bytes that are expected have come; a new barrier is in phase 0.
typedef unsigned long long Barrier;

__device__ inline void barrier_init(Barrier *b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(b)), "r"(arrivals) : "memory");
}
// Makes new barriers known to the cluster and to copies; all blocks must then meet.
__device__ inline void barriers_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive_expecting(Barrier *b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(b)), "r"(bytes) : "memory");
}
// Arrives at a barrier of this block.
__device__ inline void barrier_arrive(Barrier *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(b)) : "memory");
}
// The same once this thread's cp.async so far have been made.
__device__ inline void barrier_arrive_copied(Barrier *b) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_at(b)) : "memory");
}
// Arrives at the barrier at the same place in a block of this cluster. Not .release.cluster: what is released was read by wgmma, which has
// been waited for, and a fence over the whole card here took half of the product's time.
__device__ inline void barrier_arrive(Barrier *b, unsigned block) {
    asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [at];\n}" ::"r"(shared_at(b)),
                 "r"(block)
                 : "memory");
}
// Waits until the phase of this parity is over.
__device__ inline void barrier_wait(Barrier *b, unsigned parity) {
    asm volatile("{\n.reg .pred over;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n@!over bra again;\n}" ::"r"(shared_at(b)),
                 "r"(parity)
                 : "memory");
}

// Clusters of blocks, which can reach each other's shared memory.
__device__ inline unsigned cluster_rank() {
    unsigned r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
// A barrier of all threads of a cluster, and its two halves.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
// The same for threads that have only read other blocks' shared memory: no fence over the whole card. What they read must have arrived, see arrived.
__device__ inline void cluster_arrive_read() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ inline void cluster_sync() { cluster_arrive(), cluster_wait(); }

// Four floats of another block's shared memory: those that lie where p is in this block's.
__device__ inline float4 cluster_load(const float *p, int block) {
    float4 x;
    asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %4, %5;\nld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [at];\n}"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(shared_at(p)), "r"(block) : "memory");
    return x;
}

// Waits for x, which was made of what this thread has read. Without it the compiler takes loads for done when they have begun, and lets a
// barrier that follows pass them: a block whose shared memory is being read could end, which is a fault. It never sleeps but by chance.
__device__ inline void arrived(unsigned x) {
    asm volatile("{\n.reg .pred chance;\nsetp.eq.u32 chance, %0, 0x7fedcba9;\n@chance nanosleep.u32 0;\n}" ::"r"(x) : "memory");
}

// Copies a box at (column x, row y) to shared memory aligned to 1024 bytes; `full` is told of its bytes.
__device__ inline void copy_box(void *to, const TensorMap *map, int x, int y, Barrier *full) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_at(to)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_at(full))
                 : "memory");
}
// The same to that place in both blocks of a cluster of two, and to the barrier of each.
__device__ inline void copy_box_to_both(void *to, const TensorMap *map, int x, int y, Barrier *full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
            shared_at(to)),
        "l"(map), "r"(x), "r"(y), "r"(shared_at(full)), "h"((unsigned short)3)
        : "memory");
}
// Copies a box back to global memory, but for what is outside of the matrix, as a group of this thread's copies.
__device__ inline void copy_box_out(const TensorMap *map, int x, int y, const void *from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\ncp.async.bulk.commit_group;" ::"l"(map), "r"(x),
                 "r"(y), "r"(shared_at(from))
                 : "memory");
}
// Waits until all but this thread's last n groups have read shared memory; have written global memory.
template <int n> __device__ inline void copies_out_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory"); }
template <int n> __device__ inline void copies_out_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(n) : "memory"); }
// Makes this thread's writes to shared memory, and those that it knows of, known to copies and wgmma; a barrier must follow unless it uses them.
__device__ inline void shared_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The registers of each thread of a warpgroup. Its four warps must agree.
template <int n> __device__ inline void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n)); }
template <int n> __device__ inline void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n)); }

// Waits for so many threads, whole warps, at barrier 1, 2, …
__device__ inline void threads_sync(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
// Counts among them, and does not wait.
__device__ inline void threads_arrive(int barrier, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

// What wgmma is told of panels in shared memory, with chunks swapped as boxes are. A panel has rows of 64 elements, eight in 1024 bytes. Those of
// Along have the depth along a row, and any number of rows. Those of Deep have a row for each of 64 numbers of the depth; `panel` bytes are between
// panels of 64 columns.
__device__ inline unsigned long long panel_descriptor(unsigned at, bool deep, int panel) {
    unsigned long long d = (at & 0x3ffff) >> 4; // in a cluster, what is above this is the block's rank
    d |= (unsigned long long)(deep ? panel >> 4 : 1) << 16;
    return d | 1024ull >> 4 << 32 | 1ull << 62;
}
__device__ inline unsigned long long panel_descriptor(const void *p, bool deep, int panel) { return panel_descriptor(shared_at(p), deep, panel); }
// What is added to a descriptor for each 16 numbers of the depth.
template <bool DEEP> constexpr int depth_step = DEEP ? 16 * 128 >> 4 : 16 * 2 >> 4;

__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int n> __device__ inline void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory"); }
// Waits for all products, after which d may be read.
template <int n> __device__ inline void wgmma_wait_for(float (&d)[n]) {
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < n; i++) asm volatile("" : "+f"(d[i])); // no use of d moves ahead of this
}

// Wgmma<N, DEEP>: d = a·b, + d unless add is 0, in the background, by a warpgroup: a (64, 16), b (16, N), d (64, N). b is a panel's, DEEP or not,
// and so is a, or it is fragments as those of mma.cuh. Warp w has the rows from 16w on: d[4i] and d[4i+1] are row lane/4, columns 8i + 2·(lane%4)
// and the next; d[4i+2] and d[4i+3] those of the row 8 below.
template <int N, bool DEEP> struct Wgmma;
#define WGMMA_LIST_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_LIST_1 \
    WGMMA_LIST_0 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_LIST_2 \
    WGMMA_LIST_1 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_LIST_3                                                                                                                         \
    WGMMA_LIST_2 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121," \
                 "%122,%123,%124,%125,%126,%127"
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(i) WGMMA_4(i), WGMMA_4(i + 4), WGMMA_4(i + 8), WGMMA_4(i + 12)
#define WGMMA_32(i) WGMMA_16(i), WGMMA_16(i + 16)
// A0… are the operands behind d: of the first form a, b, add, whether a and b are DEEP; of the second the four of a, b, add, whether b is DEEP.
#define WGMMA(N, LIST, A0, A1, A2, A3, A4, A5, A6, ...)                                                                                 \
    template <bool DEEP> struct Wgmma<N, DEEP> {                                                                                     \
        template <bool A_DEEP = false>                                                                                               \
        __device__ static inline void run(float (&d)[N / 2], unsigned long long a, unsigned long long b, int add) {                  \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " A2 ", 0;\n"                                                      \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, " A0 ", " A1 ", add, 1, 1, " A3 ", " \
                         A4 ";\n}"                                                                                                  \
                         : __VA_ARGS__                                                                                               \
                         : "l"(a), "l"(b), "r"(add), "n"(A_DEEP), "n"(DEEP));                                                        \
        }                                                                                                                            \
        __device__ static inline void run(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int add) {                \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " A5 ", 0;\n"                                                      \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, {" A0 "," A1 "," A2 "," A3 "}, " A4  \
                         ", add, 1, 1, " A6 ";\n}"                                                                                  \
                         : __VA_ARGS__                                                                                               \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(DEEP));                                 \
        }                                                                                                                            \
    };
WGMMA(64, WGMMA_LIST_0, "%32", "%33", "%34", "%35", "%36", "%37", "%38", WGMMA_32(0))
WGMMA(128, WGMMA_LIST_1, "%64", "%65", "%66", "%67", "%68", "%69", "%70", WGMMA_32(0), WGMMA_32(32))
WGMMA(192, WGMMA_LIST_2, "%96", "%97", "%98", "%99", "%100", "%101", "%102", WGMMA_32(0), WGMMA_32(32), WGMMA_32(64))
WGMMA(256, WGMMA_LIST_3, "%128", "%129", "%130", "%131", "%132", "%133", "%134", WGMMA_32(0), WGMMA_32(32), WGMMA_32(64), WGMMA_32(96))

// Stores four matrices of 8 x 8: lane l gives the address of row l % 8 of matrix l / 8, and of each matrix has the elements 2·(l%4) and the next
// of row l/4.
__device__ inline void stmatrix(void *row, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_at(row)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
#endif
