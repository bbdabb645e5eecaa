#!/usr/bin/env bash
# tpu_mlir 1.30.2 (tpuv7-runtime-emulator 1.9.1): a cast to 16 bits makes the largest number of infinity.
#
# tpu_bdc_cast from float32 to float16 or bfloat16 does not overflow as IEEE 754 has it and as every CPU and GPU does: what
# is too large, infinity itself too, becomes the type's largest finite number. So a mask of -inf that passes through 16
# bits is finite behind it, and a row whose scores are all masked softmaxes to equal shares where others give NaN; an
# activation that overflowed is not seen by looking for infinities. NaN stays NaN.
#
# Output seen:
#     to float16: inf -> 65504, -inf -> -65504, nan -> nan, 1e+38 -> 65504, 1e+06 -> 65504, 1 -> 1
#     to bfloat16: inf -> 3.38953e+38, -inf -> -3.38953e+38, nan -> nan, 1e+38 -> 9.96921e+37, 1e+06 -> 999424, 1 -> 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.10 --platform any -d "$folder" tpu_mlir==1.30.2
python3 -m zipfile -e "$folder"/tpu_mlir-*.whl "$folder/wheel"
export lib="$folder/wheel/tpu_mlir/lib" TPU_SCALAER_EMULATOR_WORKDIR="$folder"
export TPU_EMULATOR_PATH="$lib/libtpuv7_emulator.so" TPU_SCALAR_EMULATOR_PATH="$lib/libtpuv7_scalar_emulator.so"
cat > "$folder/cast.c" <<'C'
#include "tpu_kernel.h"
typedef struct { uint64_t to, from, type; } __attribute__((packed)) arguments;
void cast(const void *raw) {
    const arguments *a = raw;
    dim4 shape = {1, 64, 1, 32};
    data_type_t type = a->type ? DT_BFP16 : DT_FP16;
    tpu_initialize();
    tpu_gdma_cpy_S2L(0, a->from, &shape, NULL, NULL, DT_FP32);
    tpu_bdc_cast(65536, 0, &shape, NULL, NULL, type, DT_FP32, RM_HALF_TO_EVEN);
    tpu_bdc_cast(131072, 65536, &shape, NULL, NULL, DT_FP32, type, RM_HALF_TO_EVEN);
    tpu_gdma_cpy_L2S(a->to, 131072, &shape, NULL, NULL, DT_FP32);
    tpu_poll();
}
TPUKERNEL_FUNC_REGISTER(cast)
C
include="$folder/wheel/tpu_mlir/cross_toolchains/ppl_compile/deps/chip/tpub_7_1/TPU1686/kernel/include"
cc -shared -fPIC -O2 -D__sg2260__ -DUSING_CMODEL -I "$include" "$folder/cast.c" -o "$folder/cast.so" "$TPU_EMULATOR_PATH" \
    -Wl,--allow-shlib-undefined
python3 - "$folder" > "$folder/out" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import array
import ctypes
import os
import struct
import sys
from ctypes import byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p

runtime = ctypes.CDLL(f"{os.environ['lib']}/libtpuv7_rt.so")
runtime.tpuRtMalloc.argtypes = [c_void_p, c_uint64, c_int]
runtime.tpuRtStreamSynchronize.argtypes = [c_void_p]
runtime.tpuRtKernelLoadModuleFile.restype, runtime.tpuRtKernelLoadModuleFile.argtypes = c_void_p, [c_char_p, c_void_p]
runtime.tpuRtKernelLaunch.argtypes = [c_void_p, c_char_p, c_char_p, c_uint32, c_uint64, c_uint64, c_void_p]
for name in ("S2D", "D2S"):
    getattr(runtime, f"tpuRtMemcpy{name}").argtypes = [c_void_p, c_void_p, c_uint64]
stream, to, source = c_void_p(), c_void_p(), c_void_p()
assert runtime.tpuRtInit() == 0 and runtime.tpuRtSetDevice(0) == 0 and runtime.tpuRtStreamCreate(byref(stream)) == 0
values = [float("inf"), float("-inf"), float("nan"), 1e38, 1e6, 1.0]
numbers = array.array("f", [values[i % len(values)] for i in range(64 * 32)])
size = 4 * len(numbers)
for place in (to, source):
    assert runtime.tpuRtMalloc(byref(place), size, 1) == 0
assert runtime.tpuRtMemcpyS2D(source, numbers.buffer_info()[0], size) == 0
module = runtime.tpuRtKernelLoadModuleFile(f"{sys.argv[1]}/cast.so".encode(), stream)
for number, name in enumerate(("float16", "bfloat16")):
    arguments = struct.pack("<QQQ", to.value, source.value, number)
    assert runtime.tpuRtKernelLaunch(module, b"cast", arguments, len(arguments), 1, 1, stream) == 0
    assert runtime.tpuRtStreamSynchronize(stream) == 0
    found = array.array("f", bytes(size))
    assert runtime.tpuRtMemcpyD2S(found.buffer_info()[0], to, size) == 0
    print(f"\nto {name}: {', '.join(f'{value:g} -> {got:g}' for value, got in zip(values, found))}")
    assert found[0] == -found[1] == (65504.0, 2.0**128 - 2.0**120)[number] and found[2] != found[2] and found[5] == 1
PYTHON
grep '^to ' "$folder/out"
