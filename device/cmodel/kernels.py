"""Loads the native library and gives its kernels their types."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from ctypes import c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch

import device.cmodel

ABI_VERSION = 4
FILE_NAME = "libcmodel.so"
ISAS = ("amx", "avx512bf16", "avx2", "portable")
"""Instruction sets that the kernels are compiled for, the best first."""

DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
BAD_ARGUMENT, NO_MEMORY = 1, 2

# The parameters of native/kernels/*.cpp.
_KERNELS: dict[str, list[type]] = {
    "pack_linear": [c_int, c_void_p, c_int64, c_int64, c_void_p],
    "linear": [
        *[c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int],
    ],
    "gated": [c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_int, c_void_p],
    "gate": [c_int, c_void_p, c_int64, c_int64, c_int, c_void_p],
    "rms_norm": [
        *[c_int, c_void_p, c_int64, c_void_p, c_void_p, c_int, c_int64, c_int64, c_float, c_void_p, c_void_p],
    ],
    "sample": [
        *[c_int, c_void_p, c_int64, c_int64, c_int64, *[c_void_p] * 9],
        *[*[c_void_p] * 3, c_int64, *[c_void_p] * 3, c_int64, c_void_p, c_int64, *[c_void_p] * 5],
    ],
    "all_reduce": [c_int, c_void_p, c_void_p, c_int64],
    "paged_attention": [
        *[c_int, c_void_p, c_void_p, c_void_p, *[c_int64] * 8],
        *[c_void_p, c_void_p, c_int64, c_int64],
        *[c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_void_p],
        *[c_void_p, c_void_p, c_int64, c_int64, c_int, c_float, c_int64, c_void_p],
    ],
}


class Kernels:
    """The kernels of one instruction set: `kernels.linear(...)` calls `cmodel_linear_<isa>`.

    A kernel returns 0, BAD_ARGUMENT or NO_MEMORY.
    """

    pack_linear: Callable[..., int]
    linear: Callable[..., int]
    gated: Callable[..., int]
    gate: Callable[..., int]
    rms_norm: Callable[..., int]
    paged_attention: Callable[..., int]
    sample: Callable[..., int]
    all_reduce: Callable[..., int]

    def __init__(self, library: ctypes.CDLL, isa: str, threads: int) -> None:
        self.isa = isa
        self.threads = threads
        self.prefer_huge_pages: Callable[[int, int], None] = library.cmodel_prefer_huge_pages
        library.cmodel_prefer_huge_pages.argtypes = [c_void_p, c_size_t]
        library.cmodel_prefer_huge_pages.restype = None
        for name, parameters in _KERNELS.items():
            function = getattr(library, f"cmodel_{name}_{isa}")
            function.argtypes = parameters
            setattr(self, name, function)


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
    library.cmodel_set_threads(threads)
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
