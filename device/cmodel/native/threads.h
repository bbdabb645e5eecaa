// A pool of threads that share the items of a loop, and scratch memory for kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cmodel {

// Run body(context, item, worker) for every item in [0, items), on any thread and in any order; return when all have
// run. worker is in [0, thread_count()) and no two bodies that run at one time have the same. A loop started within
// a loop, or while another thread's is running, runs on the calling thread alone.
void run_items(int64_t items, void (*body)(void* context, int64_t item, int worker), void* context);

// How many threads share a loop, the calling one among them.
int thread_count();

// At least bytes of memory, aligned to 64, that stays the calling thread's until it asks again for that of this number,
// 0 or 1. Null without memory.
void* scratch(size_t bytes, int number = 0);

template <class Body>
void parallel_for(int64_t items, const Body& body) {
    run_items(
        items,
        [](void* context, int64_t item, int worker) { (*static_cast<const Body*>(context))(item, worker); },
        const_cast<Body*>(&body));
}

}  // namespace cmodel
