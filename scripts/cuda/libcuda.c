/* The part of libcuda.a that is the same for every version of CUDA; libcuda.sh generates the rest: the functions, each a jump through
   its element of driver_slots, and their names, one after the other. */
#include "libcuda.h"

#include <dlfcn.h>
#include <string.h>

enum { stub_library = 34 }; /* CUDA_ERROR_STUB_LIBRARY */

extern void *driver_slots[];
extern const char driver_names[];
extern const size_t driver_count;

/* Takes the place of every function that is not there. */
int driver_absent(void) { return stub_library; }

static int (*init)(unsigned);

int cuInit(unsigned flags) {
    (void)flags;
    return 0;
}

int driver_init(unsigned flags) { return init ? init(flags) : stub_library; }

const char *driver_open(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return dlerror();
    init = (int (*)(unsigned))dlsym(library, "cuInit");
    const char *name = driver_names;
    for (size_t i = 0; i < driver_count; i++, name += strlen(name) + 1) {
        void *function = dlsym(library, name);
        if (function) driver_slots[i] = function;
    }
    return init ? NULL : "libcuda.so.1 has no function cuInit";
}
