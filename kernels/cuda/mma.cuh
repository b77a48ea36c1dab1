// Tensor cores and asynchronous copies, as every card since A100 has them (PTX ISA, mma.m16n8k16, ldmatrix, cp.async).
//
// Fragments of mma m16n8k16, with g = lane / 4 and c = lane % 4: a holds A (16, 16) as a[0] = rows g, columns 2c and 2c+1;
// a[1] = row g+8; a[2] = row g, columns 2c+8 and on; a[3] = row g+8, columns 2c+8 and on. b holds B (16, 8) as b[0] = rows 2c
// and 2c+1, column g; b[1] = rows 2c+8 and 2c+9. d holds D (16, 8) as d[0], d[1] = row g, columns 2c, 2c+1; d[2], d[3] = row g+8.
#pragma once
#include "common.cuh"

// The lower half is the element of the lower index.
__device__ inline unsigned pack(float low, float high) {
#ifdef EMULATED
    return to_bf16(low).bits | (unsigned)to_bf16(high).bits << 16;
#else
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

// d += a·b.
__device__ inline void mma(float d[4], const unsigned a[4], const unsigned b[2]) {
#ifdef EMULATED
    emulated_mma(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four matrices of 8 x 8 bf16 from shared memory: lane l gives the address, aligned to 16 bytes, of row l % 8 of matrix l / 8, and gets of
// each matrix the elements 2·(l%4) and the next of row l/4; transposed, of column l/4.
__device__ inline void ldmatrix(unsigned r[4], const void *row) {
#ifdef EMULATED
    emulated_ldmatrix(r, row, false);
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
#endif
}
__device__ inline void ldmatrix_transposed(unsigned r[4], const void *row) {
#ifdef EMULATED
    emulated_ldmatrix(r, row, true);
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
#endif
}

// Copies 16 bytes from global to shared memory, both aligned to 16, behind the thread's back; zeros if from must not be read.
__device__ inline void copy_async(void *to, const void *from, bool valid) {
#ifdef EMULATED
    emulated_copy16(to, from, valid);
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
}

// Closes a group of copies; waits until at most n of this thread's groups are under way. Other threads' copies need a barrier too.
__device__ inline void copies_commit() {
#ifdef EMULATED
    emulated_copies_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int n> __device__ inline void copies_wait() {
#ifdef EMULATED
    emulated_copies_wait(n);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}
