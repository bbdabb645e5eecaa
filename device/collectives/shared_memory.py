"""Collectives between processes: native code on shared memory within a machine, and on TCP between machines."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import c_char_p, c_int, c_int64, c_void_p
from itertools import chain

import torch
from torch import Tensor

from device.cmodel.kernels import DTYPES, Kernels, load_kernels, native_library
from device.collectives.interface import Hosts
from device.cpus import thread_count


class SharedMemoryCommunicator:
    """One rank's end. `memory` is the descriptor of a file of zeros that all ranks of this machine have; each takes
    part once. hosts: where there are several. Each gets the slots of all ranks: sums have the bits of one machine.

    Tensors are on the host. Every rank must make the same calls in the same order, with the same shapes. Raises
    RuntimeError where the native library is missing.
    """

    def __init__(self, memory: int, rank: int, world_size: int, hosts: Hosts | None = None) -> None:
        kernels, library = load_kernels(thread_count()), native_library()
        if kernels is None or library is None:
            raise RuntimeError(
                "tensor parallelism needs the native library; install a C++ compiler such as g++ and reinstall"
            )
        self.rank = rank
        self.world_size = world_size
        self._kernels: Kernels = kernels
        self._memory = mmap.mmap(memory, 0)
        library.cmodel_group_open.restype = c_void_p
        library.cmodel_group_open.argtypes = [c_void_p, c_int64, c_int, c_int, c_int, c_int, c_void_p, c_int]
        address = ctypes.addressof(c_char_p.from_buffer(self._memory))
        hosts = hosts or Hosts([world_size])
        first, here = next(
            (first, count) for first, count in zip(hosts.firsts, hosts.counts, strict=True) if rank < first + count
        )
        links = [(socket, hosts.firsts[host], hosts.counts[host]) for host, socket in sorted(hosts.sockets.items())]
        array = (c_int64 * (3 * len(links)))(*chain.from_iterable(links))
        self._group = library.cmodel_group_open(
            address, len(self._memory), rank, world_size, first, here, array, len(links)
        )
        if not self._group:
            raise RuntimeError(f"{len(self._memory)} bytes of shared memory are too few for {world_size} ranks")

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over ranks, in float32 and rounded once: the same bits on every rank. In place if x is
        contiguous."""
        x = x.contiguous()
        if x.dtype not in DTYPES:
            raise ValueError(f"all_reduce takes float32, float16 or bfloat16, not {x.dtype}")
        self._kernels.all_reduce(dtype=DTYPES[x.dtype], group=self._group, data=x, size=x.numel())
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width if width else 0
        out = torch.empty(*x.shape[:-1], self.world_size * width, dtype=x.dtype)
        self._kernels.all_gather(group=self._group, data=x, rows=rows, row_bytes=width * x.itemsize, out=out)
        return out

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The source rank's x, in place if x is contiguous. The source waits for room alone: on one host in a ring of a
        quarter of the memory, between hosts in the sockets."""
        x = x.contiguous()
        self._kernels.broadcast(group=self._group, data=x, bytes=x.nbytes, source=source)
        return x
