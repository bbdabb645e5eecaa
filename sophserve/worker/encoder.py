"""Images on the worker: encoded a piece at a time as the plans say, and kept until one says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError
from sophserve.link.images import EncodeImage, read_pixels
from sophserve.link.messages import EncoderInfo
from sophserve.model.vision import Encoding, VisionLanguageModel

# Placeholders of an image whose encoding stands for that of others: of a larger one, attention takes more.
_TYPICAL = 1024


def encoder_info(model: VisionLanguageModel, config: EngineConfig) -> EncoderInfo:
    """What the engine must know of encoding with a model. Raises ConfigError."""
    if not config.enable_chunked_prefill:
        raise ConfigError("a model that sees needs chunked prefill; leave out --no-enable-chunked-prefill")
    row_bytes = model.config.hidden_size * model.context.dtype.itemsize
    cost = model.encoder_flops(_TYPICAL) / _TYPICAL / max(2, model.token_flops)
    return EncoderInfo(model.encoder_pieces + 1, cost, config.encoder_cache_bytes // row_bytes)


class ImageEncoder:
    """Holds the embeddings of images by digest. beat: called before each piece, as a sign of life."""

    def __init__(self, model: VisionLanguageModel, beat: Callable[[], None]) -> None:
        self._model = model
        self._beat = beat
        self._begun: dict[bytes, Encoding] = {}
        self._rows: dict[bytes, Tensor] = {}

    def run(self, encoded: Iterable[EncodeImage], forgotten: Iterable[bytes]) -> None:
        """Do what a plan says. Raises OSError for pixels that are gone."""
        for digest in forgotten:
            self._begun.pop(digest, None)
            self._rows.pop(digest, None)
        for order in encoded:
            work = self._begun.get(order.digest) or self._begin(order)
            try:
                for _ in range(order.pieces):
                    self._beat()
                    next(work)
            except StopIteration as end:
                del self._begun[order.digest]
                rows: Tensor = end.value
                if rows.shape != (order.shape.tokens, self._model.config.hidden_size):
                    raise ValueError(f"an image of {order.shape} was encoded to {list(rows.shape)}") from None
                self._rows[order.digest] = rows.clone()

    def rows(self, digest: bytes) -> Tensor:
        """The embeddings of an image, `[placeholders, hidden]`."""
        return self._rows[digest]

    def _begin(self, order: EncodeImage) -> Encoding:
        pixels = torch.frombuffer(read_pixels(order.path, order.shape), dtype=torch.uint8)
        work = self._begun[order.digest] = self._model.encode(pixels.view(order.shape.pixels), order.shape.grid)
        return work
