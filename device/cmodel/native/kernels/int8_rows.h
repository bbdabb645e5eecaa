// How rows rounded to int8 meet codes of 4 and 8 bits: sums of whole numbers, a block of inputs at a time.
//
//   WORDS           of a row's packed block
//   VECTORS_FOR<R>  vectors of outputs that fit the registers beside R rows
//   put(...)        writes a row's block, words `stride` apart
//   multiply(...)   sums = R rows' blocks, word after word, times the codes of NV vectors of outputs
#pragma once

#include "codes.h"
#include "rounding.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace CMODEL_ISA {
namespace {

// Pairs of int16, which every instruction set multiplies and adds exactly.
template <class Code>
struct PairRows {
    static constexpr int WORDS = BLOCK / 2;
    template <int R>
    static constexpr int VECTORS_FOR = least(VECTORS, R == 1 ? 4 : R == 2 ? 2 : 1);

    static void put(const RoundedBlock& block, uint32_t* to, int64_t stride) {
        const int8_t* codes = block.codes;
        for (int i = 0; i < WORDS; ++i) to[i * stride] = (uint16_t)codes[2 * i] | (uint32_t)codes[2 * i + 1] << 16;
    }

    template <int R, int NV>
    static CMODEL_INLINE void multiply(const uint32_t* x, const uint32_t* words, Int (&sums)[R][NV]) {
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < NV; ++v) sums[r][v] = Int{};
        }
        for (int k = 0; k < BLOCK; k += Code::INPUTS, words += PANEL) {
            Bits here[NV];
            for (int v = 0; v < NV; ++v) std::memcpy(&here[v], words + v * LANES, sizeof here[v]);
#pragma GCC unroll 4
            for (int i = 0; i < Code::INPUTS / 2; ++i, x += R) {
                Pairs codes[NV];
                for (int v = 0; v < NV; ++v) codes[v] = Code::codes(here[v], i);
                for (int r = 0; r < R; ++r) {
                    Pairs input = (Pairs)(Bits{} + x[r]);
                    for (int v = 0; v < NV; ++v) sums[r][v] += dot(codes[v], input);
                }
            }
        }
    }
};

// Instructions that multiply four bytes of each lane, and add the products to it:
//   SIGNED      whether they take codes of weights as signed ones; those of rows are signed anyway
//   Sum         what a block adds up in
//   total(...)  that as int32
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define CMODEL_BYTE_PRODUCTS
struct ByteProducts {
    static constexpr bool SIGNED = false;
    using Sum = Int;
    static CMODEL_INLINE Sum add(Sum sum, Bits codes, Bits x) {
#if defined(__AVX512VNNI__)
        return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
#else
        return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
#endif
    }
    static CMODEL_INLINE Int total(Sum sum) { return sum; }
};
#elif defined(__ARM_FEATURE_DOTPROD)
#define CMODEL_BYTE_PRODUCTS
struct ByteProducts {
    static constexpr bool SIGNED = true;
    using Sum = Int;
    static CMODEL_INLINE Sum add(Sum sum, Bits codes, Bits x) {
        return (Sum)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
    }
    static CMODEL_INLINE Int total(Sum sum) { return sum; }
};
#elif defined(__AVX2__)
#define CMODEL_BYTE_PRODUCTS
// An int16 adds up 16 products of at most 15 * 128 in magnitude, for which it has room; those of 8 bits it has not. So a
// block takes 8 products and 8 additions of a vector, 5 operations that make float32 of them and add it, and 12 / R that
// take codes apart: 24 at 4 rows for 256 products, where float32 takes 32 and the conversions. One row is as fast as the
// memory.
struct ByteProducts {
    static constexpr bool SIGNED = false;
    using Sum = Pairs;
    static CMODEL_INLINE Sum add(Sum sum, Bits codes, Bits x) {
        sum += (Pairs)_mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
        asm volatile("" : "+x"(sum));  // or all products come first, and go to memory
        return sum;
    }
    static CMODEL_INLINE Int total(Sum sum) { return dot(sum, Pairs{} + 1); }
};
#endif

#if defined(CMODEL_BYTE_PRODUCTS)
typedef int8_t Bytes __attribute__((vector_size(16)));

// Bytes: of each 8 inputs' codes those that ByteProducts take with the halves of Code's words.
template <class Code>
struct ByteRows {
    // A signed code plus 128 is unsigned; then a sum begins with what that adds to it.
    static constexpr bool MOVED = Code::SIGNED && !ByteProducts::SIGNED;
    static constexpr int WORDS = BLOCK / 4 + MOVED;
    template <int R>
    static constexpr int VECTORS_FOR = least(VECTORS, R == 1 ? 4 : 2);

    static void put(const RoundedBlock& block, uint32_t* to, int64_t stride) {
        if (MOVED) {
            *to = (uint32_t)(int32_t)(-128 * block.sum);
            to += stride;
        }
        uint32_t ordered[BLOCK / 4];
        for (int i = 0; i < BLOCK; i += sizeof(Bytes)) {
            Bytes codes;
            std::memcpy(&codes, block.codes + i, sizeof codes);
            codes = in_order(codes);
            std::memcpy((int8_t*)ordered + i, &codes, sizeof codes);
        }
        for (int i = 0; i < BLOCK / 4; ++i) to[i * stride] = ordered[i];
    }

    template <int R, int NV>
    static CMODEL_INLINE void multiply(const uint32_t* x, const uint32_t* words, Int (&sums)[R][NV]) {
        typename ByteProducts::Sum parts[R][NV];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) parts[r][v] = typename ByteProducts::Sum{};
            if constexpr (MOVED) {
                for (int v = 0; v < NV; ++v) parts[r][v] = (Int)(Bits{} + x[r]);
            }
        }
        if (MOVED) x += R;
#pragma GCC unroll 1
        for (int k = 0; k < BLOCK; k += Code::INPUTS, words += PANEL) {
            Bits here[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) std::memcpy(&here[v], words + v * LANES, sizeof here[v]);
#pragma GCC unroll 2
            for (int half = 0; half < Code::INPUTS / 4; ++half, x += R) {
                Bits codes[NV];
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) codes[v] = Code::bytes(here[v], half) ^ (MOVED ? 0x80808080 : 0);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    Bits input = Bits{} + x[r];
#pragma GCC unroll 8
                    for (int v = 0; v < NV; ++v) parts[r][v] = ByteProducts::add(parts[r][v], codes[v], input);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sums[r][v] = ByteProducts::total(parts[r][v]);
        }
    }

private:
    static CMODEL_INLINE Bytes in_order(Bytes codes) {
        constexpr const uint8_t* O = Code::BYTE_ORDER_OF_8;
#if defined(__clang__)
        return __builtin_shufflevector(codes, codes, O[0], O[1], O[2], O[3], O[4], O[5], O[6], O[7], 8 + O[0], 8 + O[1],
                                       8 + O[2], 8 + O[3], 8 + O[4], 8 + O[5], 8 + O[6], 8 + O[7]);
#else
        return __builtin_shuffle(codes, Bytes{O[0], O[1], O[2], O[3], O[4], O[5], O[6], O[7], 8 + O[0], 8 + O[1],
                                              8 + O[2], 8 + O[3], 8 + O[4], 8 + O[5], 8 + O[6], 8 + O[7]});
#endif
    }
};
#endif

template <class Code>
struct RowsFor {
    using Rows = PairRows<Code>;
};
#if defined(CMODEL_BYTE_PRODUCTS)
template <>
struct RowsFor<Int4> {
    using Rows = ByteRows<Int4>;
};
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
template <>
struct RowsFor<Int8> {
    using Rows = ByteRows<Int8>;
};
#endif

template <class Code>
using RoundedRows = typename RowsFor<Code>::Rows;

}  // namespace
}  // namespace CMODEL_ISA
