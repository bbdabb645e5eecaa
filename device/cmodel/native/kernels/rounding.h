// Rows rounded to int8 in blocks of 32 inputs: device/int8_products.py defines them.
#pragma once

#include "linear.h"

namespace CMODEL_ISA {
namespace {

constexpr int64_t BLOCK = 32;

struct RoundedBlock {
    int8_t codes[BLOCK];
    float scale;
    int32_t sum;  // of the codes
};

// The largest magnitude of some inputs, as bits, by which those of what is not finite are the largest.
template <class T>
CMODEL_INLINE int32_t largest_bits(const T* x, int64_t count) {
    Int largest{};
    for (int64_t i = 0; i < count; i += LANES) {
        Int bits = (Int)((Bits)load_some(x + i, count - i) & 0x7fffffff);
        largest = bits > largest ? bits : largest;
    }
    int32_t result = 0;
    for (int i = 0; i < LANES; ++i) result = most(result, largest[i]);
    return result;
}

CMODEL_INLINE float scale_of(int32_t bits, float steps) {
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    return bits < 0x7f800000 ? magnitude / steps : __builtin_nanf("");
}

// The first count inputs, at most 32, by a scale; the others are 0.
template <class T>
CMODEL_INLINE void round_block(const T* x, int64_t count, float scale, int32_t lowest, RoundedBlock& to) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    constexpr float MAGIC = 0x1.8p23f;  // adding it rounds to an integer, which is then in the low bits
    to.scale = scale;
    Int sum{};
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        Int code{};
        if (scale > 0 && i < count) {
            code = (Int)((Bits)(load_some(x + i, count - i) / scale + MAGIC) - (Bits)set1(MAGIC));
            code = code > 127 ? Int{} + 127 : code < lowest ? Int{} + lowest : code;
        }
        sum += code;
        Bytes bytes = __builtin_convertvector(code, Bytes);
        std::memcpy(to.codes + i, &bytes, sizeof bytes);
    }
    to.sum = 0;
    for (int i = 0; i < LANES; ++i) to.sum += sum[i];
}

// take(block, rounded) for each block of a row of `in` inputs.
template <class T, class Take>
void round_row(const T* x, int64_t in, int64_t activations, const Take& take) {
    float of_row = activations == IN_ROWS ? scale_of(largest_bits(x, in), 127.5f) : 0;
    RoundedBlock rounded;
    for (int64_t k = 0; k < in; k += BLOCK) {
        int64_t count = least(BLOCK, in - k);
        if (activations == IN_ROWS) {
            round_block(x + k, count, of_row, -128, rounded);
        } else {
            round_block(x + k, count, scale_of(largest_bits(x + k, count), 127.f), -127, rounded);
        }
        take(k / BLOCK, rounded);
    }
}

}  // namespace
}  // namespace CMODEL_ISA
