// The memory that the ranks of a tensor-parallel group share on one host, the barrier between them, the ring in which one
// leaves messages for the others, and their links to the ranks of other hosts.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace cmodel {

// At the start of the shared memory, which begins as zeros. Behind it are the bytes that each rank has taken from the
// ring, the slots, and the ring.
struct Shared {
    alignas(64) std::atomic<uint32_t> arrived;
    alignas(64) std::atomic<uint32_t> generation;
    alignas(64) std::atomic<uint32_t> sleeping;
    // Of the ring: bytes put in so far, how often some were taken, and how many sleep until either changes. Counts wrap.
    alignas(64) std::atomic<uint32_t> written;
    alignas(64) std::atomic<uint32_t> readers_sleeping;
    alignas(64) std::atomic<uint32_t> takings;
    alignas(64) std::atomic<uint32_t> writers_sleeping;
};

struct alignas(64) Taken {
    std::atomic<uint32_t> bytes;
};

// A connected, non-blocking socket to the first rank of another host, which holds `count` ranks from `first` on.
struct Link {
    int64_t socket, first, count;
};

// One process's view. The slots are two sets of one a rank, those of other hosts among them, used in turn: when a rank
// is past one exchange, all on its host have read what the exchange before it left in the other set.
struct Group {
    Shared* shared;
    Taken* taken;  // of the ranks on this host
    char* slots;
    int64_t slot_bytes;
    char* ring;
    uint32_t ring_bytes;  // a power of two, so that counts of bytes may wrap
    int rank;
    int ranks;
    int first;  // of the ranks on this host
    int here;   // how many they are
    std::vector<Link> links;  // of this host's first rank
    int turn = 0;

    char* slot(int of_rank) const { return slots + (int64_t{turn} * ranks + of_rank) * slot_bytes; }
};

// Wait until the first `bytes` of every rank's slot can be read by every rank.
void exchange(Group& group, int64_t bytes);

}  // namespace cmodel
