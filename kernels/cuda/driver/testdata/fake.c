/* A driver and a cuBLAS without a card, for tests of what the package asks of them. Device memory is memory of the process. What is
   queued on the stream is done when somebody waits for it and not before, so that a slot that is used again too early shows; with
   FAKE_EAGER it is done at once, and a fault shows at whatever is called next. A kernel does nothing but leave a line in the file $FAKE_LOG
   when it runs; those of $FAKE_FAULT fault, at launch number FAKE_FAULT_AT of them. Other variables: FAKE_VERSION, FAKE_INIT (what cuInit
   answers), FAKE_DEVICES, FAKE_MAJOR, FAKE_MEMORY (bytes), FAKE_REFUSE (of modules: fatbin or all), FAKE_HANG, FAKE_BLAS
   and FAKE_GEMM (what cuBLAS answers when it is started and to a product). */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int result;
enum { ok = 0, invalid_value = 1, out_of_memory = 2, invalid_device = 101, invalid_context = 201, no_binary = 209, bad_ptx = 222,
       not_found = 500, illegal_address = 700, capture_invalidated = 901 };

static long setting(const char *name, long otherwise) {
    const char *s = getenv(name);
    return s ? atol(s) : otherwise;
}

static void note(const char *format, ...) {
    const char *path = getenv("FAKE_LOG");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (!f) return;
    va_list args;
    va_start(args, format);
    vfprintf(f, format, args);
    va_end(args);
    fputc('\n', f);
    fclose(f);
}

/* One stream. */
typedef struct event { int pending; double time; } event;
typedef struct op {
    enum { op_copy, op_clear, op_launch, op_event, op_gemm } kind;
    void *dst;
    const void *src;
    size_t bytes;
    event *ev;
    char name[200];
    int g[10];
    float alpha, beta;
} op;
typedef struct { op *ops; int count; } list;

static list stream, recorded;
static int capturing;
static result fault;
static double clock_ms;
static size_t used;
static __thread void *current;
static int the_context;

static int dangerous; /* launches of $FAKE_FAULT */

#define WELL do { if (fault) return fault; if (current != &the_context) return invalid_context; } while (0)

static void add(list *l, op o) {
    l->ops = realloc(l->ops, (l->count + 1) * sizeof(op));
    l->ops[l->count++] = o;
}

static float get(const void *p, int type, long i) {
    if (type == 0) return ((const float *)p)[i];
    union { uint32_t u; float f; } x = {(uint32_t)((const uint16_t *)p)[i] << 16};
    return x.f;
}

static void set(void *p, int type, long i, float f) {
    union { float f; uint32_t u; } x = {f};
    if (type == 0) ((float *)p)[i] = f;
    else ((uint16_t *)p)[i] = (x.u + 0x7fff + (x.u >> 16 & 1)) >> 16;
}

static void gemm(op *o) { /* column by column */
    int ta = o->g[0], tb = o->g[1], m = o->g[2], n = o->g[3], k = o->g[4], lda = o->g[5], ldb = o->g[6], ldc = o->g[7], type = o->g[8], to = o->g[9];
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            double s = 0;
            for (int p = 0; p < k; p++)
                s += get(o->src, type, ta ? p + (long)i * lda : i + (long)p * lda) *
                     get(o->ev, type, tb ? j + (long)p * ldb : p + (long)j * ldb);
            long at = i + (long)j * ldc;
            set(o->dst, to, at, o->alpha * s + (o->beta ? o->beta * get(o->dst, to, at) : 0));
        }
}

static void run_one(op *o) {
    const char *bad = getenv("FAKE_FAULT");
    switch (o->kind) {
    case op_copy: memcpy(o->dst, o->src, o->bytes); break;
    case op_clear: memset(o->dst, 0, o->bytes); break;
    case op_event: o->ev->pending--; o->ev->time = clock_ms; break;
    case op_gemm: gemm(o); clock_ms += 2; break;
    case op_launch:
        note("ran %s", o->name);
        if (bad && !strncmp(o->name, bad, strlen(bad)) && ++dangerous == setting("FAKE_FAULT_AT", 1)) fault = illegal_address;
        if (strncmp(o->name, "hold", 4)) clock_ms += 1;
        break;
    }
}

static void run_until(event *ev) {
    int i = 0;
    for (; i < stream.count && !fault && (!ev || ev->pending > 0); i++) run_one(&stream.ops[i]);
    memmove(stream.ops, stream.ops + i, (stream.count - i) * sizeof(op));
    stream.count -= i;
}

static result put(op o) {
    WELL;
    add(capturing ? &recorded : &stream, o);
    if (!capturing && getenv("FAKE_EAGER")) run_until(NULL);
    return ok;
}

/* The driver. */
result cuInit(unsigned flags) { (void)flags; return setting("FAKE_INIT", 0); }
result cuDriverGetVersion(int *v) { *v = setting("FAKE_VERSION", 13000); return ok; }
result cuGetErrorName(result r, const char **s) { *s = r == illegal_address ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_FAKE"; return ok; }
result cuGetErrorString(result r, const char **s) { *s = r == illegal_address ? "an illegal memory access was encountered" : "fake"; return ok; }
result cuDeviceGetCount(int *n) { *n = setting("FAKE_DEVICES", 1); return ok; }
result cuDeviceGet(int *d, int i) { *d = i; return i < setting("FAKE_DEVICES", 1) ? ok : invalid_device; }
result cuDeviceGetName(char *s, int n, int d) { (void)d; snprintf(s, n, "Fake Card"); return ok; }
result cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; *n = setting("FAKE_MEMORY", 1L << 30); return ok; }
result cuDeviceGetAttribute(int *v, int a, int d) {
    (void)d;
    *v = a == 75 ? setting("FAKE_MAJOR", 9) : a == 76 ? 0 : a == 16 ? 132 : 0;
    return ok;
}
result cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; *c = &the_context; note("retain"); return ok; }
result cuDevicePrimaryCtxRelease_v2(int d) { (void)d; note("release"); return ok; }
result cuDevicePrimaryCtxReset_v2(int d) { (void)d; note("reset"); return ok; }
result cuCtxSetCurrent(void *c) { current = c; return fault; }
result cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *at, const unsigned long long *size, const unsigned long long *pitch,
                              const unsigned *box, const unsigned *every, int interleave, int swizzle, int promotion, int fill) {
    (void)map, (void)type, (void)rank, (void)at, (void)size, (void)pitch, (void)every, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    WELL;
    note("box of %u rows and %u columns", box[1], box[0]);
    return ok;
}
result cuStreamCreate(void **s, unsigned flags) { (void)flags; WELL; *s = &stream; return ok; }
result cuStreamDestroy_v2(void *s) { (void)s; WELL; return ok; }
result cuStreamSynchronize(void *s) {
    (void)s;
    WELL;
    if (capturing) return capture_invalidated;
    if (getenv("FAKE_HANG")) pause();
    run_until(NULL);
    return fault;
}
result cuMemGetInfo_v2(size_t *free, size_t *total) { WELL; *total = setting("FAKE_MEMORY", 1L << 30); *free = *total - used; return ok; }
result cuMemAlloc_v2(uint64_t *p, size_t n) {
    WELL;
    if (capturing) note("allocation in a capture");
    if (used + n > (size_t)setting("FAKE_MEMORY", 1L << 30)) return out_of_memory;
    used += n;
    void *m = aligned_alloc(256, (n + 16 + 255) / 256 * 256);
    memset(m, 0xEE, n);
    *p = (uint64_t)m;
    return ok;
}
result cuMemFree_v2(uint64_t p) { WELL; run_until(NULL); note("free"); free((void *)p); return fault; }
static struct { char *at; size_t n; } pinned[100];
static int pins;
result cuMemHostAlloc(void **p, size_t n, unsigned flags) {
    (void)flags;
    WELL;
    if (pins == 100) return out_of_memory;
    *p = malloc(n);
    pinned[pins].at = *p;
    pinned[pins++].n = n;
    return ok;
}
result cuMemFreeHost(void *p) { WELL; (void)p; return ok; }
result cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *q) { (void)q; return put((op){.kind = op_copy, .dst = (void *)d, .src = s, .bytes = n}); }
result cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, void *q) { (void)q; return put((op){.kind = op_copy, .dst = (void *)d, .src = (void *)s, .bytes = n}); }
result cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *q) { (void)q; (void)v; return put((op){.kind = op_clear, .dst = (void *)d, .bytes = n}); }
result cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *q) {
    (void)q;
    WELL;
    for (int i = 0; i < pins; i++)
        if ((char *)d >= pinned[i].at && (char *)d < pinned[i].at + pinned[i].n)
            return put((op){.kind = op_copy, .dst = d, .src = (void *)s, .bytes = n});
    run_until(NULL);
    if (!fault) memcpy(d, (void *)s, n);
    return fault;
}
result cuEventCreate(event **e, unsigned flags) { (void)flags; WELL; *e = calloc(1, sizeof(event)); return ok; }
result cuEventDestroy_v2(event *e) { WELL; free(e); return ok; }
result cuEventRecord(event *e, void *q) { (void)q; WELL; e->pending++; return put((op){.kind = op_event, .ev = e}); }
result cuEventSynchronize(event *e) { WELL; run_until(e); return fault; }
result cuEventElapsedTime(float *ms, event *a, event *b) { WELL; *ms = b->time - a->time; return ok; }
result cuEventElapsedTime_v2(float *ms, event *a, event *b) { return cuEventElapsedTime(ms, a, b); }

result cuModuleLoadData(void **m, const void *image) {
    WELL;
    const char *refuse = getenv("FAKE_REFUSE");
    int fatbin = *(const uint32_t *)image == 0xBA55ED50;
    note("load %s", fatbin ? "fatbin" : "ptx");
    if (refuse && !strcmp(refuse, "all")) return bad_ptx;
    if (refuse && !strcmp(refuse, "fatbin") && fatbin) return no_binary;
    *m = (void *)1;
    return ok;
}
result cuModuleUnload(void *m) { (void)m; WELL; return ok; }
result cuModuleGetFunction(void **f, void *m, const char *name) { (void)m; WELL; *f = strdup(name); return ok; }
result cuFuncSetAttribute(void *f, int a, int v) { WELL; note("%s attribute %d = %d", (char *)f, a, v); return v > 232448 ? invalid_value : ok; }
result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *q,
                      void **params, void **extra) {
    (void)q;
    (void)extra;
    if (bx * by * bz > 1024) return invalid_value;
    op o = {.kind = op_launch};
    int at = snprintf(o.name, sizeof o.name, "%s grid %ux%ux%u block %ux%ux%u shared %u arguments ", (char *)f, gx, gy, gz, bx, by, bz, shared);
    unsigned char *a = params[0]; // all arguments lie behind it
    for (size_t i = 0; at < (int)sizeof o.name - 3; i++) at += snprintf(o.name + at, sizeof o.name - at, "%02x", a[i]);
    return put(o);
}

result cuStreamBeginCapture_v2(void *s, int mode) {
    (void)s;
    WELL;
    if (mode != 2) return invalid_value;
    capturing = 1;
    recorded = (list){0};
    return ok;
}
result cuStreamEndCapture(void *s, list **g) {
    (void)s;
    WELL;
    capturing = 0;
    *g = malloc(sizeof(list));
    **g = recorded;
    return ok;
}
result cuGraphInstantiateWithFlags(list **e, list *g, unsigned long long flags) { (void)flags; WELL; *e = malloc(sizeof(list)); **e = *g; return ok; }
result cuGraphDestroy(list *g) { WELL; free(g); return ok; }
result cuGraphUpload(list *e, void *s) { (void)e; (void)s; WELL; return ok; }
result cuGraphLaunch(list *e, void *s) {
    (void)s;
    WELL;
    note("graph of %d", e->count);
    for (int i = 0; i < e->count; i++) put(e->ops[i]);
    return ok;
}
result cuGraphExecDestroy(list *e) { WELL; free(e->ops); free(e); note("graph destroyed"); return ok; }

/* cuBLAS. */
int cublasCreate_v2(void **h) { *h = &the_context; return setting("FAKE_BLAS", 0); }
int cublasDestroy_v2(void *h) { (void)h; note("cublas destroyed"); return ok; }
int cublasSetStream_v2(void *h, void *s) { (void)h; return s == &stream ? ok : 7; }
int cublasSetWorkspace_v2(void *h, void *w, size_t n) { (void)h; return w && n >= 32 << 20 ? ok : 7; }
int cublasSetMathMode(void *h, int mode) { (void)h; note("math mode %d", mode); return ok; }
int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int at, int lda, const void *b, int bt, int ldb,
                 const float *beta, void *c, int ct, int ldc, int compute, int algorithm) {
    (void)h;
    if (setting("FAKE_GEMM", 0)) return setting("FAKE_GEMM", 0);
    if (at != bt || (ct != 0 && ct != at) || compute != 68 || algorithm != -1) return 15;
    return put((op){.kind = op_gemm, .dst = c, .src = a, .ev = (event *)b, .alpha = *alpha, .beta = *beta,
                    .g = {ta, tb, m, n, k, lda, ldb, ldc, at, ct}}) ? 13 : ok;
}
