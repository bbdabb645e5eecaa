"""Loads the native library and finds its kernels."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_size_t, c_void_p, cast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import device.cmodel
from device.cmodel.arguments import KERNELS, Arguments
from device.cpus import places
from device.interface import OutOfDeviceMemory

ABI_VERSION = 18
FILE_NAME = "libcmodel.so"
ISAS = ("amx", "avx512bf16", "avx512vnni", "avxvnni", "avx2", "dotprod", "portable")
"""Instruction sets that the kernels are compiled for, the best first; dotprod is of 64-bit Arm."""

DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
ACTIVATIONS = {None: 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "quick_gelu": 4}
SCORINGS = {"softmax": 0, "sigmoid": 1}
_BAD_ARGUMENT, _NO_MEMORY = 1, 2


class Kernel:
    """A C function that takes a structure of parameters.

    intercept: what is called instead of `run`; see capture.py and kernel_profile.py.
    """

    intercept: ClassVar[Callable[[Kernel, Arguments], int] | None] = None

    def __init__(self, name: str, function: Callable[..., int]) -> None:
        self.name = name
        self.address = cast(function, c_void_p).value  # type: ignore[arg-type]
        self._function = function
        self._structure = KERNELS[name]

    def __call__(self, **values: Any) -> None:
        """Run it on the structure's fields, given by name. Raises ValueError and OutOfDeviceMemory."""
        if status := (Kernel.intercept or Kernel.run)(self, self._structure(**values)):
            self.check(status)

    def run(self, arguments: Arguments) -> int:
        """Run it, whatever intercepts calls. Returns the kernel's answer."""
        return self._function(byref(arguments))

    def check(self, status: int) -> None:
        """Raise what an answer means."""
        if status == _BAD_ARGUMENT:
            raise ValueError(f"{self.name}: the arguments do not fit each other")
        if status == _NO_MEMORY:
            raise OutOfDeviceMemory(f"{self.name}: no memory for intermediate results")


class Kernels:
    """The kernels of one instruction set: `kernels.linear(...)` calls `cmodel_linear_<isa>`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Kernel: ...

    def __init__(self, library: ctypes.CDLL, isa: str, threads: int) -> None:
        self.isa = isa
        self.threads = threads
        self.reads_pairs = isa in ("amx", "avx512bf16")
        self.prefer_huge_pages: Callable[[int, int], None] = library.cmodel_prefer_huge_pages
        library.cmodel_prefer_huge_pages.argtypes = [c_void_p, c_size_t]
        library.cmodel_prefer_huge_pages.restype = None
        for name in KERNELS:
            own = f"cmodel_{name}_{isa}"  # unless one copy does for all instruction sets
            setattr(self, name, Kernel(name, getattr(library, own if hasattr(library, own) else f"cmodel_{name}")))


def load_kernels(threads: int) -> Kernels | None:
    """The kernels of the best instruction set, or of the one that `CMODEL_ISA` names; None without the library.

    Raises RuntimeError if the library is of another version, or if the CPU or the library lacks what CMODEL_ISA names.
    """
    wanted = os.environ.get("CMODEL_ISA", "")
    if wanted and wanted not in ISAS:
        raise RuntimeError(f"CMODEL_ISA is {wanted!r}; set it to one of {', '.join(ISAS)}, or leave it unset")
    library = native_library()
    if library is None:
        return None
    usable = usable_isas(library)
    if wanted and wanted not in usable:
        raise RuntimeError(
            f"CMODEL_ISA is {wanted}, which this CPU or this build lacks; set it to one of {', '.join(usable)}"
        )
    numbers = [number for cpus in places(threads) for number in (len(cpus), *cpus)]
    library.cmodel_set_threads.argtypes = [c_int, c_void_p]
    library.cmodel_set_threads(threads, (c_int * len(numbers))(*numbers) if numbers else None)
    return Kernels(library, wanted or usable[0], threads)


def usable_isas(library: ctypes.CDLL) -> list[str]:
    """Those of ISAS that the library holds and this CPU runs."""
    return [isa for isa in ISAS if getattr(library, f"cmodel_supports_{isa}", lambda: 0)()]


@cache
def native_library() -> ctypes.CDLL | None:
    """The library, or None where it was not built. Raises RuntimeError if it does not load or is of another version."""
    paths = [path for path in _candidates() if path.is_file()]
    if not paths:
        return None
    path = max(paths, key=lambda path: path.stat().st_mtime)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"{path} does not load ({error}); reinstall sophserve") from error
    version = library.cmodel_abi_version()
    if version != ABI_VERSION:
        raise RuntimeError(
            f"{path} has interface version {version}, this sophserve needs {ABI_VERSION}; reinstall sophserve"
        )
    return library


def _candidates() -> Iterator[Path]:
    """Where the library may be; the newest is taken.

    Beside this module: the installed package, or a source tree built by hand. Beside its other copy, and where the
    installed distribution put it: an editable install leaves the modules in the source tree.
    """
    for folder in device.cmodel.__path__:
        yield Path(folder) / FILE_NAME
    try:
        files = importlib.metadata.files("sophserve") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == FILE_NAME:
            yield Path(str(file.locate()))
