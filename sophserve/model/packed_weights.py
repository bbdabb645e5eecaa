"""A rank's packed weights between the device and the reorder cache."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from device.interface import PackedWeight
from sophserve.model.context import ModelContext
from sophserve.model.weights import raw_bytes
from sophserve.reorder_cache import SUFFIX, Blob, CacheReader, CacheWriter, Packed, cache_directory, fingerprint

log = logging.getLogger(__name__)


class WeightCache(Protocol):
    """Packed weights by the paths of their modules."""

    def get(self, path: str) -> PackedWeight | None:
        """The packed weight of a module, if it is known."""

    def keep(self, path: str, weight: PackedWeight) -> None:
        """Note a weight that was packed."""

    def commit(self) -> None:
        """All weights are loaded."""


class PackedWeights(ExitStack):
    """What an earlier start packed of a checkpoint, or a place to keep it for the next. A context manager.

    quantization: what is done to the checkpoint's weights, part of the cache file's name.
    """

    def __init__(self, directory: Path, cache_dir: str | None, context: ModelContext, quantization: str) -> None:
        super().__init__()
        self._device = context.device
        self._reader: CacheReader | None = None
        self._writer: CacheWriter | None = None
        if not self._device.layout:
            return
        rank, ranks = context.communicator.rank, context.communicator.world_size
        rounded = "-int8" if context.activation_bits == 8 else ""
        layers = f"-layers{context.layers.start}to{context.layers.stop}" if context.layers else ""
        name = f"{self._device.name}-{quantization}{rounded}{layers}-{rank}of{ranks}"
        path = cache_directory(directory, cache_dir) / (
            f"{name}-{fingerprint(directory, self._device.layout, rank, ranks)}{SUFFIX}"
        )
        try:
            self._reader = CacheReader(path)
            log.info("packed weights come from %s", path)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, OSError) as error:
            log.warning("%s is not used, %s; it is made anew", path, error)
        if self._reader is None:
            self._writer = self.enter_context(CacheWriter(path))

    def get(self, path: str) -> PackedWeight | None:
        kept = self._reader.get(path) if self._reader else None
        if kept is None:
            return None
        return self._device.restore(kept.numbers, {name: _tensor(blob) for name, blob in kept.blobs.items()})

    def keep(self, path: str, weight: PackedWeight) -> None:
        """Note a weight that was packed, if the device wants it to be kept."""
        state = self._device.state_of(weight) if self._writer else None
        if self._writer and state is not None:
            numbers, tensors = state
            self._writer.add(path, Packed(numbers, {name: _blob(tensor) for name, tensor in tensors.items()}))

    def commit(self) -> None:
        """All weights are loaded: put the cache file in place."""
        if self._writer:
            self._writer.commit()


def _blob(tensor: Tensor) -> Blob:
    return Blob(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), raw_bytes(tensor))


def _tensor(blob: Blob) -> Tensor:
    dtype = getattr(torch, blob.dtype)
    return torch.frombuffer(blob.data, dtype=dtype, count=prod(blob.shape)).view(blob.shape)
