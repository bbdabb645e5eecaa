// The memory that the processes of one tensor-parallel group share, and the barrier between them.
#pragma once

#include <atomic>
#include <cstdint>

namespace cmodel {

// At the start of the shared memory, which begins as zeros.
struct Shared {
    alignas(64) std::atomic<uint32_t> arrived;
    alignas(64) std::atomic<uint32_t> generation;
    alignas(64) std::atomic<uint32_t> sleeping;
};

// One process's view. The memory behind Shared is two sets of one slot a rank, used in turn: when a rank is past the
// barrier of one exchange, all have read what the exchange before it left in the other set.
struct Group {
    Shared* shared;
    char* slots;
    int64_t slot_bytes;
    int rank;
    int ranks;
    int turn;

    char* slot(int of_rank) const { return slots + (int64_t{turn} * ranks + of_rank) * slot_bytes; }
};

// Wait until every rank is here. What they wrote before it can be read after it.
void barrier(Group& group);

}  // namespace cmodel
