// KERNEL(name) enters a kernel into its library's list. Each library is made of one .cu file.
#pragma once

namespace emulated {

template <class T> constexpr char kind() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_integral_v<T>) return 'i';
    if (std::is_floating_point_v<T>) return 'f';
    return 's';
}

template <class T> T argument(const void *at) {
    T x;
    memcpy(&x, at, sizeof x);
    return x;
}

template <auto f> struct Caller;

template <class... P, void (*f)(P...)> struct Caller<f> {
    static constexpr unsigned sizes[] = {sizeof(P)..., 0};
    static constexpr char kinds[] = {kind<P>()..., 0};

    static void run(void *const *args) { run(args, std::index_sequence_for<P...>()); }

    template <size_t... i> static void run(void *const *args, std::index_sequence<i...>) { f(argument<P>(args[i])...); }

    static Kernel kernel(const char *name, const Kernel *next) { return {name, run, sizeof...(P), sizes, kinds, next}; }
};

static const Kernel *kernels;

struct Entry {
    Kernel kernel;
    Entry(const Kernel &k) : kernel(k) { kernels = &kernel; }
};

// Something among the library's shared variables, to find where they lie.
static thread_local char shared_anchor;

}  // namespace emulated

#define KERNEL(name) static const emulated::Entry entry_of_##name(emulated::Caller<&name>::kernel(#name, emulated::kernels));

extern "C" __attribute__((visibility("default"), used)) inline const emulated::Kernel *emulated_kernels() { return emulated::kernels; }
extern "C" __attribute__((visibility("default"), used)) inline void *emulated_anchor() {
    return const_cast<char *>(static_cast<volatile char *>(&emulated::shared_anchor));
}
