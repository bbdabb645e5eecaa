#!/usr/bin/env bash
# tpu_mlir 1.30.2 (tpuv7-runtime-emulator 1.9.1): the emulated chip's memory is none of the sizes that the runtime tells.
#
# tpuRtGetAllMemory says 128 GiB, tpuRtGetFreeMemory says 0, both with success. There are 4 GiB, or what
# CMODEL_GLOBAL_MEM_SIZE says, which neither call takes into account. An allocation beyond is answered with -1, a status
# that the header's enumeration, with two statuses for lack of memory (5 and 15), does not have. And however a process
# ends, its sockets and copies of kernels stay in /tmp, or in the folder that TPU_SCALAER_EMULATOR_WORKDIR (so it is spelt) names.
#
# Output seen:
#     all 128 GiB, free 0 GiB; allocation of 3 GiB: 0, of 5 GiB: -1; files left: 22
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.10 --platform any -d "$folder" tpu_mlir==1.30.2
python3 -m zipfile -e "$folder"/tpu_mlir-*.whl "$folder/wheel"
mkdir "$folder/work"
export lib="$folder/wheel/tpu_mlir/lib" TPU_SCALAER_EMULATOR_WORKDIR="$folder/work"
export TPU_EMULATOR_PATH="$lib/libtpuv7_emulator.so" TPU_SCALAR_EMULATOR_PATH="$lib/libtpuv7_scalar_emulator.so"
unset CMODEL_GLOBAL_MEM_SIZE
python3 - > "$folder/out" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import ctypes
import os
from ctypes import byref, c_int, c_uint64, c_void_p

runtime = ctypes.CDLL(f"{os.environ['lib']}/libtpuv7_rt.so")
runtime.tpuRtMalloc.argtypes = [c_void_p, c_uint64, c_int]
assert runtime.tpuRtInit() == 0 and runtime.tpuRtSetDevice(0) == 0
whole, free, place = c_uint64(), c_uint64(), c_void_p()
assert runtime.tpuRtGetAllMemory(byref(whole)) == runtime.tpuRtGetFreeMemory(byref(free)) == 0
three, five = (runtime.tpuRtMalloc(byref(place), size << 30, 1) for size in (3, 5))
print(f"\nall {whole.value >> 30} GiB, free {free.value >> 30} GiB; allocation of 3 GiB: {three}, of 5 GiB: {five}", end="")
assert (whole.value >> 30, free.value, three, five) == (128, 0, 0, -1)
PYTHON
left=$(find "$folder/work" -not -type d | wc -l)
echo "$(grep 'allocation of' "$folder/out"); files left: $left"
test "$left" -gt 0
