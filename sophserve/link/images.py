"""Images on their way from the server to its workers."""

from __future__ import annotations

import mmap
import os
import weakref
from math import prod
from pathlib import Path

import msgspec


class ImageShape(msgspec.Struct, array_like=True, frozen=True):
    """What becomes of an image of some size. tokens: placeholders that stand for it in a prompt. pixels: the shape of
    its uint8 pixels, channels last. grid: what the architecture must know besides, in numbers of its own."""

    tokens: int
    pixels: tuple[int, ...]
    grid: tuple[int, ...]


class PlacedImage(msgspec.Struct, array_like=True, frozen=True):
    """An image whose placeholders stand in a prompt from position `start` on. digest: the SHA-256 of all that their
    embeddings depend on."""

    digest: bytes
    start: int
    shape: ImageShape


class EncodeImage(msgspec.Struct, array_like=True, frozen=True):
    """Do `pieces` more of an image's encoding. path: of the file with its pixels."""

    digest: bytes
    pieces: int
    shape: ImageShape
    path: str


class SharedPixels:
    """The pixels of an image in memory without a name, which workers read by a path for as long as this object lives:
    nothing is left of it when the server dies. size: 0 for pixels that another process writes."""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size)
        weakref.finalize(self, os.close, self.descriptor)

    @property
    def size(self) -> int:
        """In bytes."""
        return os.fstat(self.descriptor).st_size

    @property
    def path(self) -> str:
        """A path that other processes of this user can open."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def write(self, content: bytes) -> None:
        """Fill it."""
        os.pwrite(self.descriptor, content, 0)


def read_pixels(path: str, shape: ImageShape) -> mmap.mmap:
    """The pixels that a worker is told of, mapped. Raises OSError, or ValueError for a file of another size."""
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if len(mapped) != prod(shape.pixels):
        raise ValueError(f"{path} has {len(mapped)} bytes, {shape.pixels} has {prod(shape.pixels)}")
    return mapped
