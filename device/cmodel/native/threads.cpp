#include "threads.h"

#include <pthread.h>
#include <signal.h>

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

class Pool {
public:
    explicit Pool(int threads) {
        // Signals are for the threads that Python knows.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
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
        items_ = items;
        next_.store(0);
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
    void take_items(int worker) {
        for (int64_t item; (item = next_.fetch_add(1)) < items_;) body_(context_, item, worker);
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

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    int sleepers_ = 0;
    std::atomic<bool> stop_{false};
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::atomic<uint64_t> generation_{0};
    std::atomic<bool> open_{false};
    std::atomic<int> active_{0};
    std::atomic<int64_t> next_{0};
    void (*body_)(void*, int64_t, int) = nullptr;
    void* context_ = nullptr;
    int64_t items_ = 0;
};

// Never destroyed: at process exit the workers sleep on, and go with the process.
std::atomic<Pool*> pool{nullptr};
std::mutex pool_mutex;
int wanted_threads = 1;

// A child of fork has none of its parent's threads, so it starts its own with its first loop.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

Pool& the_pool() {
    Pool* current = pool.load();
    if (current == nullptr) {
        std::lock_guard<std::mutex> lock(pool_mutex);
        current = pool.load();
        if (current == nullptr) pool.store(current = new Pool(wanted_threads));
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

// Share loops between this many threads from now on. Not to be called while a kernel runs.
extern "C" __attribute__((visibility("default"))) void cmodel_set_threads(int threads) {
    std::lock_guard<std::mutex> lock(cmodel::pool_mutex);
    if (threads == cmodel::wanted_threads) return;
    delete cmodel::pool.exchange(nullptr);
    cmodel::wanted_threads = threads;
}
