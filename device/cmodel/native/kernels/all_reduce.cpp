// The sum over the ranks of a tensor-parallel group.

#include "../collectives.h"
#include "../simd.h"

namespace CMODEL_ISA {
namespace {

struct AllReduce {
    int64_t dtype;
    cmodel::Group* group;
    void* data;  // [size]
    int64_t size;
};

// Ranks are added in their order, in float32, by every rank for itself: all get the same bits, on however many hosts.
template <class T>
int run(cmodel::Group& group, T* data, int64_t size) {
    int64_t most_at_once = group.slot_bytes / int64_t{sizeof(T)};
    for (int64_t start = 0; start < size; start += most_at_once) {
        int64_t count = least(size - start, most_at_once);
        std::memcpy(group.slot(group.rank), data + start, count * sizeof(T));
        cmodel::exchange(group, count * int64_t{sizeof(T)});
        for (int64_t i = 0; i < count; i += LANES) {
            Vec total = {};
            for (int rank = 0; rank < group.ranks; ++rank) {
                total = total + load_some(reinterpret_cast<const T*>(group.slot(rank)) + i, count - i);
            }
            store_some(data + start + i, total, count - i);
        }
        group.turn ^= 1;
    }
    return DONE;
}

}  // namespace

// data becomes the sum over the ranks.
CMODEL_EXPORT(all_reduce)(const AllReduce& a) {
    return with_type(a.dtype, [&](auto t) { return run(*a.group, static_cast<decltype(t)*>(a.data), a.size); });
}

}  // namespace CMODEL_ISA
