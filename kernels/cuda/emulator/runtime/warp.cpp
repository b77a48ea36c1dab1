// What the lanes of a warp do together.
#include "fibers.h"

using namespace emulated;

void emulated_warp(Together what, unsigned mask, void *mine, void (*together)(void *const lanes[32], unsigned mask)) {
    Worker &w = *worker;
    Fiber &f = w.self();
    unsigned bit = 1u << f.thread.lane;
    if (!(mask & bit)) emulated_fail("lane %d calls a warp operation of mask %#x, which leaves it out", f.thread.lane, mask);
    Warp &warp = w.warp();
    warp.brought[f.thread.lane] = mine;

    auto m = warp.meetings.begin();
    while (m != warp.meetings.end() && m->mask != mask) ++m;
    if (m == warp.meetings.end()) m = warp.meetings.insert(m, {mask, 0, what});
    if (m->what != what) emulated_fail("lanes of mask %#x meet in different operations", mask);
    m->came |= bit;
    if (m->came != mask) {
        f.what = what;
        f.mask = mask;
        w.wait(in_warp);
        return;
    }
    warp.meetings.erase(m);
    together(warp.brought, mask);
    w.wake_lanes(mask & ~bit);
}

namespace {

struct Exchange {
    unsigned long long x, y;
    int from;
};

void exchange(void *const lanes[32], unsigned mask) {
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Exchange *e = (Exchange *)lanes[i];
        if (!(mask >> e->from & 1)) emulated_fail("lane %d reads from lane %d, which is not in mask %#x", i, e->from, mask);
        e->y = ((Exchange *)lanes[e->from])->x;
    }
}

struct Vote {
    bool yes;
    unsigned all;
};

void count(void *const lanes[32], unsigned mask) {
    unsigned all = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) all |= (unsigned)((Vote *)lanes[i])->yes << i;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) ((Vote *)lanes[i])->all = all;
}

struct Fragments {
    float *d;
    const unsigned *a, *b;
};

// The two bf16 of a register.
void unpack(unsigned r, float *low, float *high) {
    *low = __uint_as_float(r << 16);
    *high = __uint_as_float(r & 0xffff0000u);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void multiply_fragments(void *const lanes[32], unsigned) {
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; l++) {
        const Fragments &f = *(const Fragments *)lanes[l];
        int g = l / 4, c = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float *at = &a[g + i % 2 * 8][c + i / 2 * 8];
            unpack(f.a[i], at, at + 1);
        }
        for (int i = 0; i < 2; i++) unpack(f.b[i], &b[c + i * 8][g], &b[c + i * 8 + 1][g]);
        for (int i = 0; i < 4; i++) d[g + i / 2 * 8][c + i % 2] = f.d[i];
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; l++) {
        const Fragments &f = *(const Fragments *)lanes[l];
        for (int i = 0; i < 4; i++) f.d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
    }
}

struct Load {
    unsigned *r;
    const unsigned char *row;
    bool transposed;
};

// PTX ISA, "ldmatrix": lane 8i + j brings the address of row j of matrix i.
void load_matrices(void *const lanes[32], unsigned) {
    unsigned short m[4][8][8];
    for (int l = 0; l < 32; l++) {
        const Load &f = *(const Load *)lanes[l];
        if ((uintptr_t)f.row % 16) emulated_fail("ldmatrix: the row of lane %d lies at %p, not aligned to 16 bytes", l, (const void *)f.row);
        if (!worker->in_shared(f.row, 16)) emulated_fail("ldmatrix: the row of lane %d lies outside of shared memory", l);
        memcpy(m[l / 8][l % 8], f.row, 16);
    }
    for (int l = 0; l < 32; l++) {
        const Load &f = *(const Load *)lanes[l];
        int g = l / 4, c = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            unsigned low = f.transposed ? m[i][c][g] : m[i][g][c], high = f.transposed ? m[i][c + 1][g] : m[i][g][c + 1];
            f.r[i] = low | high << 16;
        }
    }
}

}  // namespace

unsigned long long emulated_shuffle(unsigned mask, unsigned long long x, int from) {
    Exchange e = {x, 0, from};
    emulated_warp(shuffle, mask, &e, exchange);
    return e.y;
}

unsigned emulated_ballot(unsigned mask, bool yes) {
    Vote v = {yes, 0};
    emulated_warp(vote, mask, &v, count);
    return v.all;
}

void emulated_mma(float d[4], const unsigned a[4], const unsigned b[2]) {
    Fragments f = {d, a, b};
    emulated_warp(multiply, 0xffffffffu, &f, multiply_fragments);
}

void emulated_ldmatrix(unsigned r[4], const void *row, bool transposed) {
    Load f = {r, (const unsigned char *)row, transposed};
    emulated_warp(load_matrix, 0xffffffffu, &f, load_matrices);
}

// A copy happens when it is waited for. Until then its target is NaN.
void emulated_copy16(void *to, const void *from, bool valid) {
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16))
        emulated_fail("copy of 16 bytes from %p to %p, not aligned to 16 bytes", from, to);
    if (!worker->in_shared(to, 16)) emulated_fail("copy of 16 bytes to %p, outside of shared memory", to);
    memset(to, 0xff, 16);
    Fiber &f = worker->self();
    f.copies.push_back({to, from, valid, f.groups});
}

void emulated_copies_commit() { worker->self().groups++; }

void emulated_copies_wait(int n) {
    Fiber &f = worker->self();
    size_t kept = 0;
    for (const Copy &c : f.copies) {
        if (c.group >= f.groups - n) {
            f.copies[kept++] = c;
        } else if (c.valid) {
            memcpy(c.to, c.from, 16);
        } else {
            memset(c.to, 0, 16);
        }
    }
    f.copies.resize(kept);
}
