"""Images of requests to pixels for workers: within limits, decoded in processes of their own, and once if equal."""

from __future__ import annotations

import asyncio
import os
import signal
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sophserve.errors import RequestError, ServerBusy
from sophserve.forks_process import ATTEMPTS, OWN_FAULT, ForksProcess
from sophserve.link.images import ImageShape, SharedPixels
from sophserve.media.decoder import WALL_SECONDS, Decode, Decoded
from sophserve.media.limits import MediaLimits
from sophserve.media.processor import Detail, architecture_that_sees, read_processor
from sophserve.media.source import ImageSource

if TYPE_CHECKING:
    from sophserve.media.fetch import ImageFetcher

# Decodes at once: one a core, and not more than there is memory for.
_MOST_DECODES = 4
# Pictures that are kept for requests to come, which cost a descriptor each, and the bytes of their pixels.
_KEPT_PICTURES = 256
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True)
class Picture:
    """An image, ready for the workers. digest: SHA-256 of its decoded pixels and of all that is done with them."""

    digest: bytes
    shape: ImageShape
    pixels: SharedPixels


Key = tuple[bytes, Detail]


class Kept:
    """Pictures that were decoded lately, by what they were decoded from; the least recently used ones go first."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._pictures: OrderedDict[Key, Picture] = OrderedDict()

    def get(self, key: Key) -> Picture | None:
        """That of a key, used again."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def put(self, key: Key, picture: Picture) -> None:
        """Keep one that is not kept."""
        self._pictures[key] = picture
        self._bytes += picture.pixels.size
        while len(self._pictures) > self._most or self._bytes > self._most_bytes:
            self.drop()

    def drop(self) -> bool:
        """Forget one, if there is any."""
        if not self._pictures:
            return False
        _, dropped = self._pictures.popitem(last=False)
        self._bytes -= dropped.pixels.size
        return True


@dataclass
class _Decoding:
    """A decode under way, for as many as ask for it. Its result is the picture, or what is wrong with the image."""

    task: asyncio.Task[Picture | str]
    askers: int = 0


class ImageLoader:
    """Loads the images of requests to one model. Raises CheckpointError for a checkpoint whose images cannot be
    processed. No process runs before `start` or the first image."""

    def __init__(self, directory: Path, architecture: str, limits: MediaLimits) -> None:
        self.limits = limits
        self.processor = read_processor(directory, architecture, limits.preprocessor)
        arguments = [str(directory), architecture, msgspec.json.encode(limits).decode()]
        seconds = max(WALL_SECONDS, limits.seconds)
        self._process = ForksProcess("sophserve.media.decoder", arguments, seconds, "images cannot be decoded")
        self._fetcher = _fetcher(limits)
        self._at_once = min(len(os.sched_getaffinity(0)), _MOST_DECODES)
        self._turns = asyncio.Semaphore(self._at_once)
        self._kept = Kept(_KEPT_PICTURES, _KEPT_BYTES)
        self._decoding: dict[Key, _Decoding] = {}
        self._bytes = 0  # of encoded images that are being loaded, and of all pixels

    async def start(self) -> None:
        """Start the process that decodes, so that the first image does not wait for it."""
        await self._process.start()

    async def load(self, sources: Sequence[ImageSource]) -> list[Picture]:
        """The pictures of one request, in order. Raises RequestError for what cannot be one, ServerBusy when that
        cannot be told now."""
        most = self.limits.images
        if len(sources) > most:
            path = sources[most].path
            raise RequestError(f"{path}: there are {len(sources)} images; a request may have {most}", path)
        # A request takes no more turns than there are, so that others with fewer images come in between.
        turns = asyncio.Semaphore(self._at_once)

        async def load(source: ImageSource) -> Picture:
            async with turns:
                return await self._load(source)

        size = sum(len(source.data or b"") for source in sources)
        tasks: list[asyncio.Future[Picture]] = []
        self._bytes += size
        try:
            self._make_room()
            tasks = [asyncio.ensure_future(load(source)) for source in sources]
            return list(await asyncio.gather(*tasks))
        finally:
            self._bytes -= size
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """End the processes, and let go of what is kept."""
        for decoding in self._decoding.values():
            decoding.task.cancel()
        await self._process.close()
        if self._fetcher:
            await self._fetcher.close()
        while self._kept.drop():
            pass

    def _make_room(self) -> None:
        """Keep less, if images take too much. Raises ServerBusy if that is not enough."""
        most = self.limits.memory
        while most is not None and self._bytes > most:
            if not self._kept.drop():
                raise ServerBusy(
                    f"the images of all requests would take {self._bytes} bytes, of {most} that they may "
                    "(--image-memory); try again later"
                )

    def _count(self, pixels: SharedPixels) -> None:
        """Count what a picture takes, for as long as anybody has it."""

        def forget(size: int = pixels.size) -> None:
            self._bytes -= size

        self._bytes += pixels.size
        weakref.finalize(pixels, forget)

    async def _load(self, source: ImageSource) -> Picture:
        data = await self._data(source)
        if len(data) > self.limits.bytes:
            size = f"has {len(data)} bytes; at most {self.limits.bytes} are taken (--max-image-bytes)"
            raise RequestError(f"{source.path}: the image {size}", source.path)
        key = ((await asyncio.to_thread(sha256, data)).digest(), source.detail)
        found = self._kept.get(key) or await self._decoded(key, data)
        if isinstance(found, str):
            raise RequestError(f"{source.path}: the image {found}", source.path)
        return found

    async def _data(self, source: ImageSource) -> bytes:
        if source.data is not None:
            return source.data
        assert source.url is not None
        if self._fetcher is None:
            raise RequestError(
                f"{source.path}: images are fetched from URLs only with --allowed-media-domains; send this one as a "
                "data URL",
                source.path,
            )
        from sophserve.media.fetch import CannotFetch

        try:
            return await self._fetcher.fetch(source.url)
        except CannotFetch as error:
            raise RequestError(f"{source.path}: the image {error}", source.path) from None

    async def _decoded(self, key: Key, data: bytes) -> Picture | str:
        """As _decode; equal images are decoded once for all that ask."""
        decoding = self._decoding.get(key)
        if decoding is None:
            task = asyncio.create_task(self._decode(key, data))
            decoding = self._decoding[key] = _Decoding(task)
        decoding.askers += 1
        try:
            return await asyncio.shield(decoding.task)
        finally:
            decoding.askers -= 1
            if decoding.askers == 0:
                if self._decoding.get(key) is decoding:
                    del self._decoding[key]
                decoding.task.cancel()

    async def _decode(self, key: Key, data: bytes) -> Picture | str:
        """The picture, or what is wrong with the image. Raises ServerBusy."""
        async with self._turns:
            encoded = SharedPixels(len(data))
            await asyncio.to_thread(encoded.write, data)
            for _ in range(ATTEMPTS):
                pixels = SharedPixels(0)
                job = Decode(encoded.path, pixels.path, key[1])
                done = await self._process.run(msgspec.msgpack.encode(job))
                if done is not None and done.signal == 0:
                    decoded = msgspec.msgpack.decode(done.answer, type=Decoded)
                    if decoded.problem:
                        return decoded.problem
                    self._count(pixels)
                    self._make_room()
                    picture = Picture(decoded.digest, decoded.shape, pixels)
                    self._kept.put(key, picture)
                    return picture
                if done is not None and done.signal == signal.SIGPROF:
                    return f"takes more than {self.limits.seconds:g} s to decode; that is all it may (--image-timeout)"
                if done is not None and done.signal in OWN_FAULT:
                    return "cannot be decoded; save it anew as PNG or JPEG"
                if done is not None and done.signal == signal.SIGALRM:
                    raise ServerBusy("this machine is too busy to decode images; try again later")
        raise ServerBusy("the process that decodes images was killed; try again later")


def _fetcher(limits: MediaLimits) -> ImageFetcher | None:
    """None where nothing may be fetched, which is usual, and saves the import of an HTTP client."""
    if not limits.domains:
        return None
    from sophserve.media.fetch import ImageFetcher

    return ImageFetcher(limits)


def image_loader(directory: Path, config: Mapping[str, Any], limits: MediaLimits) -> ImageLoader | None:
    """The loader for a model with this config.json; None for one that sees nothing."""
    architecture = architecture_that_sees(config)
    return None if architecture is None else ImageLoader(directory, architecture, limits)
