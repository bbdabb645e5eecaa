// Causal attention over a paged cache, with rotation of q and k and the write of k and v: one command.

#include "attention_kernel.h"
#include "attention_pairs.h"
#include "attention_tile.h"

namespace CMODEL_ISA {
namespace {

template <class T, class Tile>
int attend(const Attention& a) {
    AttentionKernel<PagedCache<T>, Tile> kernel{a, {a}};
    auto layout = kernel.layout();
    char* memory = (char*)cmodel::scratch(layout.bytes);
    if (memory == nullptr) return NO_MEMORY;
    kernel.run(layout, 0, a.tokens, memory);
    return DONE;
}

}  // namespace

// BAD_ARGUMENT: lengths, blocks or slots that do not fit the cache or the tables.
CMODEL_EXPORT(paged_attention)(const Attention& a) {
    if (!valid(a)) return BAD_ARGUMENT;
    switch (a.dtype) {
#if defined(__AVX512BF16__)
        case BFLOAT16: return attend<BFloat16, BFloat16Tile>(a);
#else
        case BFLOAT16: return attend<BFloat16, FloatTile<BFloat16>>(a);
#endif
        case FLOAT16: return attend<Float16, FloatTile<Float16>>(a);
        case FLOAT32: return attend<float, FloatTile<float>>(a);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
