"""Kernels of a library for another processor, in a process of their own that an emulator runs."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Sequence
from ctypes import c_void_p

from device.cmodel.arguments import Arguments


class RemoteKernels:
    """command: runs remote_kernels.cpp on the library with the kernels."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, symbol: str, arguments: Arguments) -> int:
        """Run a kernel on copies of all that its arguments lead to, and put back what it made of them.

        Returns its answer. Raises RuntimeError for one that the library lacks, and if the process has ended.
        """
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in arguments.tensors}
        places = list(storages)
        pointers = []
        for name, kind in arguments._fields_:  # type: ignore[misc]
            if kind is c_void_p and (address := getattr(arguments, name)):
                place = next(start for start in places if start <= address <= start + storages[start].nbytes())
                pointers.append((getattr(type(arguments), name).offset, places.index(place), address - place))
        message = [_number(len(symbol)), symbol.encode(), _number(ctypes.sizeof(arguments)), bytes(arguments)]
        message.append(_number(len(places)))
        for place in places:
            size = storages[place].nbytes()
            message += [_number(size), ctypes.string_at(place, size)]
        message.append(_number(len(pointers)))
        message += [_number(number) for pointer in pointers for number in pointer]
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(message))
        self._process.stdin.flush()
        (status,) = struct.unpack("<q", self._read(8))
        for place in places:
            content = self._read(storages[place].nbytes())
            ctypes.memmove(place, content, len(content))
        if status < 0:
            raise RuntimeError(f"the library has no {symbol}")
        return status

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size)
        if len(content) < size:
            raise RuntimeError(f"the process with the kernels has ended, with {self._process.wait()}")
        return content


def _number(number: int) -> bytes:
    return struct.pack("<q", number)
