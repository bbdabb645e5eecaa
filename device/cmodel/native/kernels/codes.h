// Weights of 4 and 8 bits as they stand in packed panels, and their exact values.
//
// A panel is [round_up(k, 32) / INPUTS][32] words of 32 bits, INPUTS inputs of one output in each: the even inputs in
// the lower half and the odd ones in the upper half, the first lowest, so that a shift leaves a pair of inputs where a
// bfloat16 product takes them. What is beyond the last output or the last input is ZERO, before it is arranged.
#pragma once

#include "linear.h"

namespace CMODEL_ISA {
namespace {

// int4: the value is code - 8.
struct Int4 {
    static constexpr float MIDDLE = 8;  // the code of 0
    static constexpr int INPUTS = 8;
    static constexpr uint32_t ZERO = 0x88888888;
    static constexpr bool HAS_NAN = false;

    // A word of what stands in memory order, input i in bits 4i.
    static uint32_t arrange(uint32_t inputs) { return gather(inputs) | gather(inputs >> 4) << 16; }

    // Input i of each word.
    static CMODEL_INLINE Vec value(Bits words, int i) {
        return __builtin_convertvector((Int)(words >> (i % 2 * 16 + i / 2 * 4) & 15), Vec) - 8;
    }

    // The codes of inputs 2i and 2i + 1 of each word.
    static CMODEL_INLINE Pairs codes(Bits words, int i) { return (Pairs)(words >> (4 * i) & 0x000f000f); }

    // The codes in half of each word, four in bytes; and of 8 inputs, whose codes come first in the two halves.
    static CMODEL_INLINE Bits bytes(Bits words, int half) { return words >> (4 * half) & 0x0f0f0f0f; }
    static constexpr bool SIGNED = false;
    static constexpr uint8_t BYTE_ORDER_OF_8[8] = {0, 4, 1, 5, 2, 6, 3, 7};

#if defined(__AVX512BF16__)
    // Inputs 2i and 2i + 1 of each word, as bfloat16. The table is there twice, for it is looked up by 5 bits.
    static CMODEL_INLINE __m512i pair(__m512i words, int i) {
        alignas(64) static constexpr uint16_t TABLE[32] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
            0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
            0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        };
        return _mm512_permutexvar_epi16(_mm512_srli_epi32(words, 4 * i), _mm512_load_si512(TABLE));
    }
#endif

private:
    static uint32_t gather(uint32_t x) {
        x &= 0x0f0f0f0f;
        x = (x | x >> 4) & 0x00ff00ff;
        return (x | x >> 8) & 0xffff;
    }
};

// float8_e4m3fn. The two codes of NaN read as 480: packing makes the scale NaN instead.
struct Float8 {
    static constexpr int INPUTS = 4;
    static constexpr uint32_t ZERO = 0;
    static constexpr bool HAS_NAN = true;

    static uint32_t arrange(uint32_t inputs) {
        return (inputs & 0xff0000ff) | (inputs >> 8 & 0xff00) | (inputs & 0xff00) << 8;
    }

    static bool any_nan(uint32_t inputs) {
        uint32_t magnitudes = inputs & 0x7f7f7f7f;
        return ((magnitudes + 0x01010101) & 0x80808080) != 0;
    }

    // Shifted into place the exponent is 120 too small; the product puts that right, for subnormal numbers too.
    static CMODEL_INLINE Vec value(Bits words, int i) {
        Int signed_code = (Int)(words << (24 - i % 2 * 16 - i / 2 * 8)) >> 4;
        return (Vec)((Bits)signed_code & 0x87f00000) * 0x1p120f;
    }

#if defined(__AVX512BF16__)
    // The seven subnormal numbers come from a table.
    static CMODEL_INLINE __m512i pair(__m512i words, int i) {
        alignas(64) static constexpr uint16_t SUBNORMAL[32] = {0x0000, 0x3b00, 0x3b80, 0x3bc0,
                                                               0x3c00, 0x3c20, 0x3c40, 0x3c60};
        __m512i low = i == 0 ? words : _mm512_srli_epi16(words, 8), high = i == 0 ? _mm512_slli_epi16(words, 8) : words;
        __m512i magnitude = _mm512_and_si512(_mm512_srli_epi16(high, 4), _mm512_set1_epi16(0x7f0));
        __mmask32 subnormal = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(0x80));
        __m512i normal = _mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7));
        __m512i exact = _mm512_mask_permutexvar_epi16(normal, subnormal, low, _mm512_load_si512(SUBNORMAL));
        return _mm512_ternarylogic_epi32(high, _mm512_set1_epi16((int16_t)0x8000), exact, 0xea);  // a & b | c
    }
#endif
};

// Whole numbers of 8 bits: the value is code - 128, and stands as that, signed.
struct Int8 {
    static constexpr float MIDDLE = 0;
    static constexpr int INPUTS = 4;
    static constexpr uint32_t ZERO = 0x80808080;
    static constexpr bool HAS_NAN = false;

    static uint32_t arrange(uint32_t inputs) { return Float8::arrange(inputs ^ 0x80808080); }

    static CMODEL_INLINE Vec value(Bits words, int i) {
        return __builtin_convertvector((Int)(words << (24 - i % 2 * 16 - i / 2 * 8)) >> 24, Vec);
    }

    // Inputs 2i and 2i + 1 of each word, signed.
    static CMODEL_INLINE Pairs codes(Bits words, int i) { return i == 0 ? (Pairs)words << 8 >> 8 : (Pairs)words >> 8; }

    static CMODEL_INLINE Bits bytes(Bits words, int) { return words; }
    static constexpr bool SIGNED = true;
    static constexpr uint8_t BYTE_ORDER_OF_8[8] = {0, 2, 1, 3, 4, 6, 5, 7};

#if defined(__AVX512BF16__)
    // Whole numbers up to 256 are exact in the upper half of a float32.
    static CMODEL_INLINE __m512i pair(__m512i words, int i) {
        __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(words, 24 - 8 * i), 24);
        __m512i odd = _mm512_srai_epi32(_mm512_slli_epi32(words, 8 - 8 * i), 24);
        __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(even)), 16);
        return _mm512_or_si512(low, _mm512_and_si512(_mm512_castps_si512(_mm512_cvtepi32_ps(odd)),
                                                     _mm512_set1_epi32((int)0xffff0000)));
    }
#endif
};

CMODEL_INLINE Vec load_scales(const Weight& a, int64_t at) {
    if (a.scales_dtype == BFLOAT16) return load((const BFloat16*)a.scales + at);
    if (a.scales_dtype == FLOAT16) return load((const Float16*)a.scales + at);
    return load((const float*)a.scales + at);
}

CMODEL_INLINE Vec load_shifts(const int8_t* from) {
#if defined(__AVX512F__)
    Int shifts = (Int)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
    Int shifts = (Int)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    Int shifts;
    for (int i = 0; i < LANES; ++i) shifts[i] = from[i];
#endif
    return __builtin_convertvector(shifts, Vec);
}

// Values of `inputs` inputs of a panel from `words` on, as float32 [inputs][32].
template <class Code>
void unpack(const uint32_t* words, int64_t inputs, float* to) {
    for (int64_t k = 0; k < inputs; k += Code::INPUTS, words += PANEL, to += Code::INPUTS * PANEL) {
        __builtin_prefetch((const char*)words + AHEAD);
        __builtin_prefetch((const char*)words + AHEAD + 64);
        for (int v = 0; v < VECTORS; ++v) {
            Bits here;
            std::memcpy(&here, words + v * LANES, sizeof here);
            for (int i = 0; i < Code::INPUTS; ++i) store(to + i * PANEL + v * LANES, Code::value(here, i));
        }
    }
}

#if defined(__AVX512BF16__)
// As bfloat16, [inputs / 2][32][2].
template <class Code>
void unpack(const uint32_t* words, int64_t inputs, uint32_t* to) {
    for (int64_t k = 0; k < inputs; k += Code::INPUTS, words += PANEL, to += Code::INPUTS / 2 * PANEL) {
        __builtin_prefetch((const char*)words + AHEAD);
        __builtin_prefetch((const char*)words + AHEAD + 64);
        __m512i low = _mm512_loadu_si512(words), high = _mm512_loadu_si512(words + LANES);
        for (int i = 0; i < Code::INPUTS / 2; ++i) {
            _mm512_storeu_si512(to + i * PANEL, Code::pair(low, i));
            _mm512_storeu_si512(to + i * PANEL + LANES, Code::pair(high, i));
        }
    }
}
#endif

// Few rows multiply with codes that are unpacked in registers; the others with a piece that is unpacked in memory.
template <class Kind, class Code>
struct FusedProduct {
    static constexpr int MOST_ROWS = 0;
    static void run(int64_t, const typename Kind::X*, const uint32_t*, int64_t, float*) {}
};

// A fused product by its run_block<R>, for up to MOST rows: of more the sums leave too few registers.
template <class Fused, class X, int MOST>
struct RowBlocks {
    static constexpr int MOST_ROWS = MOST;

    static void run(int64_t rows, const X* x, const uint32_t* words, int64_t inputs, float* sums) {
        run_rows<MOST>(rows, x, words, inputs, sums);
    }

private:
    template <int R>
    static void run_rows(int64_t rows, const X* x, const uint32_t* words, int64_t inputs, float* sums) {
        if (rows == R) return Fused::template run_block<R>(x, words, inputs, sums);
        if constexpr (R > 1) run_rows<R - 1>(rows, x, words, inputs, sums);
    }
};

// sums[rows][32] = packed rows times `inputs` inputs of a panel from `words` on, by the additions of Product<float>.
template <class Code>
struct FusedProduct<Product<float>, Code> : RowBlocks<FusedProduct<Product<float>, Code>, float, 4> {
    template <int R>
    static void run_block(const float* x, const uint32_t* words, int64_t inputs, float* sums) {
        constexpr int NV = least(VECTORS, R <= 2 ? 4 : 2), LINE = 64 / sizeof *words;
        for (int column = 0; column < PANEL; column += NV * LANES) {
            Vec sum[R][NV];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) sum[r][v] = Vec{};
            }
            const uint32_t* at = words + column;
            const float* at_x = x;
            for (int64_t k = 0; k < inputs; k += Code::INPUTS, at += PANEL, at_x += Code::INPUTS * R) {
                for (int i = 0; i < NV * LANES; i += LINE) __builtin_prefetch((const char*)(at + i) + AHEAD);
                Bits here[NV];
                // One by one: of all together the compiler makes halves, which then wait for each other.
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) std::memcpy(&here[v], at + v * LANES, sizeof here[v]);
#pragma GCC unroll 8
                for (int i = 0; i < Code::INPUTS; ++i) {
#pragma GCC unroll 8
                    for (int v = 0; v < NV; ++v) {
                        Vec value = Code::value(here[v], i);
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r) sum[r][v] = fma(set1(at_x[i * R + r]), value, sum[r][v]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) store(sums + r * PANEL + column + v * LANES, sum[r][v]);
            }
        }
    }
};

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
// sums[rows][32] = packed rows times `inputs` inputs of a panel from `words` on, by the additions of BFloat16Product.
template <class Code>
struct FusedProduct<BFloat16Product, Code> : RowBlocks<FusedProduct<BFloat16Product, Code>, uint32_t, 12> {
    template <int R>
    static void run_block(const uint32_t* x, const uint32_t* words, int64_t inputs, float* sums) {
        Vec sum[R][2];
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Vec{};
        for (int64_t k = 0; k < inputs; k += Code::INPUTS, words += PANEL, x += Code::INPUTS / 2 * R) {
            __builtin_prefetch((const char*)words + AHEAD);
            __builtin_prefetch((const char*)words + AHEAD + 64);
            __m512i low = _mm512_loadu_si512(words), high = _mm512_loadu_si512(words + LANES);
            for (int i = 0; i < Code::INPUTS / 2; ++i) {
                __m512bh first = (__m512bh)Code::pair(low, i), second = (__m512bh)Code::pair(high, i);
                for (int r = 0; r < R; ++r) {
                    __m512bh input = (__m512bh)_mm512_set1_epi32((int)x[i * R + r]);
                    sum[r][0] = (Vec)_mm512_dpbf16_ps((__m512)sum[r][0], input, first);
                    sum[r][1] = (Vec)_mm512_dpbf16_ps((__m512)sum[r][1], input, second);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            store(sums + r * PANEL, sum[r][0]);
            store(sums + r * PANEL + LANES, sum[r][1]);
        }
    }
};
#endif

}  // namespace
}  // namespace CMODEL_ISA
