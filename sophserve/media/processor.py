"""What an architecture wants of an image. Works in the server and in the process that decodes, without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sophserve.checkpoint import read_config, read_preprocessor_config
from sophserve.errors import ConfigError
from sophserve.link.images import ImageShape
from sophserve.plugins import image_processors

if TYPE_CHECKING:
    from PIL import Image

Detail = Literal["auto", "low", "high"]


class ImageProcessor(ABC):
    """Makes images fit for one architecture, pixel for pixel as transformers' PIL processors do.

    Made from config.json and preprocessor_config.json (empty where a checkpoint has none). placeholder: the text that
    stands for one image in a rendered prompt; it becomes ImageShape.tokens tokens, each of id `placeholder_id`.
    chat_template: of checkpoints that have none. changeable: keys of preprocessor_config.json that an option may lay
    others over; None for any. settings: all that pixels depend on, in words.
    Raises CheckpointError for a configuration that it does not obey.
    """

    placeholder: ClassVar[str]
    chat_template: ClassVar[str | None] = None
    changeable: ClassVar[frozenset[str] | None] = None
    placeholder_id: int
    settings: str

    @abstractmethod
    def __init__(self, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def shape(self, width: int, height: int, detail: Detail) -> ImageShape:
        """What becomes of an image of this size in pixels, in microseconds. Raises RequestError for one that cannot be
        processed, such as one that is too narrow."""

    @abstractmethod
    def pixels(self, image: Image.Image, detail: Detail) -> bytes:
        """The uint8 values of an RGB image, of the shape that `shape` gives for its size."""


def architecture_that_sees(config: Mapping[str, Any]) -> str | None:
    """The name in config.json's `architectures` for which an image processor is registered."""
    names = config.get("architectures")
    known = image_processors()
    return next((name for name in names if name in known), None) if isinstance(names, list) else None


def read_processor(directory: Path, architecture: str, changes: Mapping[str, Any]) -> ImageProcessor:
    """The processor of a checkpoint. changes: laid over its preprocessor_config.json. Raises CheckpointError, or
    ConfigError for changes that would change nothing."""
    processor_class: type[ImageProcessor] = image_processors()[architecture].value
    known = processor_class.changeable
    for key in changes:
        if known is not None and key not in known:
            raise ConfigError(
                f"--mm-processor-kwargs has {key[:40]!r}, which images of {architecture} do not take; they take: "
                f"{', '.join(sorted(known))}"
            )
    return processor_class(read_config(directory), read_preprocessor_config(directory) | dict(changes))
