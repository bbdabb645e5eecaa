"""Keeps what the runtime, the emulator and kernels print out of this process's standard output and error."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import re
from ctypes import c_char_p, c_int, c_size_t, c_ssize_t, c_void_p
from functools import cache

log = logging.getLogger("device.tpuv7")

# ssize_t write(void *cookie, const char *buffer, size_t size)
_WRITE = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_size_t)
_LINE_BUFFERED = 1
# In lines that tell why the process is about to end.
_SERIOUS = ("[ERR]", "ASSERT", "Assertion", "terminate called", "what():", "overcommit_memory")
# A kernel's TPUKERNEL_ASSERT under the emulator, and the status with which that ends the process.
_FAILED_ASSERTION = re.compile(r'Assertion ".*" failed\.$')
_FAILED_STATUS = 233


class _Functions(ctypes.Structure):
    """cookie_io_functions_t of fopencookie(3)."""

    _fields_ = (("read", c_void_p), ("write", _WRITE), ("seek", c_void_p), ("close", c_void_p))


@cache
def to_log() -> None:
    """From now on what C code of this process prints goes to the log: at debug level, and as an error what it says
    before it ends the process.

    Only the C library's `stdout` and `stderr`, which are variables, are set to another stream. The file descriptors 1
    and 2 stay, so Python's own streams, the log and what the parent process reads are as before. The stream's lines
    are logged in the thread that prints them, for a failing kernel ends the process right after its last words. Here
    the first one does so: each core of the emulator is a thread that would call exit(3), and what that frees is freed
    twice where two of them do.
    """
    libc = ctypes.CDLL(None)
    libc.fopencookie.restype = c_void_p
    libc.fopencookie.argtypes = [c_void_p, c_char_p, _Functions]
    libc.fopen.restype = c_void_p
    libc.setvbuf.argtypes = [c_void_p, c_char_p, c_int, c_size_t]
    libc.fflush(None)  # what was printed before, to where it belonged
    _log_lines.keep = functions = _Functions(write=_WRITE(_log_lines))  # type: ignore[attr-defined]
    stream = libc.fopencookie(None, b"w", functions)
    nothing = libc.fopen(os.devnull.encode(), b"w")
    libc.setvbuf(stream, None, _LINE_BUFFERED, 0)
    _set_streams(libc, stream)
    # Threads of the emulator outlive the interpreter, and must not call it then.
    atexit.register(_set_streams, libc, nothing)


def _set_streams(libc: ctypes.CDLL, stream: int) -> None:
    for name in ("stdout", "stderr"):
        c_void_p.in_dll(libc, name).value = stream


def _log_lines(cookie: int | None, buffer: int, size: int) -> int:
    for line in ctypes.string_at(buffer, size).decode(errors="replace").splitlines():
        if line.strip():
            serious = any(word in line for word in _SERIOUS)
            log.log(logging.ERROR if serious else logging.DEBUG, "%s", line.rstrip())
            if _FAILED_ASSERTION.search(line.rstrip()):
                os._exit(_FAILED_STATUS)
    return size
