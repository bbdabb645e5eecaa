// Which instruction sets the library's kernels may use on this CPU.

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace {

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
    return r;
}

bool has(unsigned bits, unsigned bit) { return (bits >> bit & 1) != 0; }

// The register states that the operating system saves: bits of XCR0.
uint64_t saved_states() {
    if (!has(cpuid(1, 0).ecx, 27)) return 0;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
}

[[maybe_unused]] bool has_avx2() {
    Registers first = cpuid(1, 0);
    return (saved_states() & 0x6) == 0x6 && has(first.ecx, 12) && has(first.ecx, 29) && has(cpuid(7, 0).ebx, 5);
}

[[maybe_unused]] bool has_avxvnni() { return has_avx2() && has(cpuid(7, 1).eax, 4); }

[[maybe_unused]] bool has_avx512vnni() {
    Registers features = cpuid(7, 0);  // F 16, DQ 17, BW 30, VL 31; VNNI 11
    return has_avx2() && (saved_states() & 0xe6) == 0xe6 && has(features.ebx, 16) && has(features.ebx, 17) &&
           has(features.ebx, 30) && has(features.ebx, 31) && has(features.ecx, 11);
}

[[maybe_unused]] bool has_avx512bf16() { return has_avx512vnni() && has(cpuid(7, 1).eax, 5); }

[[maybe_unused]] bool has_amx() {
    unsigned features = cpuid(7, 0).edx;  // BF16 22, TILE 24
    if (!has_avx512bf16() || (saved_states() & 0x60000) != 0x60000 || !has(features, 22) || !has(features, 24)) {
        return false;
    }
    // Linux grants the tile registers to a process that asks for them: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

}  // namespace
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

namespace {

[[maybe_unused]] bool has_dotprod() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }  // HWCAP_ASIMDDP

}  // namespace
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// The version of the interface between this library and device/cmodel/kernels.py.
EXPORT int cmodel_abi_version() { return CMODEL_ABI_VERSION; }

// Whether kernels of one of the sets that the library was built with run on this CPU.
EXPORT int cmodel_supports_portable() { return 1; }

#ifdef CMODEL_HAVE_AVX2
EXPORT int cmodel_supports_avx2() { return has_avx2(); }
#endif
#ifdef CMODEL_HAVE_AVXVNNI
EXPORT int cmodel_supports_avxvnni() { return has_avxvnni(); }
#endif
#ifdef CMODEL_HAVE_AVX512VNNI
EXPORT int cmodel_supports_avx512vnni() { return has_avx512vnni(); }
#endif
#ifdef CMODEL_HAVE_AVX512BF16
EXPORT int cmodel_supports_avx512bf16() { return has_avx512bf16(); }
#endif
#ifdef CMODEL_HAVE_AMX
EXPORT int cmodel_supports_amx() { return has_amx(); }
#endif
#ifdef CMODEL_HAVE_DOTPROD
EXPORT int cmodel_supports_dotprod() { return has_dotprod(); }
#endif
