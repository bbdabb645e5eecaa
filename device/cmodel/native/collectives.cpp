#include "collectives.h"

#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <new>
#include <utility>

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

// Wait until something is so, which may become so whenever the word changes. sleepers: how many are to be woken then.
template <class Ready>
void wait_until(std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, Ready ready) {
    auto end = std::chrono::steady_clock::now() + SPIN;
    while (std::chrono::steady_clock::now() < end) {
        if (ready()) return;
        sched_yield();
    }
    sleepers.fetch_add(1);
    for (;;) {
        uint32_t seen = word.load();
        if (ready()) break;
        sleep_while(word, seen);
    }
    sleepers.fetch_sub(1);
}

// Wait until every rank of this host is here. What they wrote before it can be read after it.
void barrier(Group& group) {
    Shared& shared = *group.shared;
    uint32_t generation = shared.generation.load();
    if (shared.arrived.fetch_add(1) + 1 == uint32_t(group.here)) {
        shared.arrived.store(0);
        shared.generation.store(generation + 1);
        if (shared.sleeping.load() != 0) wake_all(shared.generation);
        return;
    }
    wait_until(shared.generation, shared.sleeping, [&] { return shared.generation.load() != generation; });
}

// This rank is done with what was put into the ring up to there.
void take_to(Group& group, uint32_t end) {
    Shared& shared = *group.shared;
    group.taken[group.rank - group.first].bytes.store(end);
    shared.takings.fetch_add(1);
    if (shared.writers_sleeping.load() != 0) wake_all(shared.takings);
}

uint32_t smallest(uint32_t a, uint32_t b, int64_t c) {
    uint32_t least = a < b ? a : b;
    return c < int64_t{least} ? uint32_t(c) : least;
}

// Put a message into the ring for the other ranks of this host, and wait for them only where it is full. Whoever puts
// one has taken all those before it.
void put(Group& group, const char* data, int64_t bytes) {
    Shared& shared = *group.shared;
    int own = group.rank - group.first;
    uint32_t end = group.taken[own].bytes.load();
    auto room = [&] {
        uint32_t most = 0;
        for (int rank = 0; rank < group.here; ++rank) {
            uint32_t untaken = rank == own ? 0 : end - group.taken[rank].bytes.load();
            if (untaken > most) most = untaken;
        }
        return group.ring_bytes - most;
    };
    while (bytes > 0) {
        wait_until(shared.takings, shared.writers_sleeping, [&] { return room() != 0; });
        uint32_t at = end % group.ring_bytes, count = smallest(room(), group.ring_bytes - at, bytes);
        std::memcpy(group.ring + at, data, count);
        data += count, bytes -= count, end += count;
        shared.written.store(end);
        if (shared.readers_sleeping.load() != 0) wake_all(shared.written);
    }
    take_to(group, end);
}

// Take the next message out of the ring.
void take(Group& group, char* data, int64_t bytes) {
    Shared& shared = *group.shared;
    uint32_t end = group.taken[group.rank - group.first].bytes.load();
    while (bytes > 0) {
        wait_until(shared.written, shared.readers_sleeping, [&] { return shared.written.load() != end; });
        uint32_t at = end % group.ring_bytes, count = smallest(shared.written.load() - end, group.ring_bytes - at, bytes);
        std::memcpy(data, group.ring + at, count);
        data += count, bytes -= count, end += count;
        take_to(group, end);
    }
}

// What goes one way on one link: `count` pieces of `bytes`, so far apart from each other.
struct Way {
    int socket;
    char* at;
    int64_t bytes, apart;
    int count;
    int64_t done = 0;
};

// Move as much as the socket takes or holds now. Whether anything was moved.
bool move(Way& way, bool sends) {
    bool moved = false;
    while (way.count > 0) {
        ssize_t size = sends ? send(way.socket, way.at + way.done, way.bytes - way.done, MSG_NOSIGNAL)
                             : recv(way.socket, way.at + way.done, way.bytes - way.done, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return moved;
        // The other host's process is gone. As where one of this host is, we wait to be ended by who watches us all.
        while (size <= 0) pause();
        moved = true;
        way.done += size;
        if (way.done == way.bytes) way.at += way.apart, --way.count, way.done = 0;
    }
    return moved;
}

// Send and receive beside each other until all is done. TCP keeps the order: who is ahead waits in the socket until the
// other end asks for it.
void transfer(std::vector<Way> out, std::vector<Way> in) {
    auto end = std::chrono::steady_clock::now() + SPIN;
    for (;;) {
        bool moved = false;
        std::vector<pollfd> waiting;
        auto go_on = [&](std::vector<Way>& ways, bool sends) {
            for (Way& way : ways) {
                moved |= move(way, sends);
                if (way.count > 0) waiting.push_back({way.socket, short(sends ? POLLOUT : POLLIN), 0});
            }
        };
        go_on(out, true);
        go_on(in, false);
        if (waiting.empty()) return;
        auto now = std::chrono::steady_clock::now();
        if (moved) {
            end = now + SPIN;
        } else if (now < end) {
            sched_yield();
        } else {
            poll(waiting.data(), waiting.size(), -1);
        }
    }
}

// Send this host's slots to all others while theirs come.
void transfer_slots(Group& group, int64_t bytes) {
    std::vector<Way> out, in;
    for (const Link& link : group.links) {
        auto way = [&](int first, int count) {
            return Way{int(link.socket), group.slot(first), bytes, group.slot_bytes, count};
        };
        out.push_back(way(group.first, group.here));
        in.push_back(way(int(link.first), int(link.count)));
    }
    transfer(std::move(out), std::move(in));
}

// Of the links those to the host of a rank, or to all others.
std::vector<Way> ways(const Group& group, char* data, int64_t bytes, int rank = -1) {
    std::vector<Way> found;
    for (const Link& link : group.links) {
        bool there = rank >= link.first && rank < link.first + link.count;
        if (rank < 0 || there) found.push_back({int(link.socket), data, bytes, 0, 1});
    }
    return found;
}

}  // namespace

void exchange(Group& group, int64_t bytes) {
    barrier(group);
    if (group.here == group.ranks) return;
    if (group.rank == group.first && bytes > 0) transfer_slots(group, bytes);
    barrier(group);
}

// The source's data for all: over the ring of its host, and over those of others, whose first ranks pass it on.
void spread(Group& group, char* data, int64_t bytes, int source) {
    bool of_here = source >= group.first && source < group.first + group.here;
    if (group.rank == (of_here ? source : group.first)) {
        if (!of_here) transfer({}, ways(group, data, bytes, source));
        if (group.here > 1) put(group, data, bytes);
    } else {
        take(group, data, bytes);
    }
    if (of_here && group.rank == group.first) transfer(ways(group, data, bytes), {});
}

}  // namespace cmodel

using cmodel::exchange;
using cmodel::Group;
using cmodel::Link;
using cmodel::Shared;
using cmodel::Taken;

// A view of shared memory of so many bytes, which begins as zeros and of which the ring takes at most a quarter; null
// where that is too little. `here` ranks from `first` on share it; the first of them has links to all other hosts. Never
// freed: it lasts as long as the process's part in the group.
EXPORT void* cmodel_group_open(
    void* memory, int64_t bytes, int rank, int ranks, int first, int here, const Link* links, int link_count) {
    // Of the same sizes on every host, for all cut what they exchange into the same pieces.
    int64_t ring_bytes = 64, head = sizeof(Shared) + int64_t(sizeof(Taken)) * ranks;
    while (ring_bytes * 8 <= bytes && ring_bytes < (int64_t{1} << 30)) ring_bytes *= 2;
    int64_t slot_bytes = (bytes - head - ring_bytes) / (2 * ranks) / 64 * 64;
    if (slot_bytes <= 0) return nullptr;
    char* start = static_cast<char*>(memory);
    return new (std::nothrow) Group{reinterpret_cast<Shared*>(start),
                                    reinterpret_cast<Taken*>(start + sizeof(Shared)),
                                    start + head,
                                    slot_bytes,
                                    start + bytes - ring_bytes,
                                    uint32_t(ring_bytes),
                                    rank,
                                    ranks,
                                    first,
                                    here,
                                    std::vector<Link>(links, links + link_count)};
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
            exchange(group, count * width);
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

// Every rank's data becomes that of the source rank, which does not wait for the others as long as it has room for what
// they have not taken yet.
EXPORT int cmodel_broadcast(const Broadcast& a) {
    if (a.bytes > 0) cmodel::spread(*a.group, a.data, a.bytes, int(a.source));
    return 0;
}
