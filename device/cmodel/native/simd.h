// Vectors of float32 for kernels that are compiled once for each instruction set.
//
// CMODEL_ISA names the set and the namespace that a kernel lives in. Contraction of a * b + c is off, and fma() is one
// operation on every path of a set, so a result does not depend on the path that computed it. No function here or in a
// kernel may come from the standard library as a template: the linker would merge the sets' copies into one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define CMODEL_JOIN2(a, b) a##b
#define CMODEL_JOIN(a, b) CMODEL_JOIN2(a, b)
// The C name of this set's copy of a kernel: cmodel_<name>_<isa>. A kernel takes its structure of
// device/cmodel/arguments.py.
#define CMODEL_EXPORT(name) \
    extern "C" __attribute__((visibility("default"))) int CMODEL_JOIN(cmodel_##name##_, CMODEL_ISA)

#define CMODEL_INLINE inline __attribute__((always_inline))

namespace CMODEL_ISA {

// Answers of a kernel.
constexpr int DONE = 0, BAD_ARGUMENT = 1, NO_MEMORY = 2;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Int __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Half __attribute__((vector_size(LANES * 2)));
typedef int16_t Pairs __attribute__((vector_size(LANES * 4)));

// Storage types of activations, weights and caches. The numbers are those of device/cmodel/kernels.py.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
enum Dtype { BFLOAT16 = 0, FLOAT16 = 1, FLOAT32 = 2 };

// What call(T{}) answers, where T is the type that a number stands for. BAD_ARGUMENT for a number of none.
template <class Call>
inline int with_type(int64_t dtype, const Call& call) {
    switch (dtype) {
        case BFLOAT16: return call(BFloat16{});
        case FLOAT16: return call(Float16{});
        case FLOAT32: return call(float{});
    }
    return BAD_ARGUMENT;
}

template <class T>
CMODEL_INLINE constexpr T least(T a, T b) {
    return b < a ? b : a;
}
template <class T>
CMODEL_INLINE constexpr T most(T a, T b) {
    return a < b ? b : a;
}
CMODEL_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
CMODEL_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CMODEL_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

CMODEL_INLINE Vec set1(float value) { return value - Vec{}; }

CMODEL_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < LANES; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// The sum of each pair's two products: exact, as long as not both are of -32768s.
CMODEL_INLINE Int dot(Pairs a, Pairs b) {
#if defined(__AVX512F__)
    return (Int)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Int)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Int)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return ((Int)a << 16 >> 16) * ((Int)b << 16 >> 16) + ((Int)a >> 16) * ((Int)b >> 16);
#endif
}

CMODEL_INLINE Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
CMODEL_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// The compiler's own conversion would go through halves of a vector.
CMODEL_INLINE Bits widen(Half h) {
#if defined(__AVX512F__)
    return (Bits)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
    return (Bits)_mm256_cvtepu16_epi32((__m128i)h);
#else
    return __builtin_convertvector(h, Bits);
#endif
}
// Of words whose upper half is 0.
CMODEL_INLINE Half narrow(Bits bits) {
#if defined(__AVX512F__)
    return (Half)_mm512_cvtepi32_epi16((__m512i)bits);
#elif defined(__AVX2__)
    return (Half)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)bits), _mm256_extracti128_si256((__m256i)bits, 1));
#else
    return __builtin_convertvector(bits, Half);
#endif
}

CMODEL_INLINE Vec widen_bfloat16(Half h) { return (Vec)(widen(h) << 16); }

CMODEL_INLINE Half narrow_bfloat16(Vec v) {
    Bits bits = (Bits)v;
    Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    Bits nan = bits >> 16 | 0x40;
    return narrow(v == v ? rounded : nan);
}

CMODEL_INLINE Vec widen_float16(Half h) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtph_ps((__m128i)h);
#else
    // Shifted into place the exponent is 112 too small; the product puts that right, for subnormal numbers too.
    Bits bits = widen(h);
    Bits magnitude = (bits & 0x7fff) << 13;
    Bits scaled = (Bits)((Vec)magnitude * 0x1p112f);
    Bits special = magnitude | 0x7f800000;
    return (Vec)((magnitude >= 0x0f800000 ? special : scaled) | (bits & 0x8000) << 16);
#endif
}

CMODEL_INLINE Half narrow_float16(Vec v) {
#if defined(__AVX512F__)
    return (Half)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Half)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    Bits sign = (Bits)v & 0x80000000;
    Bits bits = (Bits)v ^ sign;
    Bits normal = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    // Adding 0.5 leaves a subnormal number's bits, rounded, at the end of the mantissa.
    Bits subnormal = (Bits)((Vec)bits + 0.5f) - 0x3f000000;
    Bits infinity = Bits{} + 0x7c00;
    Bits nan = Bits{} + 0x7e00;
    Bits large = bits > 0x7f800000 ? nan : infinity;
    Bits half = bits < (113u << 23) ? subnormal : bits >= (143u << 23) ? large : normal;
    return narrow(half | sign >> 16);
#endif
}

CMODEL_INLINE Half load_half(const void* from) {
    Half h;
    std::memcpy(&h, from, sizeof h);
    return h;
}
CMODEL_INLINE Vec load(const BFloat16* from) { return widen_bfloat16(load_half(from)); }
CMODEL_INLINE Vec load(const Float16* from) { return widen_float16(load_half(from)); }
CMODEL_INLINE void store(BFloat16* to, Vec v) {
    Half h = narrow_bfloat16(v);
    std::memcpy(to, &h, sizeof h);
}
CMODEL_INLINE void store(Float16* to, Vec v) {
    Half h = narrow_float16(v);
    std::memcpy(to, &h, sizeof h);
}

// The first count elements of a vector; the others are 0, and are not touched in memory.
template <class T>
CMODEL_INLINE Vec load_part(const T* from, int64_t count) {
    T whole[LANES] = {};
    std::memcpy(whole, from, count * sizeof(T));
    return load(whole);
}
template <class T>
CMODEL_INLINE void store_part(T* to, Vec v, int64_t count) {
    T whole[LANES];
    store(whole, v);
    std::memcpy(to, whole, count * sizeof(T));
}

// A whole vector, or the count elements that are left of one.
template <class T>
CMODEL_INLINE Vec load_some(const T* from, int64_t count) {
    return count >= LANES ? load(from) : load_part(from, count);
}
template <class T>
CMODEL_INLINE void store_some(T* to, Vec v, int64_t count) {
    if (count >= LANES) {
        store(to, v);
    } else {
        store_part(to, v, count);
    }
}

// Lanes [low, high), and `other` in those outside.
CMODEL_INLINE Vec lanes_between(Vec v, int64_t low, int64_t high, float other) {
    Int lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    Int inside = (lane >= (int32_t)clamp(low, 0, LANES)) & (lane < (int32_t)clamp(high, 0, LANES));
    return inside ? v : set1(other);
}

// count elements to float32, and back.
template <class From, class To>
CMODEL_INLINE void convert(const From* from, To* to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
    if (i < count) store_part(to + i, load_part(from + i, count - i), count - i);
}

// An EDGE x EDGE square of elements of one size, each row a vector, with its rows as columns. Three times the rows of its
// halves are taken by turns, element by element.
constexpr int EDGE = 8;
template <class Row>
CMODEL_INLINE void transpose(Row (&rows)[EDGE]) {
#if defined(__clang__)
#define CMODEL_MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
    typedef decltype(Row{} == Row{}) Picks;
#define CMODEL_MIX(a, b, ...) __builtin_shuffle(a, b, Picks{__VA_ARGS__})
#endif
    for (int round = 0; round < 3; ++round) {
        Row mixed[EDGE];
        for (int i = 0; i < EDGE / 2; ++i) {
            mixed[2 * i] = CMODEL_MIX(rows[i], rows[i + EDGE / 2], 0, 8, 1, 9, 2, 10, 3, 11);
            mixed[2 * i + 1] = CMODEL_MIX(rows[i], rows[i + EDGE / 2], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        for (int i = 0; i < EDGE; ++i) rows[i] = mixed[i];
    }
#undef CMODEL_MIX
}

// Whether any lane of a comparison is true.
CMODEL_INLINE bool any(Int mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
#else
    int32_t found = 0;
    for (int i = 0; i < LANES; ++i) found |= mask[i];
    return found != 0;
#endif
}

// Lane by lane a < b ? b : a, which compilers do not always make one instruction of.
CMODEL_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)b, (__m256)a);
#else
    return a < b ? b : a;
#endif
}

// The sum and the largest of a vector's lanes; halves are added to each other.
CMODEL_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float lanes[LANES];
    store(lanes, v);
    for (int width = LANES / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
#endif
}
CMODEL_INLINE float largest(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#elif defined(__AVX2__)
    __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
    float result = v[0];
    for (int i = 1; i < LANES; ++i) result = most(result, v[i]);
    return result;
#endif
}

// e^x to 2 units in the last place: x = n ln 2 + r, a polynomial in r, times 2^n. 0 below -87.3; x at most 88.
CMODEL_INLINE Vec exp(Vec x) {
    constexpr float MAGIC = 0x1.8p23f;  // adding it rounds to an integer, which is then in the low bits
    Vec low = x < -87.3f ? set1(-87.3f) : x;
    Vec shifted = fma(low, set1(1.44269504f), set1(MAGIC));
    Vec n = shifted - MAGIC;
    Vec r = fma(n, set1(-0.693359375f), low);
    r = fma(n, set1(2.12194440e-4f), r);
    Vec y = set1(1.f / 5040);
    y = fma(y, r, set1(1.f / 720));
    y = fma(y, r, set1(1.f / 120));
    y = fma(y, r, set1(1.f / 24));
    y = fma(y, r, set1(1.f / 6));
    y = fma(y, r, set1(0.5f));
    y = fma(y, r, set1(1.f));
    y = fma(y, r, set1(1.f));
    Bits power = ((Bits)shifted + 127) << 23;
    return x < -87.3f ? Vec{} : y * (Vec)power;
}

// 2^x to 2 units in the last place, for x at most 127: x = n + r, a polynomial in r, times 2^n. 0 below -126.
CMODEL_INLINE Vec exp2(Vec x) {
#if defined(__AVX512F__)
    Vec low = x < -200.f ? set1(-200.f) : x;
    Vec n = (Vec)_mm512_roundscale_ps((__m512)low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    constexpr float MAGIC = 0x1.8p23f;  // adding it rounds to an integer, which is then in the low bits
    Vec low = larger(x, set1(-126.f));
    Vec shifted = low + MAGIC;
    Vec n = shifted - MAGIC;
#endif
    Vec r = low - n;
    Vec y = set1(1.5461448e-4f);
    y = fma(y, r, set1(1.3390867e-3f));
    y = fma(y, r, set1(9.6180569e-3f));
    y = fma(y, r, set1(5.5503570e-2f));
    y = fma(y, r, set1(2.4022651e-1f));
    y = fma(y, r, set1(6.9314718e-1f));
    y = fma(y, r, set1(1.f));
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    Bits power = ((Bits)shifted + 127) << 23;
    return x < -126.f ? Vec{} : y * (Vec)power;
#endif
}

#if defined(__AMX_BF16__)
// Every tile register 16 rows of 64 bytes. Not kept between calls: other code of the thread may use the registers too.
inline void configure_tiles() {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
}
#endif

}  // namespace CMODEL_ISA
