#!/usr/bin/env bash
# tpu_mlir 1.30.2 (tpuv7-runtime-emulator 1.9.1): the runtime reports success for work that it did not do.
#
# Every call returns a status, so one expects that an unknown kernel, a file that holds no kernels and a device that is not
# there are told. They are not: the launch of a name that no module registers returns 0, and so does the wait for it; a
# text file is loaded as a module; with one device, number 7 is taken. The one sign of the unknown kernel is a line on
# standard error, "node:... has error:-1", and a kernel that returns void prints such a line as well, with whatever its
# last call left in the register. Who wants to know looks for the names in the file before.
#
# Output seen:
#     devices 1; device 7: 0; module of a text file: loaded; unknown kernel: launch 0, wait 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.10 --platform any -d "$folder" tpu_mlir==1.30.2
python3 -m zipfile -e "$folder"/tpu_mlir-*.whl "$folder/wheel"
export lib="$folder/wheel/tpu_mlir/lib" TPU_SCALAER_EMULATOR_WORKDIR="$folder"
export TPU_EMULATOR_PATH="$lib/libtpuv7_emulator.so" TPU_SCALAR_EMULATOR_PATH="$lib/libtpuv7_scalar_emulator.so"
unset C2C_CHIP_NUM OMPI_COMM_WORLD_SIZE LOCAL_WORLD_SIZE
echo "hello" > "$folder/text"
python3 - "$folder" > "$folder/out" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import ctypes
import os
import sys
from ctypes import byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p

runtime = ctypes.CDLL(f"{os.environ['lib']}/libtpuv7_rt.so")
runtime.tpuRtStreamSynchronize.argtypes = [c_void_p]
runtime.tpuRtKernelLoadModuleFile.restype, runtime.tpuRtKernelLoadModuleFile.argtypes = c_void_p, [c_char_p, c_void_p]
runtime.tpuRtKernelLaunch.argtypes = [c_void_p, c_char_p, c_char_p, c_uint32, c_uint64, c_uint64, c_void_p]
count, stream = c_int(), c_void_p()
assert runtime.tpuRtInit() == 0 and runtime.tpuRtGetDeviceCount(byref(count)) == 0
taken = runtime.tpuRtSetDevice(7)
assert runtime.tpuRtStreamCreate(byref(stream)) == 0
module = runtime.tpuRtKernelLoadModuleFile(f"{sys.argv[1]}/text".encode(), stream)
launched = runtime.tpuRtKernelLaunch(module, b"no_such_kernel", b"0" * 8, 8, 1, 8, stream)
waited = runtime.tpuRtStreamSynchronize(stream)
print(f"\ndevices {count.value}; device 7: {taken}; module of a text file: {'loaded' if module else 'refused'}; "
      f"unknown kernel: launch {launched}, wait {waited}")
assert (count.value, taken, bool(module), launched, waited) == (1, 0, True, 0, 0)
PYTHON
grep 'unknown kernel' "$folder/out"
