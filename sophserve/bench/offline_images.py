"""The images that `sophserve bench` has models look at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from sophserve.bench.random_images import random_image
from sophserve.checkpoint import read_config
from sophserve.errors import ConfigError, RequestError
from sophserve.image_prompt import ImagePrompt, image_prompt
from sophserve.media.loader import ImageLoader
from sophserve.media.processor import architecture_that_sees, read_processor
from sophserve.media.source import ImageSource
from sophserve.text.tokenizer import Tokenizer

_OPTION = "--image-size"


class BenchImages:
    """Random ones of one size for a checkpoint. tokens: that one takes in a prompt. Raises ConfigError for a checkpoint
    that sees none, or not of this size."""

    def __init__(self, directory: Path, size: tuple[int, int], seed: int) -> None:
        config = read_config(directory)
        architecture = architecture_that_sees(config)
        if architecture is None:
            names = config.get("architectures") or ["the model"]
            raise ConfigError(f"{_OPTION} needs a model with vision, which {names[0]} is not; leave it out")
        self.processor = read_processor(directory, architecture, {})
        self._size = size
        self._chance = random.Random(seed)
        try:
            self.tokens = self.processor.shape(*size, "auto").tokens
        except RequestError as error:
            raise ConfigError(f"{_OPTION} {size[0]}x{size[1]}: the image {error}") from None

    async def shown(self, prompts: Sequence[list[int]], loader: ImageLoader, tokenizer: Tokenizer) -> list[ImagePrompt]:
        """The prompts, in each of which a placeholder stands for an image, with images that none before had."""
        shown = []
        for prompt in prompts:
            data = random_image(self._chance, self._size, "PNG")
            pictures = await loader.load([ImageSource(_OPTION, data=data)])
            shown.append(image_prompt(prompt, pictures, tokenizer, self.processor))
        return shown
