// Products of matrices with sums in float, as cuBLAS has them.
#include <vector>

#include "fibers.h"

using namespace emulated;

namespace {

struct Matrix {
    unsigned char *at;
    int64_t is_bf16, rows, cols, stride;  // of the matrix as it is used
    int64_t transposed;                   // rows lie as columns

    size_t index(int64_t i, int64_t j) const { return (size_t)(transposed ? j * stride + i : i * stride + j); }

    float get(int64_t i, int64_t j) const {
        if (!is_bf16) return ((const float *)at)[index(i, j)];
        return __uint_as_float((unsigned)((const unsigned short *)at)[index(i, j)] << 16);
    }

    void set(int64_t i, int64_t j, float x) const {
        if (!is_bf16) {
            ((float *)at)[index(i, j)] = x;
            return;
        }
        unsigned u = __float_as_uint(x);
        ((unsigned short *)at)[index(i, j)] = x != x ? (unsigned short)(u >> 16 | 0x40) : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
};

struct Product {
    Matrix c, a, b;
    float alpha, beta;
    char *message;
    uintptr_t fault;
};

constexpr int64_t wide = 128;  // columns of C at a time

// Columns [from, to) of C.
void panel(const Product &p, int64_t from, int64_t to, std::vector<float> &b, std::vector<float> &row) {
    int64_t n = p.a.cols, width = to - from;
    b.resize((size_t)(n * wide));
    if (p.b.transposed) {
        for (int64_t j = 0; j < width; j++)
            for (int64_t k = 0; k < n; k++) b[(size_t)(k * wide + j)] = p.b.get(k, from + j);
    } else {
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < width; j++) b[(size_t)(k * wide + j)] = p.b.get(k, from + j);
    }
    row.resize((size_t)n);
    for (int64_t i = 0; i < p.c.rows; i++) {
        for (int64_t k = 0; k < n; k++) row[(size_t)k] = p.a.get(i, k);
        float sum[wide] = {};
        for (int64_t k = 0; k < n; k++) {
            const float x = row[(size_t)k], *y = &b[(size_t)(k * wide)];
            for (int64_t j = 0; j < wide; j++) sum[j] += x * y[j];
        }
        for (int64_t j = 0; j < width; j++) {
            float x = p.alpha * sum[j];
            if (p.beta != 0) x += p.beta * p.c.get(i, from + j);
            p.c.set(i, from + j, x);
        }
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int emulated_multiply(Product *p) {
    int64_t panels = (p->c.cols + wide - 1) / wide;
    std::atomic<int64_t> next = 0;
    return on_workers((int)std::min<int64_t>(panels, all_workers), [&](Worker &, const std::atomic<bool> &) {
        std::vector<float> b, row;
        for (int64_t i; (i = next++) < panels;) panel(*p, i * wide, std::min(p->c.cols, (i + 1) * wide), b, row);
    }, p->message, &p->fault);
}
