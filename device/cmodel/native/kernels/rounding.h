// Rows rounded to int8 in blocks of 32 inputs: device/int8_products.py defines them.
#pragma once

#include "linear.h"

namespace CMODEL_ISA {
namespace {

constexpr int64_t BLOCK = 32;

struct RoundedBlock {
    int8_t codes[BLOCK];
    float scale, sum;  // sum: of the codes
};

// The largest magnitude of some inputs, a multiple of BLOCK; NaN if one is not finite.
template <class T>
CMODEL_INLINE float largest_magnitude(const T* x, int64_t count) {
    // As whole numbers, of which those of NaN are the largest.
    Int largest_bits{};
    for (int64_t i = 0; i < count; i += LANES) {
        Int bits = (Int)((Bits)load(x + i) & 0x7fffffff);
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    return any(largest_bits >= 0x7f800000) ? __builtin_nanf("") : largest((Vec)largest_bits);
}

CMODEL_INLINE void store_bytes(int8_t* to, Int codes) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)codes));
#elif defined(__AVX2__)
    __m128i low = _mm256_castsi256_si128((__m256i)codes), high = _mm256_extracti128_si256((__m256i)codes, 1);
    __m128i shorts = _mm_packs_epi32(low, high);
    _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(shorts, shorts));
#else
    for (int i = 0; i < LANES; ++i) to[i] = (int8_t)codes[i];
#endif
}

// BLOCK inputs by a scale.
template <class T>
CMODEL_INLINE void round_block(const T* x, float scale, int32_t lowest, RoundedBlock& to) {
    constexpr float MAGIC = 0x1.8p23f;  // adding it rounds to an integer, which is then in the low bits
    to.scale = scale;
    to.sum = 0;
    if (!(scale > 0)) {
        std::memset(to.codes, 0, sizeof to.codes);
        return;
    }
    Int total{};
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        Int code = (Int)((Bits)(load(x + i) / scale + MAGIC) - (Bits)set1(MAGIC));
        code = code > 127 ? Int{} + 127 : code;
        code = code < lowest ? Int{} + lowest : code;
        total += code;
        store_bytes(to.codes + i, code);
    }
    to.sum = sum(__builtin_convertvector(total, Vec));
}

// take(block, rounded) for each block of a row of `in` inputs.
template <class T, class Take>
void round_row(const T* x, int64_t in, int64_t activations, const Take& take) {
    int64_t whole = in / BLOCK * BLOCK;
    T rest[BLOCK] = {};
    std::memcpy(rest, x + whole, (in - whole) * sizeof(T));
    float of_row = 0;
    if (activations == IN_ROWS) {
        float of_whole = largest_magnitude(x, whole), of_rest = largest_magnitude(rest, BLOCK);
        of_row = (of_whole >= of_rest || of_whole != of_whole ? of_whole : of_rest) / 127.5f;
    }
    RoundedBlock rounded;
    for (int64_t k = 0; k < in; k += BLOCK) {
        const T* block = k < whole ? x + k : rest;
        if (activations == IN_ROWS) {
            round_block(block, of_row, -128, rounded);
        } else {
            round_block(block, largest_magnitude(block, BLOCK) / 127, -127, rounded);
        }
        take(k / BLOCK, rounded);
    }
}

}  // namespace
}  // namespace CMODEL_ISA
