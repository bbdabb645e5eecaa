"""What the kernels say of their own work."""

from __future__ import annotations

import ctypes
from ctypes import c_uint64

from device.interface import CommandRecord
from device.tpuv7.commands import Attention, CacheWrite, Codes, Command, Embedding, Linear, Permute, RmsNorm


class Account(ctypes.Structure):
    """Of one core in one launch; kernels/core.h explains it."""

    _fields_ = [
        *[(name, c_uint64) for name in ("bytes", "overlapped", "peak", "operations")],
        ("unused", c_uint64 * 4),
    ]


def read_accounts(content: bytes) -> Account:
    """Of all cores together: sums, and the largest peak."""
    each = [Account.from_buffer_copy(content, at) for at in range(0, len(content), ctypes.sizeof(Account))]
    sums = (sum(getattr(account, name) for account in each) for name in ("bytes", "overlapped"))
    peak = max(account.peak for account in each)
    return Account(*sums, peak, sum(account.operations for account in each))


_NAMES = {
    Embedding: "embedding",
    RmsNorm: "rms_norm",
    CacheWrite: "cache_write",
    Attention: "paged_attention",
    Permute: "permute",
}


def command_record(command: Command, start_ns: int, end_ns: int, account: Account, rows: int) -> CommandRecord:
    """A command as a profile knows it."""
    if isinstance(command, Linear):
        quantized = "" if command.codes == Codes.PLAIN else "quantized_"
        name = f"{quantized}linear {command.outputs}x{command.inputs}"
    else:
        name = _NAMES[type(command)]
    detail = f"rows={rows or command.rows} local_bytes={account.peak} overlapped={account.overlapped}"
    return CommandRecord(name, start_ns, end_ns - start_ns, account.bytes, account.operations, detail)
