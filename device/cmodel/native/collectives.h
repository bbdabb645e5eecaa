// The memory that the ranks of a tensor-parallel group share on one host, the barrier between them, and their links to
// the ranks of other hosts.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace cmodel {

// At the start of the shared memory, which begins as zeros.
struct Shared {
    alignas(64) std::atomic<uint32_t> arrived;
    alignas(64) std::atomic<uint32_t> generation;
    alignas(64) std::atomic<uint32_t> sleeping;
};

// A connected, non-blocking socket to the first rank of another host, which holds `count` ranks from `first` on.
struct Link {
    int64_t socket, first, count;
};

// One process's view. The memory behind Shared is two sets of one slot a rank, those of other hosts among them, used in
// turn: when a rank is past one exchange, all on its host have read what the exchange before it left in the other set.
struct Group {
    Shared* shared;
    char* slots;
    int64_t slot_bytes;
    int rank;
    int ranks;
    int first;  // of the ranks on this host
    int here;   // how many they are
    std::vector<Link> links;  // of this host's first rank
    int turn = 0;

    char* slot(int of_rank) const { return slots + (int64_t{turn} * ranks + of_rank) * slot_bytes; }
};

// Wait until the first `bytes` of every rank's slot, or those of one source, can be read by every rank.
void exchange(Group& group, int64_t bytes, int source = -1);

}  // namespace cmodel
