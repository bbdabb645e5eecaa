#include "collectives.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstring>
#include <new>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace cmodel {
namespace {

// Longer than ranks with cores of their own drift apart within a layer. Ranks that share a core yield at once.
constexpr std::chrono::microseconds SPIN{200};

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

void barrier(Group& group) {
    Shared& shared = *group.shared;
    uint32_t generation = shared.generation.load();
    if (shared.arrived.fetch_add(1) + 1 == uint32_t(group.ranks)) {
        shared.arrived.store(0);
        shared.generation.store(generation + 1);
        if (shared.sleeping.load() != 0) wake_all(shared.generation);
        return;
    }
    auto end = std::chrono::steady_clock::now() + SPIN;
    while (std::chrono::steady_clock::now() < end) {
        if (shared.generation.load() != generation) return;
        sched_yield();
    }
    shared.sleeping.fetch_add(1);
    while (shared.generation.load() == generation) sleep_while(shared.generation, generation);
    shared.sleeping.fetch_sub(1);
}

}  // namespace cmodel

using cmodel::Group;
using cmodel::Shared;

// A view of shared memory of so many bytes, which begins as zeros; null where that is too little. Never freed: it lasts
// as long as the process's part in the group.
EXPORT void* cmodel_group_open(void* memory, int64_t bytes, int rank, int ranks) {
    int64_t slot_bytes = (bytes - int64_t{sizeof(Shared)}) / (2 * ranks) / 64 * 64;
    if (slot_bytes <= 0) return nullptr;
    return new (std::nothrow)
        Group{static_cast<Shared*>(memory), static_cast<char*>(memory) + sizeof(Shared), slot_bytes, rank, ranks, 0};
}

namespace {

struct AllGather {
    Group* group;
    const char* data;  // [rows, row_bytes]
    int64_t rows, row_bytes;
    char* out;         // [rows, ranks, row_bytes]
};

struct Broadcast {
    Group* group;
    char* data;
    int64_t bytes, source;
};

}  // namespace

// out gets every rank's data, side by side.
EXPORT int cmodel_all_gather(const AllGather& a) {
    auto& [opened, from, rows, row_bytes, out] = a;
    Group& group = *opened;
    // As many rows at a time as fit in a slot; of longer rows one piece after the other.
    int64_t piece = row_bytes < group.slot_bytes ? row_bytes : group.slot_bytes;
    int64_t step = piece == row_bytes && piece > 0 ? group.slot_bytes / piece : 1;
    for (int64_t row = 0; row < rows; row += step) {
        int64_t count = rows - row < step ? rows - row : step;
        for (int64_t offset = 0; offset < row_bytes; offset += piece) {
            int64_t width = row_bytes - offset < piece ? row_bytes - offset : piece;
            for (int64_t r = 0; r < count; ++r) {
                std::memcpy(group.slot(group.rank) + r * width, from + (row + r) * row_bytes + offset, width);
            }
            barrier(group);
            for (int rank = 0; rank < group.ranks; ++rank) {
                for (int64_t r = 0; r < count; ++r) {
                    char* to = out + ((row + r) * group.ranks + rank) * row_bytes + offset;
                    std::memcpy(to, group.slot(rank) + r * width, width);
                }
            }
            group.turn ^= 1;
        }
    }
    return 0;
}

// Every rank's data becomes that of the source rank.
EXPORT int cmodel_broadcast(const Broadcast& a) {
    auto& [opened, data, bytes, source] = a;
    Group& group = *opened;
    for (int64_t offset = 0; offset < bytes; offset += group.slot_bytes) {
        int64_t width = bytes - offset < group.slot_bytes ? bytes - offset : group.slot_bytes;
        if (group.rank == source) std::memcpy(group.slot(source), data + offset, width);
        barrier(group);
        if (group.rank != source) std::memcpy(data + offset, group.slot(source), width);
        group.turn ^= 1;
    }
    return 0;
}
