// What the compiler's checks (-fsanitize, see compile.go) call: a kernel that fails one ends with an error.
#include "emulator.h"

namespace {

struct Location {
    const char *file;
    uint32_t line, column;
};

struct Access {
    Location at;
    const void *type;
    unsigned char alignment, kind;  // log2 of the alignment
};

struct Place {
    Location at;
};

const char *base(const char *file) {
    const char *slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void __ubsan_handle_type_mismatch_v1_abort(Access *a, void *p) {
    emulated_fail("%s:%u: access at %p, not aligned to %d bytes", base(a->at.file), a->at.line, p, 1 << a->alignment);
}

void __ubsan_handle_out_of_bounds_abort(Place *p, size_t index) {
    emulated_fail("%s:%u: index %zd outside of an array", base(p->at.file), p->at.line, index);
}

void __ubsan_handle_shift_out_of_bounds_abort(Place *p, size_t, size_t by) {
    emulated_fail("%s:%u: shift by %zd bits", base(p->at.file), p->at.line, by);
}

void __ubsan_handle_divrem_overflow_abort(Place *p, size_t, size_t by) {
    emulated_fail("%s:%u: division by %d", base(p->at.file), p->at.line, (int)by);
}
}
#pragma GCC visibility pop
