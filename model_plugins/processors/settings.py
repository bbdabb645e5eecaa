"""What processors of images read in preprocessor_config.json and config.json alike: obeyed, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sophserve.errors import CheckpointError

WHERE = "preprocessor_config.json's"
# Pillow's numbers of its filters.
_FILTERS = range(6)
_BICUBIC = 3


def whole(name: str, value: Any, least: int, most: int = 1 << 20) -> int:
    """A whole number under a name, from `least` to `most`. Raises CheckpointError for anything else."""
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(f"{name} is {value!r}; it must be a whole number from {least} to {most}")
    return value


def check_steps(preprocessor: Mapping[str, Any], types: Collection[str], steps: Collection[str]) -> None:
    """Raise CheckpointError for a processor of another type than these, and one that does something besides."""
    kind = preprocessor.get("image_processor_type")
    if kind is not None and kind not in types:
        raise CheckpointError(f"{WHERE} image_processor_type is {kind!r}; supported: {', '.join(types)}")
    for key, value in preprocessor.items():
        if key.startswith("do_") and value and key not in steps:
            raise CheckpointError(f"{WHERE} {key} is {value!r}, which is not supported")


def resampling(preprocessor: Mapping[str, Any]) -> int:
    """Pillow's number of the filter to resize with. Raises CheckpointError for what is none."""
    number = preprocessor.get("resample")
    number = _BICUBIC if number is None else number
    if type(number) is not int or number not in _FILTERS:
        raise CheckpointError(f"{WHERE} resample is {number!r}; it must be the number of a filter, 0 to {_FILTERS[-1]}")
    return number
