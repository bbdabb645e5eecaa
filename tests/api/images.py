"""A model that sees, as far as the API has to do with it: a picture says itself how many tokens it has."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from sophserve.errors import RequestError
from sophserve.link.images import ImageShape, SharedPixels
from sophserve.link.messages import EncoderInfo
from sophserve.media.loader import Picture
from sophserve.media.processor import Detail, ImageProcessor
from sophserve.media.source import ImageSource
from sophserve.text.chat_template import ChatTemplate

PLACEHOLDER = "<|endoftext|>"
"""A special token of the test checkpoints, which their chat template writes nowhere."""

# As Qwen2.5-VL's, which takes texts and lists of parts.
TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '[<|endoftext|>]' }}{% else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def picture(name: str, tokens: int = 3) -> str:
    """A data URL."""
    return f"data:image/png;base64,{base64.b64encode(f'{tokens} {name}'.encode()).decode()}"


class Processor(ImageProcessor):
    """One that is never asked for pixels."""

    placeholder = PLACEHOLDER
    placeholder_id = 0
    settings = ""

    def __init__(self, config: Mapping[str, Any] = {}, preprocessor: Mapping[str, Any] = {}) -> None:
        pass

    def shape(self, width: int, height: int, detail: Detail) -> ImageShape:
        raise NotImplementedError

    def pixels(self, image: Any, detail: Detail) -> bytes:
        raise NotImplementedError


class Loader:
    """In place of an ImageLoader. A gate that is closed holds what is loaded."""

    def __init__(self, processor: ImageProcessor | None = None) -> None:
        self.processor = processor or Processor()
        self.loaded: list[ImageSource] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    async def load(self, sources: Sequence[ImageSource]) -> list[Picture]:
        await self.gate.wait()
        self.loaded += sources
        return list(map(self._picture, sources))

    async def close(self) -> None:
        self.closed = True

    def _picture(self, source: ImageSource) -> Picture:
        content = source.data or f"2 {source.url}".encode()
        if not content.split()[0].isdigit():
            raise RequestError(f"{source.path}: the image is no file that can be decoded", source.path)
        digest = sha256(content + source.detail.encode()).digest()
        return Picture(digest, ImageShape(int(content.split()[0]), (1, 1, 3), (1,)), SharedPixels(3))


def digest_of(url: str, detail: str = "auto") -> bytes:
    """That of a picture."""
    return sha256(base64.b64decode(url.partition(",")[2]) + detail.encode()).digest()


def let_see(app: Any) -> None:
    """Make the application one over a model that sees."""
    app.engine.info.encoder = EncoderInfo(pieces=1, cost=1.0, cache_tokens=100)
    app.serving.images = Loader()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, app.tokenizer.special_tokens, PLACEHOLDER)
