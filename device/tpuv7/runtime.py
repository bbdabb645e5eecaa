"""libtpuv7_rt by way of ctypes: memory, copies and launches on one chip.

All work goes through one stream in order. `launch`, `copy` and `fill` return before it is done, which takes the
emulator 6 ms a launch instead of 40; `upload`, `download` and `synchronize` wait. (The runtime's own waiting copies do
not: they overtake launches that are under way.) The device is set for the thread that makes a Runtime; use it there.
"""

from __future__ import annotations

import ctypes
import os
import re
from bisect import bisect_right, insort
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_uint32, c_uint64, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from device.tpuv7 import chatter
from device.tpuv7.errors import NO_MEMORY, Tpuv7Error, failed
from device.tpuv7.location import EMULATOR, SCALAR_EMULATOR, SETUP, find_runtime
from device.tpuv7.location import Runtime as Installation
from device.tpuv7.scratch import check_wakeup_pipe, scratch_directory

CORES = 8
EMULATED_CHIPS = 8
"""Each process emulates a chip of its own, so there are as many as one may want; C2C_CHIP_NUM says otherwise."""
EMULATED_MEMORY = 4 << 30
"""Of an emulated chip, whatever tpuRtGetAllMemory says; CMODEL_GLOBAL_MEM_SIZE says otherwise."""
MOST_ARGUMENTS = 64 << 10
"""Bytes. The emulator takes more, but with 1 MiB it says nothing and waits for ever."""

_RISCV, _X86_64, _AARCH64 = 243, 62, 183
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64, "riscv64": _RISCV}
_FILL_BYTES = 1 << 20


class _Properties(ctypes.Structure):
    """tpuRtDeviceProperties_t."""

    _fields_ = (
        ("name", c_char * 24),
        ("memory", c_uint64),
        *((name, c_int) for name in ("major", "minor", "ecc")),
        *((name, c_uint32) for name in ("bus", "device", "domain")),
    )


_SIGNATURES: dict[str, tuple[object, ...]] = {
    "tpuRtInit": (),
    "tpuRtGetDeviceCount": (POINTER(c_int),),
    "tpuRtSetDevice": (c_int,),
    "tpuRtMalloc": (POINTER(c_void_p), c_ulonglong, c_int),
    "tpuRtFree": (POINTER(c_void_p), c_int),
    "tpuRtMemcpyS2DAsync": (c_void_p, c_void_p, c_ulonglong, c_void_p),
    "tpuRtMemcpyD2SAsync": (c_void_p, c_void_p, c_ulonglong, c_void_p),
    "tpuRtMemcpyD2DAsync": (c_void_p, c_void_p, c_ulonglong, c_void_p),
    "tpuRtStreamCreate": (POINTER(c_void_p),),
    "tpuRtStreamSynchronize": (c_void_p,),
    "tpuRtKernelLaunchAsync": (c_void_p, c_char_p, c_char_p, c_uint32, c_uint64, c_uint64, c_void_p),
    "tpuRtGetAllMemory": (POINTER(c_uint64),),
    "tpuRtGetFreeMemory": (POINTER(c_uint64),),
}


@dataclass(frozen=True)
class Module:
    """Kernels that are loaded: the runtime's handle, the file and the names of those that it registers."""

    handle: int
    path: Path
    names: frozenset[str]


class Runtime:
    """One chip, or an emulated one.

    is_emulator: it is emulated. Calls raise Tpuv7Error, which says what to do, and ValueError for arguments that the
    runtime would hang or end the process with. After a Tpuv7Error the process should end: the chip's state is unknown.
    """

    def __init__(self, index: int = 0) -> None:
        installation = find_runtime()
        self.is_emulator = installation.emulated
        self._library = _load(installation)
        count = self.count()
        if not 0 <= index < count:
            kind = "emulated chip" if self.is_emulator else "chip"
            raise Tpuv7Error(
                f"there is no chip {index}: this machine has {count} {kind}{'s' if count != 1 else ''}, numbered from "
                "0; choose others with CHIP_MAP or a smaller --tensor-parallel-size"
            )
        self.index = index
        self._call("tpuRtSetDevice", index)
        stream = c_void_p()
        self._call("tpuRtStreamCreate", byref(stream))
        self._stream = stream
        self._starts: list[int] = []  # of allocations, in order
        self._sizes: dict[int, int] = {}

    def count(self) -> int:
        """How many chips there are."""
        found = c_int()
        self._call("tpuRtGetDeviceCount", byref(found))
        return found.value

    def name(self) -> str:
        """What the chip calls itself."""
        properties = _Properties()
        ask = getattr(self._library, "tpuRtGetDeviceProperties", None)  # older runtimes have none
        if ask is None or ask(byref(properties), self.index):
            return "SG2260"
        return properties.name.decode(errors="replace").strip(" ,")

    def memory(self) -> tuple[int, int]:
        """Bytes (free, in all). Free are those that this process has not allocated where the runtime says none."""
        total, free = c_uint64(), c_uint64()
        if self.is_emulator:
            total.value = emulated_memory()
        else:
            self._call("tpuRtGetAllMemory", byref(total))
            self._call("tpuRtGetFreeMemory", byref(free))
        return free.value or max(0, total.value - sum(self._sizes.values())), total.value

    def allocate(self, nbytes: int) -> int:
        """The address of so many new bytes. Raises OutOfDeviceMemory."""
        if nbytes < 1:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        address = c_void_p()
        status = self._library.tpuRtMalloc(byref(address), nbytes, 1)
        if status in NO_MEMORY:
            from device.interface import OutOfDeviceMemory  # brings torch, which nothing else here needs

            free, total = self.memory()
            hint = "; CMODEL_GLOBAL_MEM_SIZE sets the emulator's, in bytes" if self.is_emulator else ""
            raise OutOfDeviceMemory(
                f"{nbytes / 2**20:.0f} MiB do not fit in the chip's memory, of which {free / 2**20:.0f} of "
                f"{total / 2**20:.0f} MiB are free{hint}"
            )
        if status or not address.value:
            raise failed("tpuRtMalloc", status)
        insort(self._starts, address.value)
        self._sizes[address.value] = nbytes
        return address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` returned, once everything that was launched is done."""
        if address not in self._sizes:
            raise ValueError(f"{address:#x} was not allocated, or is free already")
        self.synchronize()
        self._call("tpuRtFree", byref(c_void_p(address)), 1)
        del self._sizes[address]
        self._starts.remove(address)

    def upload(self, address: int, host_pointer: int, nbytes: int) -> None:
        """Copy from the host and wait until it is there."""
        self._check(address, nbytes)
        self._call("tpuRtMemcpyS2DAsync", address, host_pointer, nbytes, self._stream)
        self.synchronize()

    def download(self, host_pointer: int, address: int, nbytes: int) -> None:
        """Copy to the host what everything launched before has written, and wait for it."""
        self._check(address, nbytes)
        self._call("tpuRtMemcpyD2SAsync", host_pointer, address, nbytes, self._stream)
        self.synchronize()

    def copy(self, dst: int, src: int, nbytes: int) -> None:
        """Copy within the chip's memory, in order with launches."""
        self._check(dst, nbytes)
        self._check(src, nbytes)
        self._call("tpuRtMemcpyD2DAsync", dst, src, nbytes, self._stream)

    def fill(self, address: int, value: int, nbytes: int) -> None:
        """Set bytes to a value, in order with launches. (The runtime has no such call any more.)"""
        self._check(address, nbytes)
        first = min(nbytes, _FILL_BYTES)
        pattern = ctypes.create_string_buffer(bytes([value]) * first, first)
        self.upload(address, ctypes.addressof(pattern), first)
        done = first
        while done < nbytes:
            step = min(done, nbytes - done)
            self.copy(address + done, address, step)
            done += step

    def load(self, path: Path | str) -> Module:
        """Load kernels. Raises Tpuv7Error for a file that is not of this chip's processors."""
        path = Path(path)
        names = _kernel_names(path, self.is_emulator)
        handle = self._library.tpuRtKernelLoadModuleFile(os.fsencode(path), self._stream)
        if not handle:
            raise Tpuv7Error(f"the runtime cannot load the kernels in {path}; build them anew with {SETUP}")
        return Module(handle, path, names)

    def launch(self, module: Module, name: str, arguments: bytes, cores: int = CORES) -> None:
        """Run a kernel on the first `cores` cores after everything that was launched before."""
        # An unknown name, or too many cores, and the runtime answers with success.
        if name not in module.names:
            raise Tpuv7Error(f"{module.path} has no kernel {name}; build it anew with {SETUP}")
        if not 1 <= cores <= CORES:
            raise ValueError(f"{name} was to run on {cores} cores; there are {CORES}")
        if len(arguments) > MOST_ARGUMENTS:
            raise ValueError(f"{name} has {len(arguments)} bytes of arguments; {MOST_ARGUMENTS} are the most")
        size = len(arguments)
        self._call("tpuRtKernelLaunchAsync", module.handle, name.encode(), arguments, size, 1, cores, self._stream)

    def synchronize(self) -> None:
        """Wait until everything that was launched is done."""
        self._call("tpuRtStreamSynchronize", self._stream)

    def _call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise failed(name, status)

    def _check(self, address: int, nbytes: int) -> None:
        """A copy to or from elsewhere never ends on the emulator."""
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and nbytes >= 0:
            start = self._starts[place]
            if address + nbytes <= start + self._sizes[start]:
                return
        raise ValueError(f"{nbytes} bytes at {address:#x} do not lie within what was allocated")


@cache
def _load(installation: Installation) -> ctypes.CDLL:
    """The initialised library."""
    chatter.to_log()
    if installation.emulated:
        _prepare_emulator(installation.libraries)
    try:
        library = ctypes.CDLL(str(installation.file))
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        library.tpuRtKernelLoadModuleFile.argtypes = [c_char_p, c_void_p]
        library.tpuRtKernelLoadModuleFile.restype = c_void_p
    except (OSError, AttributeError) as error:
        raise Tpuv7Error(
            f"the runtime {installation.file} cannot be used: {error}; install a tpuv7 runtime of this machine's "
            f"kind, or set up the emulator with {SETUP}"
        ) from error
    if status := library.tpuRtInit():
        raise failed("tpuRtInit", status)
    return library


def emulated_memory() -> int:
    """Bytes of an emulated chip's memory. Raises Tpuv7Error for a size that ends the emulator's process."""
    size = os.environ.get("CMODEL_GLOBAL_MEM_SIZE") or str(EMULATED_MEMORY)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not size.isdecimal() or not 0 < int(size) < host:
        raise Tpuv7Error(
            f"CMODEL_GLOBAL_MEM_SIZE is {size}; it must be the bytes of the emulated chip's memory, fewer than this "
            f"machine's {host}"
        )
    return int(size)


def _prepare_emulator(libraries: Path) -> None:
    check_wakeup_pipe()
    emulated_memory()
    os.environ["TPU_EMULATOR_PATH"] = str(libraries / EMULATOR)
    os.environ["TPU_SCALAR_EMULATOR_PATH"] = str(libraries / SCALAR_EMULATOR)
    os.environ["TPU_SCALAER_EMULATOR_WORKDIR"] = str(scratch_directory())  # so it is spelt
    os.environ.setdefault("C2C_CHIP_NUM", str(EMULATED_CHIPS))


def _kernel_names(path: Path, emulated: bool) -> frozenset[str]:
    """What a shared object registers. The runtime takes any file, and says that all goes well."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Tpuv7Error(f"cannot read the kernels in {path}: {error.strerror}") from error
    wanted = _MACHINES.get(os.uname().machine, _X86_64) if emulated else _RISCV
    if content[:4] != b"\x7fELF" or int.from_bytes(content[18:20], "little") != wanted:
        kind = "this machine's processor, which the emulator" if emulated else "RISC-V, which the chip"
        raise Tpuv7Error(f"{path} holds no kernels for {kind} needs; build them with {SETUP}")
    return frozenset(name.decode() for name in re.findall(rb"\0tpu_kernel_register_(\w+)(?=\0)", content))
