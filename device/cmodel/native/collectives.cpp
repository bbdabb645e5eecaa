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
    auto end = std::chrono::steady_clock::now() + SPIN;
    while (std::chrono::steady_clock::now() < end) {
        if (shared.generation.load() != generation) return;
        sched_yield();
    }
    shared.sleeping.fetch_add(1);
    while (shared.generation.load() == generation) sleep_while(shared.generation, generation);
    shared.sleeping.fetch_sub(1);
}

// What goes one way on one link: `count` slots one after the other, `bytes` of each.
struct Way {
    int socket, slot, count;
    int64_t done = 0;
};

// Move as much as the socket takes or holds now. Whether anything was moved.
bool move(Group& group, Way& way, int64_t bytes, bool sends) {
    bool moved = false;
    while (way.count > 0) {
        char* at = group.slot(way.slot) + way.done;
        ssize_t size = sends ? send(way.socket, at, bytes - way.done, MSG_NOSIGNAL)
                             : recv(way.socket, at, bytes - way.done, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return moved;
        // The other host's process is gone. As where one of this host is, we wait to be ended by who watches us all.
        while (size <= 0) pause();
        moved = true;
        way.done += size;
        if (way.done == bytes) ++way.slot, --way.count, way.done = 0;
    }
    return moved;
}

// Send this host's slots to all others while theirs come. TCP keeps the order: who is ahead by an exchange waits in the
// socket until the other end asks for it.
void transfer(Group& group, int64_t bytes, int source) {
    std::vector<Way> out, in;
    for (const Link& link : group.links) {
        auto way = [&](int first, int count) {
            return source < 0 ? Way{int(link.socket), first, count}
                              : Way{int(link.socket), source, source >= first && source < first + count};
        };
        out.push_back(way(group.first, group.here));
        in.push_back(way(int(link.first), int(link.count)));
    }
    auto end = std::chrono::steady_clock::now() + SPIN;
    for (;;) {
        bool moved = false;
        std::vector<pollfd> waiting;
        for (size_t i = 0; i < out.size(); ++i) {
            moved |= move(group, out[i], bytes, true);
            moved |= move(group, in[i], bytes, false);
            short events = (out[i].count > 0 ? POLLOUT : 0) | (in[i].count > 0 ? POLLIN : 0);
            if (events) waiting.push_back({out[i].socket, events, 0});
        }
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

}  // namespace

void exchange(Group& group, int64_t bytes, int source) {
    barrier(group);
    if (group.here == group.ranks) return;
    if (group.rank == group.first && bytes > 0) transfer(group, bytes, source);
    barrier(group);
}

}  // namespace cmodel

using cmodel::exchange;
using cmodel::Group;
using cmodel::Link;
using cmodel::Shared;

// A view of shared memory of so many bytes, which begins as zeros; null where that is too little. `here` ranks from
// `first` on share it; the first of them has links to all other hosts. Never freed: it lasts as long as the process's
// part in the group.
EXPORT void* cmodel_group_open(
    void* memory, int64_t bytes, int rank, int ranks, int first, int here, const Link* links, int link_count) {
    int64_t slot_bytes = (bytes - int64_t{sizeof(Shared)}) / (2 * ranks) / 64 * 64;
    if (slot_bytes <= 0) return nullptr;
    return new (std::nothrow) Group{static_cast<Shared*>(memory), static_cast<char*>(memory) + sizeof(Shared), slot_bytes,
                                    rank, ranks, first, here, std::vector<Link>(links, links + link_count)};
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

// Every rank's data becomes that of the source rank.
EXPORT int cmodel_broadcast(const Broadcast& a) {
    auto& [opened, data, bytes, source] = a;
    Group& group = *opened;
    for (int64_t offset = 0; offset < bytes; offset += group.slot_bytes) {
        int64_t width = bytes - offset < group.slot_bytes ? bytes - offset : group.slot_bytes;
        if (group.rank == source) std::memcpy(group.slot(source), data + offset, width);
        exchange(group, width, int(source));
        if (group.rank != source) std::memcpy(data + offset, group.slot(source), width);
        group.turn ^= 1;
    }
    return 0;
}
