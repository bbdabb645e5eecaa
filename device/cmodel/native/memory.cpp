// Large tensors in large pages.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

// Ask for huge pages under memory that is about to be filled. A kernel that streams through weights, or jumps between
// the blocks of a cache, otherwise waits for the translation of addresses. The system may decline. Pages that are there
// already, of an earlier use, are given back: new ones are huge, and near to the thread that fills them.
extern "C" __attribute__((visibility("default"))) void cmodel_prefer_huge_pages(void* memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + bytes) / page * page;
    if (begin < end) {
        madvise((void*)begin, end - begin, MADV_HUGEPAGE);
        madvise((void*)begin, end - begin, MADV_DONTNEED);
    }
#else
    (void)memory;
    (void)bytes;
#endif
}
