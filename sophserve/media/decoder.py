"""Makes pictures of encoded images: `python -m sophserve.media.decoder DIRECTORY ARCHITECTURE LIMITS`.

Each is decoded, and made fit for the architecture, in a process of its own (sophserve.forks).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import msgspec

from sophserve.errors import RequestError
from sophserve.forks import Forks, limit_memory, limit_time
from sophserve.link.images import ImageShape
from sophserve.media.limits import MediaLimits
from sophserve.media.processor import Detail, read_processor

# By the clock, so long as the machine may be busy with other things.
WALL_SECONDS = 60.0
# What decoding takes beside the picture, and for each of its pixels: WebP, the worst, holds it six times.
_BASE_BYTES = 1 << 28
_PIXEL_BYTES = 32


class Decode(msgspec.Struct, array_like=True):
    """The content of a job. encoded, pixels: the paths of the file to read and of the one to write."""

    encoded: str
    pixels: str
    detail: Detail


class Decoded(msgspec.Struct, array_like=True):
    """The answer: what became of the image, or what is wrong with it, in words that go on from `the image`."""

    problem: str = ""
    digest: bytes = b""
    shape: ImageShape = ImageShape(0, (), ())


def main(directory: str, architecture: str, limits: str) -> None:
    """Fork a process for each image until the server is gone."""
    from PIL import Image

    from sophserve.media.pictures import digest, read_picture

    Image.MAX_IMAGE_PIXELS = None  # an option says how many
    warnings.simplefilter("ignore")  # Pillow's, of what clients send
    limit = msgspec.json.decode(limits, type=MediaLimits)
    processor = read_processor(Path(directory), architecture, limit.preprocessor)
    settings = processor.settings.encode()

    def work(content: bytes) -> bytes:
        job = msgspec.msgpack.decode(content, type=Decode)
        limit_time(limit.seconds, max(limit.seconds, WALL_SECONDS))
        limit_memory(_BASE_BYTES)
        try:
            picture = read_picture(Path(job.encoded), limit.pixels, _grant)
            shape = processor.shape(picture.width, picture.height, job.detail)
            Path(job.pixels).write_bytes(processor.pixels(picture, job.detail))
            done = Decoded("", digest(picture, settings, job.detail.encode()), shape)
        except RequestError as error:
            done = Decoded(str(error)[:500])
        return msgspec.msgpack.encode(done)

    Forks(work).run()


def _grant(pixels: int) -> None:
    limit_memory(_BASE_BYTES + _PIXEL_BYTES * pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
