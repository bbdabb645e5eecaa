#!/usr/bin/env bash
# tpu_mlir 1.30.2 (tpuv7-runtime-emulator 1.9.1): a copy that waits does not wait for the launches before it.
#
# tpuRtKernelLaunchAsync puts a kernel into a stream, and on the emulator a launch takes 6 ms this way, 40 ms with
# tpuRtKernelLaunch. tpuRtMemcpyD2S is the waiting copy, and one expects it to come after what was launched, as cudaMemcpy
# does. It has no stream, and reads at once: after 300 launches that each add 1 it finds fewer. In the stream, by
# tpuRtMemcpyD2SAsync and tpuRtStreamSynchronize, it finds 300.
#
# Output seen:
#     after 300 launches: tpuRtMemcpyD2S finds 116, in the stream 300
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.10 --platform any -d "$folder" tpu_mlir==1.30.2
python3 -m zipfile -e "$folder"/tpu_mlir-*.whl "$folder/wheel"
export lib="$folder/wheel/tpu_mlir/lib" TPU_SCALAER_EMULATOR_WORKDIR="$folder"
export TPU_EMULATOR_PATH="$lib/libtpuv7_emulator.so" TPU_SCALAR_EMULATOR_PATH="$lib/libtpuv7_scalar_emulator.so"
cat > "$folder/add.c" <<'C'
#include "tpu_kernel.h"
typedef struct { uint64_t sum, left, right; } __attribute__((packed)) arguments;
void add(const void *raw) {
    const arguments *a = raw;
    dim4 shape = {1, 64, 1, 1024};
    tpu_initialize();
    tpu_gdma_cpy_S2L(0, a->left, &shape, NULL, NULL, DT_FP32);
    tpu_gdma_cpy_S2L(65536, a->right, &shape, NULL, NULL, DT_FP32);
    tpu_bdc_fp_add(131072, 0, 65536, &shape, NULL, NULL, NULL, DT_FP32);
    tpu_gdma_cpy_L2S(a->sum, 131072, &shape, NULL, NULL, DT_FP32);
    tpu_poll();
}
TPUKERNEL_FUNC_REGISTER(add)
C
include="$folder/wheel/tpu_mlir/cross_toolchains/ppl_compile/deps/chip/tpub_7_1/TPU1686/kernel/include"
cc -shared -fPIC -O2 -D__sg2260__ -DUSING_CMODEL -I "$include" "$folder/add.c" -o "$folder/add.so" "$TPU_EMULATOR_PATH" \
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
runtime.tpuRtKernelLaunchAsync.argtypes = [c_void_p, c_char_p, c_char_p, c_uint32, c_uint64, c_uint64, c_void_p]
for name, more in (("S2D", ()), ("D2S", ()), ("D2SAsync", (c_void_p,))):
    getattr(runtime, f"tpuRtMemcpy{name}").argtypes = [c_void_p, c_void_p, c_uint64, *more]
stream, total, one = c_void_p(), c_void_p(), c_void_p()
assert runtime.tpuRtInit() == 0 and runtime.tpuRtSetDevice(0) == 0 and runtime.tpuRtStreamCreate(byref(stream)) == 0
count = 64 * 1024
size = 4 * count
for place, value in ((total, 0), (one, 1)):
    numbers = array.array("f", [value] * count)
    assert runtime.tpuRtMalloc(byref(place), size, 1) == 0
    assert runtime.tpuRtMemcpyS2D(place, numbers.buffer_info()[0], size) == 0
module = runtime.tpuRtKernelLoadModuleFile(f"{sys.argv[1]}/add.so".encode(), stream)
arguments = struct.pack("<QQQ", total.value, total.value, one.value)
for _ in range(300):
    assert runtime.tpuRtKernelLaunchAsync(module, b"add", arguments, len(arguments), 1, 1, stream) == 0
found = array.array("f", bytes(size))
assert runtime.tpuRtMemcpyD2S(found.buffer_info()[0], total, size) == 0
early = int(found[0])
assert runtime.tpuRtMemcpyD2SAsync(found.buffer_info()[0], total, size, stream) == 0
assert runtime.tpuRtStreamSynchronize(stream) == 0
print(f"\nafter 300 launches: tpuRtMemcpyD2S finds {early}, in the stream {int(found[0])}")
assert early < 300 == found[0]
PYTHON
grep 'after 300 launches' "$folder/out"
