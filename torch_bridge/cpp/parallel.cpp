// Work on libtorch's own threads. This file alone is compiled with OpenMP, as libtorch is: its headers run a loop
// serially otherwise.
#include "bridge.h"

#include <ATen/Parallel.h>

#ifndef _OPENMP
#error "compile with -fopenmp: without it at::parallel_for is a plain loop"
#endif

// It raises what the body raises, and a body from Rust raises nothing.
extern "C" void hb_parallel_for(
    int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* user) noexcept {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(user, begin, end); });
}
