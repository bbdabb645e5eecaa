#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace cmodel {
namespace {

// How long a thread without work watches for more before it sleeps: longer than the gap between two operators of a
// layer, so that a decode step wakes nobody; short enough that an idle process uses no CPU.
constexpr std::chrono::microseconds SPIN{50};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

template <class Condition>
bool spin_until(Condition&& condition) {
    auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < 32; ++i) {
            if (condition()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// CPUs that each thread may run on, those of thread i up to ends[i]; empty: wherever the process may.
struct Places {
    std::vector<int> cpus, ends;

    bool operator==(const Places& other) const { return cpus == other.cpus && ends == other.ends; }
};

// Keep a thread of the pool on its CPUs. Where the system refuses, it runs anywhere.
void keep(pthread_t handle, const Places& places, int thread) {
    if (thread >= (int)places.ends.size()) return;
    int begin = thread == 0 ? 0 : places.ends[thread - 1], end = places.ends[thread], largest = 0;
    for (int i = begin; i < end; ++i) largest = std::max(largest, places.cpus[i]);
    cpu_set_t* set = CPU_ALLOC(largest + 1);
    if (set == nullptr) return;
    size_t size = CPU_ALLOC_SIZE(largest + 1);
    CPU_ZERO_S(size, set);
    for (int i = begin; i < end; ++i) CPU_SET_S(places.cpus[i], size, set);
    pthread_setaffinity_np(handle, size, set);
    CPU_FREE(set);
}

// What a thread begins with of a loop: items [next, end) that nobody has taken.
struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> end{0};
};

class Pool {
public:
    Pool(int threads, const Places& places) : shares_(threads) {
        // Signals are for the threads that Python knows.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (int worker = 1; worker < threads; ++worker) {
                workers_.emplace_back([this, worker] { work(worker); });
                keep(workers_.back().native_handle(), places, worker);
            }
        } catch (const std::system_error&) {
            // The system grants no more threads: those that there are do the work.
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (std::thread& thread : workers_) thread.join();
    }

    void run(int64_t items, void (*body)(void*, int64_t, int), void* context) {
        if (items <= 1 || workers_.empty() || busy_.test_and_set(std::memory_order_acquire)) {
            for (int64_t item = 0; item < items; ++item) body(context, item, 0);
            return;
        }
        body_ = body;
        context_ = context;
        int64_t count = (int64_t)shares_.size();
        for (int64_t i = 0; i < count; ++i) {
            shares_[i].next.store(items * i / count, std::memory_order_relaxed);
            shares_[i].end.store(items * (i + 1) / count, std::memory_order_relaxed);
        }
        open_.store(true);
        bool sleeping;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1);
            sleeping = sleepers_ > 0;
        }
        if (sleeping) wake_.notify_all();
        take_items(0);
        // Only workers that came in time are waited for. One that enters later finds the loop closed: it counts
        // itself in before it looks, and here the loop is closed before the count is read (both seq_cst).
        open_.store(false);
        while (!spin_until([this] { return active_.load() == 0; })) std::this_thread::yield();
        busy_.clear(std::memory_order_release);
    }

private:
    // A thread begins with its own share, so that it meets the same panels of a weight in every loop, in the caches and
    // in the memory that are near to it; then it takes what others are late with.
    void take_items(int worker) {
        int count = (int)shares_.size();
        for (int i = 0; i < count; ++i) {
            Share& share = shares_[(worker + i) % count];
            int64_t end = share.end.load(std::memory_order_relaxed);
            while (share.next.load(std::memory_order_relaxed) < end) {
                int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
                if (item < end) body_(context_, item, worker);
            }
        }
    }

    void work(int worker) {
        uint64_t seen = 0;
        for (;;) {
            if (!spin_until([&] { return generation_.load() != seen; })) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleepers_;
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                --sleepers_;
            }
            seen = generation_.load();
            if (stop_) return;
            active_.fetch_add(1);
            if (open_.load()) take_items(worker);
            active_.fetch_sub(1);
        }
    }

    std::vector<Share> shares_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    int sleepers_ = 0;
    std::atomic<bool> stop_{false};
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::atomic<uint64_t> generation_{0};
    std::atomic<bool> open_{false};
    std::atomic<int> active_{0};
    void (*body_)(void*, int64_t, int) = nullptr;
    void* context_ = nullptr;
};

// Never destroyed: at process exit the workers sleep on, and go with the process.
std::atomic<Pool*> pool{nullptr};
std::mutex pool_mutex;
int wanted_threads = 1;
Places wanted_places;

// A child of fork has none of its parent's threads, so it starts its own with its first loop.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

Pool& the_pool() {
    Pool* current = pool.load();
    if (current == nullptr) {
        std::lock_guard<std::mutex> lock(pool_mutex);
        current = pool.load();
        if (current == nullptr) pool.store(current = new Pool(wanted_threads, wanted_places));
    }
    return *current;
}

struct Scratch {
    void* memory = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(memory); }
};

}  // namespace

void run_items(int64_t items, void (*body)(void*, int64_t, int), void* context) { the_pool().run(items, body, context); }

int thread_count() { return wanted_threads; }

void* scratch(size_t bytes, int number) {
    thread_local Scratch all[2];
    Scratch& mine = all[number];
    if (bytes > mine.size) {
        std::free(mine.memory);
        size_t size = (bytes + 4095) / 4096 * 4096;
        mine.memory = std::aligned_alloc(64, size);
        mine.size = mine.memory == nullptr ? 0 : size;
    }
    return mine.memory;
}

}  // namespace cmodel

// Share loops between this many threads from now on. places: null, or for each thread how many CPUs it may run on,
// followed by these. The first thread is whichever calls, and stays where it is. Not to be called while a kernel runs.
extern "C" __attribute__((visibility("default"))) void cmodel_set_threads(int threads, const int* places) {
    std::lock_guard<std::mutex> lock(cmodel::pool_mutex);
    cmodel::Places wanted;
    for (int i = 0; places != nullptr && i < threads; ++i) {
        int count = *places++;
        wanted.cpus.insert(wanted.cpus.end(), places, places + count);
        wanted.ends.push_back((int)wanted.cpus.size());
        places += count;
    }
    if (threads == cmodel::wanted_threads && wanted == cmodel::wanted_places) return;
    delete cmodel::pool.exchange(nullptr);
    cmodel::wanted_threads = threads;
    cmodel::wanted_places = wanted;
}
