"""What the images of requests may take."""

from __future__ import annotations

from typing import Any

import msgspec

from sophserve.config import EngineConfig, ServerConfig
from sophserve.media_domains import MediaDomain


class MediaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """images: of a request. bytes: of an encoded image. pixels: of a decoded one. seconds: of processor time that
    decoding and resizing one may take. memory: bytes of all images together, encoded and as pixels; None where the
    caller sees to that. domains: where one may be fetched from, in fetch_seconds. preprocessor: laid over the
    checkpoint's preprocessor_config.json."""

    images: int = 16
    bytes: int = 20 << 20
    pixels: int = 1 << 26
    seconds: float = 10.0
    memory: int | None = None
    domains: tuple[MediaDomain, ...] = ()
    fetch_seconds: float = 10.0
    preprocessor: dict[str, Any] = {}


def media_limits(engine: EngineConfig, server: ServerConfig) -> MediaLimits:
    """Those that the options give."""
    return MediaLimits(
        images=engine.limit_mm_per_prompt.get("image", MediaLimits().images),
        bytes=server.image_bytes,
        pixels=server.max_image_pixels,
        seconds=server.image_timeout,
        memory=server.image_memory_bytes,
        domains=tuple(server.media_domains),
        fetch_seconds=server.image_fetch_timeout,
        preprocessor=engine.mm_processor_kwargs,
    )
